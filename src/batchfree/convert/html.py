"""A conversion's report as one self-contained page: no library, no network, both colour themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from batchfree.audit.page import code, document, log_axis, maybe, table
from batchfree.convert.report import ConversionReport, LayerDrift
from batchfree.convert.text import report_cost, report_headline


def page(report: ConversionReport) -> str:
    """The page's HTML. Every name and message is escaped."""
    body = "\n".join(
        part
        for part in (
            _overview(report),
            _curve([x for x in report.converted if x.error is not None]),
            _layers(report.converted),
            _left(report.left),
        )
        if part
    )
    return document(f"Conversion of {report.model}", body)


def _overview(report: ConversionReport) -> str:
    rows = [
        ["expected: the layers' own errors together", maybe(report.predicted)],
        ["measured: relative error of the outputs", maybe(report.output_error)],
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    anchor = "none" if report.anchor is None else f"{report.anchor:g}"
    return (
        f"<h1>{escape(report_headline(report))}</h1>\n"
        f'<p class="dim">{escape(report_cost(report))}; anchor {anchor}</p>\n{notes}'
        f"{table(('change of the outputs', 'amount'), rows)}"
    )


def _layers(layers: Sequence[LayerDrift]) -> str:
    heads = ("module", "was", "is", "own error, expected", "drift", "cosine", "remark")
    rows = [
        [
            code(x.path or "the model"),
            x.old,
            x.new,
            maybe(x.predicted),
            maybe(x.error),
            "" if x.cosine is None else round(x.cosine, 5),
            x.reason,
        ]
        for x in layers
    ]
    note = (
        "Own error: of the layer by itself, on the inputs that it was fitted on. Drift and cosine: "
        "of its output against the original's on held-out inputs, all layers before it converted."
    )
    return (
        f'<h2>Converted layers</h2>\n{table(heads, rows, sortable=True)}<p class="dim">{note}</p>'
    )


def _left(layers: Sequence[LayerDrift]) -> str:
    if not layers:
        return ""
    rows = [[code(x.path or "the model"), x.old, x.reason] for x in layers]
    return f"<h2>Left as they are</h2>\n{table(('module', 'class', 'why'), rows)}"


def _curve(layers: Sequence[LayerDrift]) -> str:
    """Drift over the layers, on a logarithmic scale."""
    points = [(x.path, x.error) for x in layers if x.error is not None and math.isfinite(x.error)]
    if not points:
        return ""
    width, height, left, bottom = 680, 240, 60, 24
    values = [max(error, 1e-6) for _, error in points]
    y, grid = log_axis(values, left, width, height - bottom)

    def x(i: int) -> float:
        return left + 12 + i * (width - left - 24) / max(len(points) - 1, 1)

    path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    dots = "".join(
        f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="3" fill="rgb(var(--heat))">'
        f"<title>{escape(name)}: {100 * v:.2g}%</title></circle>"
        for i, ((name, _), v) in enumerate(zip(points, values, strict=True))
    )
    return (
        "<h2>Drift along the network</h2>\n<p>Relative error of each layer's output against the "
        f'original\'s.</p><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Drift of each layer">{grid}<polyline points="{path}" fill="none" '
        f'stroke="rgb(var(--heat))" stroke-width="2"/>{dots}</svg>'
    )
