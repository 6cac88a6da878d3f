"""Results to one self-contained HTML page, and static figures beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from batchfree._errors import ConfigError
from batchfree.experiments.paper import IMAGENET_RESNET50
from batchfree.experiments.results import Results
from batchfree.experiments.store import write_whole
from batchfree.report import provenance, tables, words
from batchfree.report.charts import Chart, charts
from batchfree.report.figures_plotly import plotly_figures
from batchfree.report.templating import fill

_STATIC = ("summary", "curves")


def write(results: Sequence[Results], output: str | os.PathLike[str], figures: bool) -> Path:
    """`batchfree.report.write_report`, with its libraries loaded."""
    if not results:
        raise ConfigError("a report needs at least one Results, got an empty list; read one first")
    path = Path(output)
    drawn = [charts(item) for item in results]
    stems = [path.stem if rank == 0 else f"{path.stem}-{rank + 1}" for rank in range(len(drawn))]
    static: dict[Path, bytes] = {}
    if figures:
        for stem, found in zip(stems, drawn, strict=True):
            static |= static_files(path.with_name(stem), found)
    write_whole(path, render(results, drawn).encode("utf-8", "replace"))
    for place, content in static.items():
        write_whole(place, content)
    return path


def static_files(stem: Path, found: Sequence[Chart]) -> dict[Path, bytes]:
    """The figures that stand beside a page, by their paths, which begin with `stem`."""
    from batchfree.report.figures_static import static_figure

    return {
        stem.with_name(f"{stem.name}-{chart.key}{suffix}"): content
        for chart in found
        if chart.key.startswith(_STATIC)
        for suffix, content in static_figure(chart).items()
    }


def render(results: Sequence[Results], drawn: Sequence[Sequence[Chart]]) -> str:
    """The page's HTML."""
    pairs = zip(results, drawn, strict=True)
    sections = [_section(item, found, rank) for rank, (item, found) in enumerate(pairs)]
    plots = plots_of(chart for section in sections for chart in section["charts"])
    styles = [style for found in drawn for chart in found for style in chart.legend.values()]
    return fill(
        "page.html.j2",
        plots=plots,
        styles=styles,
        title=words.headline(results[0]),
        sections=sections,
        paper=IMAGENET_RESNET50,
        paper_table=tables.paper_table(IMAGENET_RESNET50),
    )


def plots_of(shown: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Plotly's part of some charts' values, by element id."""
    return {
        plot["id"]: {**plot["figure"], "group": chart["id"]}
        for chart in shown
        for plot in chart["plots"]
    }


def _section(results: Results, found: Sequence[Chart], rank: int) -> dict[str, Any]:
    return {
        "id": f"experiment-{rank + 1}",
        "results": results,
        "headline": words.headline(results),
        "lead": words.lead(results),
        "missing": words.missing(results),
        "cautions": words.cautions(results),
        "charts": [chart_values(results, chart, f"e{rank + 1}-{chart.key}") for chart in found],
        "table": tables.our_table(results),
        "runs": tables.runs_table(results),
        "facts": provenance.facts(results, results.rows),
        "settings": provenance.settings(results.rows),
    }


def chart_values(results: provenance.Commanded, chart: Chart, name: str) -> dict[str, Any]:
    """What the template's macro `plotted` shows of a chart; `name` begins its elements' ids."""
    plots = [
        {
            "id": f"{name}-{index}",
            "title": panel.title,
            "label": _spoken(chart, index),
            "figure": figure,
        }
        for index, (panel, figure) in enumerate(
            zip(chart.panels, plotly_figures(chart), strict=True)
        )
    ]
    return {
        "id": name,
        "chart": chart,
        "plots": plots,
        "table": tables.chart_table(chart),
        "brief": provenance.brief(chart.rows),
        "facts": provenance.facts(results, chart.rows),
    }


def _spoken(chart: Chart, index: int) -> str:
    """A plot in words, for a screen reader."""
    panel = chart.panels[index]
    ends = "; ".join(
        f"{line.label}: {line.y[0]:.1f} at {line.x[0]} to {line.y[-1]:.1f} at {line.x[-1]}"
        for line in panel.lines
    )
    where = f", {panel.title}" if panel.title else ""
    return f"{chart.title}{where}. {chart.y_label} by {chart.x_label}. {ends}."
