"""Trains the runs of a sweep in a pool of processes, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchfree._errors import SweepError
from batchfree.experiments.machine import usable_cores
from batchfree.experiments.results import CurvePoint, Row
from batchfree.train.config import Config

_MEMORY_PER_WORKER = 1.5e9
_STOP_CHECK = 10  # steps between looks at whether the sweep still wants the run


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Attributes:
        norm: what the report calls the norm: bn, gn, ln, in or gn+ws.
        normalization_batch: the size that the row stands for, or None where it stands for all.
        config: the training.
    """

    norm: str
    normalization_batch: int | None
    config: Config

    @property
    def name(self) -> str:
        """Its file's name under rows/, without the ending."""
        size = "any" if self.normalization_batch is None else self.normalization_batch
        return f"{self.norm.replace('+', '-')}-{size}-seed{self.config.seed}"

    @property
    def steps(self) -> int:
        """Its optimizer steps."""
        assert self.config.trainer.max_steps is not None
        return self.config.trainer.max_steps


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a sweep; every finished run is kept."""


def default_workers(runs: int) -> int:
    """Processes for so many runs: the usable cores, as far as memory goes, at least one."""
    return max(1, min(runs, usable_cores(), int(_available_memory() / _MEMORY_PER_WORKER)))


def train_all(
    runs: list[Run],
    workers: int,
    provenance: dict[str, Any],
    failures: list[str],
    advanced: Callable[[int], None],
) -> Iterator[tuple[Run, Row]]:
    """Trains the runs and yields each with its row as it finishes.

    Args:
        runs: the trainings, begun in this order.
        workers: processes.
        provenance: the fields of a row that all runs share: commit, versions, machine, command.
        failures: gets a line for each run that fails; the others go on.
        advanced: called with the number of steps done over all runs, several times a second.

    Raises:
        SweepError: a process was killed.
        SweepInterrupted: Ctrl-C.
    """
    with _pool(workers) as (pool, done_steps, stop):
        futures: dict[Future[Row], Run] = {
            pool.submit(_train, run, provenance): run for run in runs
        }
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                advanced(done_steps.value)
                for future in finished:
                    run = futures[future]
                    try:
                        yield run, future.result()
                    except BrokenProcessPool:
                        raise SweepError(
                            "a worker process was killed, perhaps for lack of memory; finished "
                            "runs are kept: run the same command again, with fewer --workers"
                        ) from None
                    except Exception as error:
                        failures.append(f"{run.name}: {type(error).__name__}: {error}")
        except KeyboardInterrupt:
            raise SweepInterrupted from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


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


def _train(run: Run, provenance: dict[str, Any]) -> Row:
    """In a worker: one training, as a row."""
    from batchfree.train.run import fit

    def on_step(step: int) -> None:
        with _done_steps.get_lock():
            _done_steps.value += 1
        if step % _STOP_CHECK == 0 and _stop.is_set():
            raise SweepError("the sweep was stopped")

    result = fit(run.config, on_step=on_step)
    curve = tuple(
        CurvePoint(p["step"], p["train_loss"], p["train_error"], p["val_error"])
        for p in result.curve
    )
    return Row(
        norm=run.norm,
        normalization_batch=run.normalization_batch,
        seed=run.config.seed,
        steps=run.steps,
        batch_size=run.config.batch_size,
        learning_rate=run.config.learning_rate(),
        train_error=result.train_error,
        val_error=result.val_error,
        curve=curve,
        seconds=round(result.seconds, 2),
        config=run.config.to_dict(),
        **provenance,
    )


def _available_memory() -> float:
    """Bytes of memory that are free for use; infinite where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")
