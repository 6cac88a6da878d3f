"""The tables of the page: ours beside the paper's, and the numbers behind every figure."""

from __future__ import annotations

from dataclasses import dataclass

from batchfree.experiments.paper import PaperTable
from batchfree.experiments.results import Results
from batchfree.report import series
from batchfree.report.charts import Chart, Line
from batchfree.report.styles import norm_label, norm_order


@dataclass(frozen=True)
class Entry:
    """A table's cell: a number and, smaller, what is to be known with it."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table: its caption, the heads of its columns, and rows that start with their own head."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


_NONE = Entry("–")


def our_table(results: Results) -> Table:
    """Our validation errors by norm and normalisation batch."""
    rows = []
    counts = {
        len(cell.seeds) for norm in series.norms(results) for cell in series.cells(results, norm)
    }
    for norm in series.norms(results):
        entries = [Entry(norm_label(norm))]
        for size in results.sizes:
            cell = series.cell(results, norm, size)
            if cell is None:
                entries.append(_NONE)
                continue
            count = len(cell.seeds)
            spread = (_range(cell.low, cell.high),) if count > 1 else ()
            told = (f"n = {count}",) if len(counts) > 1 else ()
            entries.append(Entry(f"{cell.mean:.1f}", (*spread, *told)))
        rows.append(tuple(entries))
    seeds = str(min(counts)) if len(counts) == 1 else "n"
    over = "one seed" if counts == {1} else f"mean and range over {seeds} seeds"
    return Table(
        caption=f"Validation error (%) by normalisation batch; {over}",
        head=("Norm", *map(str, results.sizes)),
        rows=tuple(rows),
    )


def paper_table(paper: PaperTable) -> Table:
    """The paper's validation errors by norm and images per GPU."""
    rows = []
    for norm in norm_order(set(paper.errors)):
        errors = (paper.errors[norm].get(size) for size in paper.sizes)
        entries = (_NONE if error is None else Entry(f"{error:.1f}") for error in errors)
        rows.append((Entry(norm_label(norm)), *entries))
    return Table(
        caption="Validation error (%) by images per GPU",
        head=("Norm", *map(str, paper.sizes)),
        rows=tuple(rows),
    )


def runs_table(results: Results) -> Table:
    """Every run on a line."""
    rank = {norm: index for index, norm in enumerate(series.norms(results))}
    ordered = sorted(
        results.rows, key=lambda row: (rank[row.norm], -(row.normalization_batch or 0), row.seed)
    )
    return Table(
        caption="Every run",
        head=(
            "Norm",
            "Normalisation batch",
            "Seed",
            "Val. error (%)",
            "Train error (%)",
            "Seconds",
        ),
        rows=tuple(
            tuple(
                Entry(value)
                for value in (
                    norm_label(row.norm),
                    str(row.normalization_batch or "every size"),
                    str(row.seed),
                    f"{row.val_error:.2f}",
                    f"{row.train_error:.2f}",
                    f"{row.seconds:.0f}",
                )
            )
            for row in ordered
        ),
    )


def chart_table(chart: Chart) -> Table:
    """The numbers that a chart draws, a column for each line: the chart for who cannot see it."""
    lines = [(panel.title, line) for panel in chart.panels for line in panel.lines]
    xs = list(chart.sizes) or sorted({x for _, line in lines for x in line.x})
    columns = [_column(line) for _, line in lines]
    return Table(
        caption=f"{chart.title}: {chart.y_label} by {chart.x_label}",
        head=(
            chart.x_label,
            *(f"{title}, {line.label}" if title else line.label for title, line in lines),
        ),
        rows=tuple((Entry(f"{x:,}"), *(column.get(x, _NONE) for column in columns)) for x in xs),
    )


def _column(line: Line) -> dict[int, Entry]:
    notes: list[tuple[str, ...]] = [()] * len(line.x)
    if line.low and len(line.seeds) > 1:
        notes = [(_range(low, high),) for low, high in zip(line.low, line.high, strict=True)]
    return {x: Entry(f"{y:.1f}", note) for x, y, note in zip(line.x, line.y, notes, strict=True)}


def _range(low: float, high: float) -> str:
    return f"{low:.1f}–{high:.1f}"
