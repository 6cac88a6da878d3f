"""Results of the detection experiments to one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchfree._errors import ConfigError
from batchfree.experiments.detection_results import DetectionResults
from batchfree.experiments.paper import COCO_FINE_TUNED, COCO_SCRATCH
from batchfree.experiments.store import write_whole
from batchfree.report import detection_tables as tables
from batchfree.report import detection_words as words
from batchfree.report import provenance
from batchfree.report.charts import Chart
from batchfree.report.detection_charts import detection_charts
from batchfree.report.page import chart_values, plots_of, static_files
from batchfree.report.pictures import picture_grid
from batchfree.report.templating import fill

_PAPER = {"detection": COCO_FINE_TUNED, "scratch": COCO_SCRATCH}


def write(
    results: Sequence[DetectionResults], output: str | os.PathLike[str], figures: bool
) -> Path:
    """`batchfree.report.write_detection_report`, with its libraries loaded."""
    if not results:
        raise ConfigError("a report needs at least one result, got an empty list; read one first")
    path = Path(output)
    drawn = [detection_charts(item) for item in results]
    static: dict[Path, bytes] = {}
    if figures:
        for rank, found in enumerate(drawn):
            stem = path.stem if rank == 0 else f"{path.stem}-{rank + 1}"
            static |= static_files(path.with_name(stem), found)
    write_whole(path, render(results, drawn).encode("utf-8", "replace"))
    for place, content in static.items():
        write_whole(place, content)
    return path


def render(results: Sequence[DetectionResults], drawn: Sequence[Sequence[Chart]]) -> str:
    """The page's HTML."""
    pairs = zip(results, drawn, strict=True)
    sections = [_section(item, found, rank) for rank, (item, found) in enumerate(pairs)]
    return fill(
        "detection.html.j2",
        plots=plots_of(chart for section in sections for chart in section["charts"]),
        styles=[style for found in drawn for chart in found for style in chart.legend.values()],
        title=words.headline(results[0]),
        sections=sections,
    )


def _section(results: DetectionResults, found: Sequence[Chart], rank: int) -> dict[str, Any]:
    paper = _PAPER[results.experiment]
    return {
        "id": f"experiment-{rank + 1}",
        "results": results,
        "headline": words.headline(results),
        "lead": words.lead(results),
        "missing": words.missing(results),
        "cautions": words.cautions(results),
        "charts": [chart_values(results, chart, f"e{rank + 1}-{chart.key}") for chart in found],
        "table": tables.our_table(results),
        "paper": paper,
        "paper_table": tables.paper_table(paper),
        "pictures": picture_grid(results),
        "categories": tables.category_table(results),
        "runs": tables.runs_table(results),
        "backbones": tables.backbones_table(results),
        "facts": provenance.facts(results, results.rows),
        "settings": provenance.settings(results.rows),
    }
