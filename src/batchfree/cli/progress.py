"""What a sweep shows in the terminal: one bar over all runs, a line a finished run, a table."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from batchfree.experiments.results import Results, Row


class SweepProgress:
    """A watcher of `run_sweep`: one overall bar with the time left.

    Args:
        title: what is running.
        folder: where its rows go.
    """

    def __init__(self, title: str, folder: Path) -> None:
        self.console = Console(stderr=True)
        self.title = title
        self.folder = folder
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

    def finished(self, row: Row) -> None:
        """A line for a finished run."""
        self.done += 1
        size = "any" if row.normalization_batch is None else row.normalization_batch
        self._say(
            f"{self.done:>3}/{self.runs}  {row.norm:<6} normalisation batch {size:>3}  seed "
            f"{row.seed}  val error {row.val_error:5.2f}%  {row.seconds:5.0f} s"
        )
        self.bar.update(self.task, description=self._count())

    def warned(self, message: str) -> None:
        """A remark above the bar."""
        self._say(f"note: {message}")

    def table(self, results: Results) -> None:
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

    def _count(self) -> str:
        return f"{self.done}/{self.runs} runs"
