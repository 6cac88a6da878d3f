"""Benchmarks to one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree.bench.results import Bench
from batchfree.experiments.store import write_whole
from batchfree.report import bench_words
from batchfree.report.bench_charts import bench_charts
from batchfree.report.templating import fill


def write(benches: Sequence[Bench], output: str | os.PathLike[str]) -> Path:
    """`batchfree.report.write_bench_page`, with its libraries loaded."""
    if not benches:
        raise ConfigError("a page needs at least one benchmark, got an empty list; read one first")
    path = Path(output)
    write_whole(path, render(benches).encode("utf-8", "replace"))
    return path


def render(benches: Sequence[Bench]) -> str:
    """The page's HTML."""
    charts = bench_charts(benches)
    plots = {
        f"{chart.key}-{rank}": {**panel.figure, "group": chart.key}
        for chart in charts
        for rank, panel in enumerate(chart.panels)
    }
    tables = (bench_words.summary_table(benches), bench_words.layout_table(benches))
    return fill(
        "bench.html.j2",
        plots=plots,
        styles=[style for chart in charts for style in chart.legend.values()],
        title=bench_words.headline(benches),
        lead=bench_words.lead(benches),
        cautions=bench_words.cautions(benches),
        incomplete=not all(bench.complete for bench in benches),
        tables=[table for table in tables if table is not None],
        charts=charts,
        benches=[
            {"created": bench.origin.created, "facts": bench_words.facts(bench)}
            for bench in benches
        ],
    )
