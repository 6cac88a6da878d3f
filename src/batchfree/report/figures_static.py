"""Charts to PNG and SVG, for a README or a paper."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from batchfree.report.charts import Chart, Line

_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.6)), "dashdot": (0, (6, 2, 1, 2))}
_DASHES["longdash"] = (0, (9, 3))
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"}
_INK, _MUTED, _GRID = "#1c2230", "#5b6372", "#e4e7ec"

_LOOK: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": "#9aa2b1",
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "ytick.left": False,
    "svg.hashsalt": "batchfree",
}


def static_figure(chart: Chart) -> dict[str, bytes]:
    """A chart as the bytes of a PNG and of an SVG file, by suffix; the same for the same rows."""
    with matplotlib.rc_context(_LOOK):
        figure = _draw(chart)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=160, metadata={"Software": "batchfree"})
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return {".png": png.getvalue(), ".svg": svg.getvalue()}


def _draw(chart: Chart) -> Figure:
    count = len(chart.panels)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    width = 7.2 if count == 1 else 3.6 * columns
    figure = Figure(figsize=(width, 4.2 if count == 1 else 3.1 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    handles = {}
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        axes.set_title(panel.title, fontsize=10, loc="left", color=_INK)
        for line in panel.lines:
            handles[line.label] = _draw_line(axes, line)
        _dress(axes, chart)
    for index, axes in enumerate(grid.flat):
        if index >= count:
            axes.set_visible(False)
        elif index + columns >= count:
            # With an unfilled last row, the panel above the gap needs its own ticks.
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.set_xlabel(chart.x_label)
    figure.suptitle(f"{chart.title} (%)", fontsize=11)
    figure.legend(
        list(handles.values()),
        [label.lstrip("_") for label in handles],
        loc="outside lower center",
        ncols=_columns(handles, width),
        frameon=False,
        handlelength=3,
    )
    return figure


def _columns(labels: Iterable[str], width: float) -> int:
    """How many columns of a legend fit into so many inches: a mark, and 0.085 inches a letter."""
    found = list(labels)
    return max(1, min(len(found), int(width / (0.085 * max(map(len, found), default=1) + 0.75))))


def _draw_line(axes: Axes, line: Line) -> Line2D:
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=line.style.light, alpha=0.13, lw=0)
    (drawn,) = axes.plot(
        line.x,
        line.y,
        color=line.style.light,
        linestyle=_DASHES[line.style.dash],
        linewidth=1.8,
        marker=_MARKERS[line.style.marker] if line.style.marker else None,
        markersize=6,
        markeredgecolor="white",
    )
    return drawn


def _dress(axes: Axes, chart: Chart) -> None:
    axes.set_ylim(0, chart.y_top)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if chart.sizes:
        axes.set_xscale("log", base=2)
        axes.set_xlim(chart.sizes[0] * 1.15, chart.sizes[-1] / 1.15)
        axes.xaxis.set_major_locator(FixedLocator(chart.sizes))
        axes.xaxis.set_major_formatter(FixedFormatter([str(size) for size in chart.sizes]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, chart.x_end)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter("{x:,.0f}")
