"""Runs a list of trainings through a pool of processes; whatever has finished is kept.

Each finished run is a file of its own under `rows/`, and `results.json` is written anew after each.
The same sweep started again takes up the rows that are there and trains only what is missing.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from batchfree._errors import ConfigError, ResultsError, SweepError
from batchfree.experiments.machine import commit, machine, usable_cores, versions
from batchfree.experiments.results import (
    CurvePoint,
    Results,
    Row,
    read_row,
    write_results,
    write_row,
)
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


class Watcher(Protocol):
    """What a sweep reports to, such as a progress bar."""

    def started(self, runs: int, kept: int, steps: int, workers: int) -> None:
        """The sweep begins: all runs, those kept from before, and the steps still to do."""

    def advanced(self, steps: int) -> None:
        """So many of the steps are done, over all runs."""

    def finished(self, row: Row) -> None:
        """A run has finished and its row is kept."""

    def warned(self, message: str) -> None:
        """Something that the user should know, while the sweep goes on."""


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a sweep; every finished run is kept."""


def default_workers(runs: int) -> int:
    """Processes for so many runs: the usable cores, as far as memory goes, at least one."""
    return max(1, min(runs, usable_cores(), int(_available_memory() / _MEMORY_PER_WORKER)))


def run_sweep(
    runs: Sequence[Run],
    folder: Path,
    make_results: Callable[[tuple[Row, ...]], Results],
    *,
    command: str,
    watcher: Watcher,
    workers: int | None = None,
) -> Results:
    """Trains what is missing of `runs` and returns all their rows.

    Args:
        runs: the trainings; longest first keeps all processes busy to the end.
        folder: where `rows/` and `results.json` go.
        make_results: wraps rows into the experiment's Results.
        command: the command that the rows name as theirs.
        watcher: told of the sweep's progress.
        workers: processes, of one thread each; by default as many as the machine bears.

    Raises:
        ConfigError: workers below 1.
        SweepError: runs failed, or a process was killed; the others are kept.
        SweepInterrupted: Ctrl-C; finished runs are kept.
        OSError: the folder cannot be written; finished runs that it does not take are written to a
            temporary folder, which the message names.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    rows = _kept_rows(runs, folder, watcher)
    write_results(folder / "results.json", make_results(_in_order(runs, rows)))
    missing = [run for run in runs if run.name not in rows]
    workers = min(workers or default_workers(len(missing)), max(1, len(missing)))
    watcher.started(len(runs), len(rows), sum(run.steps for run in missing), workers)
    failures: list[str] = []
    unwritten: list[tuple[Run, Row]] = []
    provenance = {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "command": command,
    }
    if missing:
        for run, row in _train_all(missing, workers, provenance, failures, watcher):
            rows[run.name] = row
            unwritten.append((run, row))
            unwritten = _write(unwritten, folder, watcher)
            if not unwritten:
                write_results(folder / "results.json", make_results(_in_order(runs, rows)))
            watcher.finished(row)
    _rescue(_write(unwritten, folder, watcher), folder)
    results = make_results(_in_order(runs, rows))
    write_results(folder / "results.json", results)
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(runs)} runs failed, the others are kept in {folder}; run the "
            f"same command again to retry them. {'; '.join(failures)}"
        )
    return results


def _in_order(runs: Sequence[Run], rows: dict[str, Row]) -> tuple[Row, ...]:
    return tuple(rows[run.name] for run in runs if run.name in rows)


def _row_path(folder: Path, run: Run) -> Path:
    return folder / "rows" / f"{run.name}.json"


def _kept_rows(runs: Sequence[Run], folder: Path, watcher: Watcher) -> dict[str, Row]:
    """The rows of runs that finished earlier with the same config."""
    rows = {}
    for run in runs:
        path = _row_path(folder, run)
        if not path.exists():
            continue
        try:
            row = read_row(path)
        except ResultsError as error:
            watcher.warned(f"trained again, since its row cannot be read: {error}")
            continue
        if row.config == run.config.to_dict():
            rows[run.name] = row
        else:
            watcher.warned(f"trained again, since its settings have changed: {path}")
    return rows


def _write(waiting: list[tuple[Run, Row]], folder: Path, watcher: Watcher) -> list[tuple[Run, Row]]:
    """Writes the rows that wait; returns those that could not be written, to be tried again."""
    still = []
    for run, row in waiting:
        try:
            write_row(_row_path(folder, run), row)
        except OSError as error:
            watcher.warned(f"{error}; the run is kept in memory and tried again")
            still.append((run, row))
    return still


def _rescue(unwritten: list[tuple[Run, Row]], folder: Path) -> None:
    if not unwritten:
        return
    refuge = Path(tempfile.mkdtemp(prefix="batchfree-rows-"))
    for run, row in unwritten:
        write_row(refuge / f"{run.name}.json", row)
    raise OSError(
        f"{len(unwritten)} finished runs could not be written to {folder / 'rows'} and lie in "
        f"{refuge}; make room, move them there and run the same command again"
    )


def _train_all(
    missing: list[Run],
    workers: int,
    provenance: dict[str, Any],
    failures: list[str],
    watcher: Watcher,
) -> Iterator[tuple[Run, Row]]:
    with _pool(workers) as (pool, done_steps, stop):
        futures: dict[Future[Row], Run] = {
            pool.submit(_train, run, provenance): run for run in missing
        }
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                watcher.advanced(done_steps.value)
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
    """In a worker: Ctrl-C is the parent's to handle, and one thread each."""
    import torch

    global _done_steps, _stop
    _done_steps, _stop = done_steps, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _train(run: Run, provenance: dict[str, Any]) -> Row:
    """In a worker: one training, as a row."""
    from batchfree.train.run import fit

    parent = multiprocessing.parent_process()

    def on_step(step: int) -> None:
        with _done_steps.get_lock():
            _done_steps.value += 1
        if step % _STOP_CHECK == 0 and (
            _stop.is_set() or (parent is not None and not parent.is_alive())
        ):
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
