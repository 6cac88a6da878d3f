"""What a sweep shows in the terminal: one bar over all runs, a line a finished run, a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from batchfree.experiments.detection_results import DetectionResults, DetectionRow
from batchfree.experiments.results import Results, Row


class SweepProgress:
    """A watcher of `run_sweep`: one overall bar with the time left.

    Args:
        title: what is running.
        folder: where its rows go.
        describe: a finished run's row in a line.
    """

    def __init__(self, title: str, folder: Path, describe: Callable[[Any], str]) -> None:
        self.console = Console(stderr=True)
        self.title = title
        self.folder = folder
        self.describe = describe
        self.runs = self.done = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> SweepProgress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._say(
                f"interrupted: {self.done} of {self.runs} runs are kept in {self.folder}; the same "
                "command continues with the others"
            )

    def _say(self, message: str) -> None:
        self.console.print(escape(message), highlight=False, soft_wrap=True)

    def started(self, runs: int, kept: int, steps: int, workers: int) -> None:
        """Shows the size of the sweep."""
        self.runs, self.done = runs, kept
        before = f", {kept} of them kept from before" if kept else ""
        self._say(f"{self.title}: {runs} runs{before}, {workers} at a time, in {self.folder}")
        self.bar.update(self.task, total=max(steps, 1), description=self._count())

    def advanced(self, steps: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=steps)

    def finished(self, row: Any) -> None:
        """A line for a finished run."""
        self.done += 1
        self._say(f"{self.done:>3}/{self.runs}  {self.describe(row)}  {row.seconds:5.0f} s")
        self.bar.update(self.task, description=self._count())

    def warned(self, message: str) -> None:
        """A remark above the bar."""
        self._say(f"note: {message}")

    def _count(self) -> str:
        return f"{self.done}/{self.runs} runs"


def describe_row(row: Row) -> str:
    """A classifier's run: norm, normalisation batch, seed, validation error."""
    size = "any" if row.normalization_batch is None else row.normalization_batch
    return (
        f"{row.norm:<6} normalisation batch {size:>3}  seed {row.seed}  "
        f"val error {row.val_error:5.2f}%"
    )


def describe_detection(row: DetectionRow | Row) -> str:
    """A detector's run and its AP; or that of a classifier which detectors start from."""
    if isinstance(row, Row):
        return f"{'backbone ' + row.norm:<36} seed {row.seed}  val error {row.val_error:5.2f}%"
    figures = (row.figures.get(name) for name in ("box_AP", "mask_AP"))
    box, mask = ("    –" if value is None else f"{value:5.1f}" for value in figures)
    end = row.failure or f"box AP {box}  mask AP {mask}"
    return f"{row.arm.name:<36} seed {row.seed}  {end}"


def print_errors(results: Results) -> None:
    """The mean validation error of each norm and size."""
    table = Table(title="validation error, %, mean over seeds")
    table.add_column("norm")
    for size in results.sizes:
        table.add_column(str(size), justify="right")
    for norm in dict.fromkeys(row.norm for row in results.rows):
        cells = []
        for size in results.sizes:
            errors = [
                row.val_error
                for row in results.rows
                if row.norm == norm and row.normalization_batch in (size, None)
            ]
            cells.append(f"{sum(errors) / len(errors):.1f}" if errors else "")
        table.add_row(norm, *cells)
    Console().print(table)


def print_precision(results: DetectionResults) -> None:
    """The mean box and mask AP of each norm, with the range over the seeds."""
    from batchfree.report import detection_series as series

    table = Table(title="AP, %, mean over seeds (lowest to highest)")
    table.add_column("norm")
    for name in ("box AP", "mask AP", "seeds", "diverged"):
        table.add_column(name, justify="right")
    for arm in series.arms(results):
        found = [series.cell(results, arm, name) for name in ("box_AP", "mask_AP")]
        shown = [f"{c.mean:.1f} ({c.low:.1f} to {c.high:.1f})" if c else "" for c in found]
        rows, failed = series.rows_of(results, arm), series.diverged(results, arm)
        name = escape(series.label(results, arm))
        table.add_row(name, *shown, str(len(rows)), str(len(failed) or ""))
    Console().print(table)
