"""What each figure shows, for both renderers: its lines, their looks, axes and words."""

from __future__ import annotations

from dataclasses import dataclass

from batchfree.experiments.results import Measured, Results, Row
from batchfree.report import series
from batchfree.report.styles import (
    Style,
    every_size_style,
    norm_label,
    norm_name,
    norm_style,
    size_style,
)


@dataclass(frozen=True)
class Line:
    """One line: `y` over `x`; `low` and `high`, where given, bound a band over the seeds."""

    label: str
    style: Style
    x: tuple[int, ...]
    y: tuple[float, ...]
    seeds: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One set of axes; panels of a chart share their ranges."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: names it in the page and in file names.
        title, note: its heading, and a sentence on how to read it.
        panels: at least one, each with at least one line.
        x_label, y_label: what the axes measure, with units.
        sizes: the ticks where x is a size, on a log2 axis from large to small; empty where x is a
            number of steps.
        x_end, y_top: the ends of the axes, which start at zero.
        rows: the runs it is drawn from.
        x_unit: what an x that is no size counts, in words.
    """

    key: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    x_label: str
    y_label: str
    sizes: tuple[int, ...]
    x_end: float
    y_top: float
    rows: tuple[Measured, ...]
    x_unit: str = "SGD steps"

    @property
    def legend(self) -> dict[str, Style]:
        """Each label once, with its look."""
        return {line.label: line.style for panel in self.panels for line in panel.lines}


def charts(results: Results) -> list[Chart]:
    """The figures that the rows are enough for, in reading order."""
    found = (summary_chart(results), curves_chart(results), train_chart(results))
    return [chart for chart in found if chart is not None]


def summary_chart(results: Results) -> Chart | None:
    """Validation error over normalisation batch, one line per norm; None without rows."""
    names = series.norms(results)
    lines = []
    for norm in names:
        cells = series.cells(results, norm)
        if cells:
            lines.append(
                Line(
                    label=norm_label(norm),
                    style=norm_style(norm, set(names)),
                    x=tuple(cell.size for cell in cells),
                    y=tuple(cell.mean for cell in cells),
                    seeds=tuple({seed: None for cell in cells for seed in cell.seeds}),
                    low=tuple(cell.low for cell in cells),
                    high=tuple(cell.high for cell in cells),
                )
            )
    if not lines:
        return None
    shared = [norm_label(norm) for norm in names if series.is_shared(results, norm)]
    flat = ""
    if shared:
        flat = (
            f" {_listed(shared)} cannot see the normalisation batch: one run per seed stands for "
            "every size, so the line is level by construction."
        )
    return Chart(
        key="summary",
        title="Validation error over normalisation batch",
        note=_seeds(results, "; the band reaches from the lowest seed to the highest") + flat,
        panels=(Panel("", tuple(lines)),),
        x_label="normalisation batch (images)",
        y_label="validation error (%)",
        sizes=results.sizes,
        x_end=0,
        y_top=1.12 * max(max(line.high) for line in lines) or 1.0,
        rows=results.rows,
    )


def curves_chart(results: Results) -> Chart | None:
    """Validation error over steps: a panel per norm, a line per size; None without curves."""
    panels = []
    for norm in series.norms(results):
        lines = _size_lines(results, norm)
        if lines:
            panels.append(Panel(norm_name(norm), tuple(lines)))
    if not panels:
        return None
    return _over_steps(
        key="curves",
        title="Validation error during training",
        note=_seeds(results, ", one line per normalisation batch")
        + " The axes are the same in every panel.",
        panels=panels,
        y_label="validation error (%)",
        rows=results.rows,
    )


def train_chart(results: Results) -> Chart | None:
    """Training error over steps at the largest size, one line per norm; None without curves."""
    names, size = series.norms(results), results.sizes[0]
    lines, rows = [], []
    for norm in names:
        own = series.rows_at(results, norm, size)
        curve = series.curve(own, "train_error")
        if curve:
            style = norm_style(norm, set(names))
            bare = Style(style.key, style.light, style.dark, style.dash)
            lines.append(Line(norm_label(norm), bare, curve.steps, curve.means, curve.seeds))
            rows.extend(own)
    if not lines:
        return None
    return _over_steps(
        key="train",
        title=f"Training error at normalisation batch {size}",
        note=_seeds(results) + " On ImageNet the paper finds GN’s training error below BN’s.",
        panels=[Panel("", tuple(lines))],
        y_label="training error (%)",
        rows=tuple(rows),
    )


def _size_lines(results: Results, norm: str) -> list[Line]:
    if series.is_shared(results, norm):
        wanted = [(results.sizes[0], "every size", every_size_style())]
    else:
        count = len(results.sizes)
        wanted = [
            (size, f"{size} images", size_style(rank, count))
            for rank, size in enumerate(results.sizes)
        ]
    lines = []
    for size, label, style in wanted:
        curve = series.curve(series.rows_at(results, norm, size), "val_error")
        if curve:
            lines.append(Line(label, style, curve.steps, curve.means, curve.seeds))
    return lines


def _over_steps(
    key: str, title: str, note: str, panels: list[Panel], y_label: str, rows: tuple[Row, ...]
) -> Chart:
    lines = [line for panel in panels for line in panel.lines]
    end = max(line.x[-1] for line in lines)
    # The first steps are near chance for every norm; the axis is cut where the lines part.
    settled = [
        max((y for x, y in zip(line.x, line.y, strict=True) if x >= 0.25 * end), default=line.y[-1])
        for line in lines
    ]
    top = min(100.0, 1.15 * max(settled)) or 1.0
    cut = any(max(line.y) > top for line in lines)
    return Chart(
        key=key,
        title=title,
        note=note + " The first steps, near chance, lie above the axis." * cut,
        panels=tuple(panels),
        x_label="SGD steps",
        y_label=y_label,
        sizes=(),
        x_end=end,
        y_top=top,
        rows=rows,
    )


def _seeds(results: Results, more: str = "") -> str:
    return "One seed." if len(series.seeds(results.rows)) == 1 else f"Mean over seeds{more}."


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
