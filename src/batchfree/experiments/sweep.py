"""Runs a list of trainings through a pool of processes; whatever has finished is kept.

Each finished run is a file of its own under `rows/`, and `results.json` is written anew after each.
The same sweep started again takes up the rows that are there and trains only what is missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from batchfree._errors import ConfigError, ResultsError, SweepError
from batchfree.experiments._fields import plain
from batchfree.experiments.machine import commit, machine, versions
from batchfree.experiments.pool import Run, default_workers, train_all
from batchfree.experiments.results import read_row, write_results, write_row
from batchfree.experiments.store import Stored

_R = TypeVar("_R", bound=Stored)

# Fields that say what is looked at before a training: rows hold, whatever they were.
_CHECKS = {"image_check"}


class Watcher(Protocol):
    """What a sweep reports to, such as a progress bar."""

    def started(self, runs: int, kept: int, steps: int, workers: int) -> None:
        """The sweep begins: all runs, those kept from before, and the steps still to do."""

    def advanced(self, steps: int) -> None:
        """So many of the steps are done, over all runs."""

    def finished(self, row: Any) -> None:
        """A run has finished and its row is kept."""

    def warned(self, message: str) -> None:
        """Something that the user should know, while the sweep goes on."""


def run_sweep(
    runs: Sequence[Run],
    folder: Path,
    make_results: Callable[[tuple[Any, ...]], _R],
    *,
    command: str,
    watcher: Watcher,
    workers: int | None = None,
) -> _R:
    """Trains what is missing of `runs` and returns all their rows.

    Args:
        runs: the trainings, begun in this order as far as their needs let them; longest first
            keeps all processes busy to the end.
        folder: where `rows/` and `results.json` go.
        make_results: wraps rows, in the order of their runs, into the experiment's results.
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
    missing = _missing(runs, rows)
    workers = min(workers or default_workers(len(missing)), max(1, len(missing)))
    watcher.started(len(runs), len(runs) - len(missing), sum(run.steps for run in missing), workers)
    failures: list[str] = []
    unwritten: list[tuple[Run, Any]] = []
    provenance = {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "command": command,
    }
    if missing:
        for run, row in train_all(missing, workers, provenance, failures, watcher.advanced):
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


def _in_order(runs: Sequence[Run], rows: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(rows[run.name] for run in runs if run.name in rows)


def _missing(runs: Sequence[Run], rows: dict[str, Any]) -> list[Run]:
    """The runs without a row, and those whose leavings such a run needs and that have lost them."""
    needed = {name for run in runs if run.name not in rows for name in run.needs}
    return [
        run for run in runs if run.name not in rows or (run.name in needed and not run.is_usable())
    ]


def _row_path(folder: Path, run: Run) -> Path:
    return folder / "rows" / f"{run.name}.json"


def _kept_rows(runs: Sequence[Run], folder: Path, watcher: Watcher) -> dict[str, Any]:
    """The rows of runs that finished earlier with the same config."""
    rows = {}
    for run in runs:
        path = _row_path(folder, run)
        if not path.exists():
            continue
        try:
            row = read_row(path, run.row_type)
        except ResultsError as error:
            watcher.warned(f"trained again, since its row cannot be read: {error}")
            continue
        if _settings(row.config) == _settings(plain(run.settings, "settings")):
            rows[run.name] = row
        else:
            watcher.warned(f"trained again, since its settings have changed: {path}")
    return rows


def _settings(config: Any) -> Any:
    """A run's settings but for those that change none of its numbers or are None: not given, as in
    a row from before there was such a field."""
    if not isinstance(config, dict):
        return config
    given = {k: v for k, v in config.items() if v is not None and k not in _CHECKS}
    return {name: _settings(value) for name, value in given.items()}


def _write(waiting: list[tuple[Run, Any]], folder: Path, watcher: Watcher) -> list[tuple[Run, Any]]:
    """Writes the rows that wait; returns those that could not be written, to be tried again."""
    still = []
    for run, row in waiting:
        try:
            write_row(_row_path(folder, run), row)
            run.tidy()
        except OSError as error:
            watcher.warned(f"{error}; the run is kept in memory and tried again")
            still.append((run, row))
    return still


def _rescue(unwritten: list[tuple[Run, Any]], folder: Path) -> None:
    if not unwritten:
        return
    refuge = Path(tempfile.mkdtemp(prefix="batchfree-rows-"))
    for run, row in unwritten:
        write_row(refuge / f"{run.name}.json", row)
    raise OSError(
        f"{len(unwritten)} finished runs could not be written to {folder / 'rows'} and lie in "
        f"{refuge}; make room, move them there and run the same command again"
    )
