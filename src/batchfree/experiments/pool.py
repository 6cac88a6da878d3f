"""Trains the runs of a sweep in a pool of processes, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from batchfree._errors import SweepError
from batchfree.experiments.machine import usable_cores
from batchfree.experiments.results import Measured

_MEMORY_PER_WORKER = 1.5e9


class Run(Protocol):
    """One training of a sweep, which a process of the pool is given; it has to pickle."""

    @property
    def name(self) -> str:
        """Its file's name under rows/, without the ending."""

    @property
    def steps(self) -> int:
        """Its optimizer steps."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its row has as `config`; a row with another is not this run's."""

    @property
    def row_type(self) -> type[Measured]:
        """The kind of its row."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs that have to be finished before it begins."""

    def is_usable(self) -> bool:
        """Whether what it leaves to the runs that need it is there."""

    def train(
        self,
        on_step: Callable[[int], None],
        stopping: Callable[[], bool],
        provenance: dict[str, Any],
    ) -> Any:
        """Trains and returns its row.

        Args:
            on_step: to be called with the number of steps done, counted from 1.
            stopping: whether the sweep ends, so that the training should too.
            provenance: fields of the row: commit, versions, machine and command.
        """

    def tidy(self) -> None:
        """Its row is kept: what was there to go on with an interrupted training may go."""


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a sweep; every finished run is kept."""


def default_workers(runs: int) -> int:
    """Processes for so many runs: the usable cores, as far as memory goes, at least one."""
    return max(1, min(runs, usable_cores(), int(_available_memory() / _MEMORY_PER_WORKER)))


def train_all(
    runs: Sequence[Run],
    workers: int,
    provenance: dict[str, Any],
    failures: list[str],
    advanced: Callable[[int], None],
) -> Iterator[tuple[Run, Any]]:
    """Trains the runs and yields each with its row as it finishes.

    Args:
        runs: the trainings, begun in this order, but none before those among them that it needs.
        workers: processes.
        provenance: the fields of a row that all runs share: commit, versions, machine, command.
        failures: gets a line for each run that fails; the others go on.
        advanced: called with the number of steps done over all runs, several times a second.

    Raises:
        SweepError: a process was killed.
        SweepInterrupted: Ctrl-C.
    """
    waiting = list(runs)
    futures: dict[Future[Any], Run] = {}
    with _pool(workers) as (pool, done_steps, stop):
        try:
            while waiting or futures:
                while len(futures) < workers and (run := _next(waiting, futures.values())):
                    waiting.remove(run)
                    futures[pool.submit(_train, run, provenance)] = run
                finished, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                advanced(done_steps.value)
                for future in finished:
                    run = futures.pop(future)
                    try:
                        yield run, future.result()
                    except BrokenProcessPool:
                        raise SweepError(
                            "a worker process was killed, perhaps for lack of memory; finished "
                            "runs are kept: run the same command again, with fewer --workers"
                        ) from None
                    except Exception as error:
                        failures.append(f"{run.name}: {type(error).__name__}: {error}")
                        _drop_dependents(run, waiting, failures)
        except KeyboardInterrupt:
            raise SweepInterrupted from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _next(waiting: list[Run], running: Collection[Run]) -> Run | None:
    """The first run that needs none of those that wait or run."""
    unfinished = {run.name for run in (*waiting, *running)}
    return next((run for run in waiting if unfinished.isdisjoint(run.needs)), None)


def _drop_dependents(failed: Run, waiting: list[Run], failures: list[str]) -> None:
    for run in [run for run in waiting if failed.name in run.needs]:
        waiting.remove(run)
        failures.append(f"{run.name}: not begun, since it needs {failed.name}")
        _drop_dependents(run, waiting, failures)


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any, Any]]:
    """Processes that have imported the training once, a count of steps, and a wish to stop."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["batchfree.train.run"])
    done_steps, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _initialize, (done_steps, stop))
    yield pool, done_steps, stop


_done_steps: Any = None
_stop: Any = None


def _initialize(done_steps: Any, stop: Any) -> None:
    """In a worker: Ctrl-C is the sweep's to handle, its death ends this process too."""
    import torch

    global _done_steps, _stop
    _done_steps, _stop = done_steps, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever, also where nobody is left to give it any."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(run: Run, provenance: dict[str, Any]) -> Any:
    """In a worker: one training, as a row."""
    counted = 0

    def on_step(step: int) -> None:
        nonlocal counted
        # A resumed training begins with more than one.
        with _done_steps.get_lock():
            _done_steps.value += step - counted
        counted = step

    return run.train(on_step, _stop.is_set, provenance)


def _available_memory() -> float:
    """Bytes of memory that are free for use; infinite where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")
