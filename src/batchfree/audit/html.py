"""A report as one self-contained page: no library, no network, both colour themes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from batchfree.audit.findings import percent
from batchfree.audit.page import Html, code, document, log_axis, maybe, table
from batchfree.audit.report import AuditReport, Layer, Mode, SweepPoint
from batchfree.audit.text import grouped, headline, place


def page(report: AuditReport) -> str:
    """The page's HTML. Every name and message is escaped."""
    body = "\n".join(
        part
        for part in (
            _overview(report),
            _findings(report),
            *(_coupling(mode) for mode in report.modes if mode.values or mode.gradients),
            _sweep(report),
            _layers(report.layers),
        )
        if part
    )
    return document(f"Audit of {report.model}", body)


def _overview(report: AuditReport) -> str:
    rows = []
    for mode in report.modes:
        verdict, look = "independent, to the bit", "ok"
        if mode.coupled:
            verdict, look = "samples influence each other", "coupling"
        elif not mode.bitwise:
            verdict, look = "independent; rounding differs", "bits"
        first = mode.entries[0][0] or "the model itself" if mode.entries else ""
        random = ("yes" if mode.held else "yes, not repeatable") if mode.random else "no"
        rows.append(
            [
                mode.mode,
                Html(f'<span class="{look}">{verdict}</span>'),
                len(mode.entries),
                code(first) if first else "",
                len(mode.moved),
                random,
            ]
        )
    heads = ("mode", "verdict", "entries", "first enters at", "buffers moved", "random draws")
    look = "ok" if report.ok else "coupling"
    cost = (
        f"{report.samples} samples; {report.passes:g} forward passes, {report.seconds:.1f} s; "
        f"PyTorch {report.torch}"
    )
    return (
        f'<h1 class="{look}">{escape(headline(report))}</h1>\n'
        f'<p class="dim">{escape(cost)}</p>\n{table(heads, rows)}'
    )


def _findings(report: AuditReport) -> str:
    if not report.findings:
        return "<h2>Findings</h2>\n<p>None.</p>"
    rows = []
    for finding, count, amount in grouped(report.findings):
        most = f" (up to {percent(amount)})" if count > 1 and amount is not None else ""
        advice = escape(finding.advice)
        if finding.reason:
            advice += f'<br><span class="dim">{escape(finding.reason)}</span>'
        rows.append(
            [
                Html(f'<span class="{finding.level}">{finding.level}</span>'),
                finding.mode or "",
                code(place(finding, count)),
                finding.message + most,
                Html(advice),
            ]
        )
    return "<h2>Findings</h2>\n" + table(("level", "mode", "where", "seen", "what to do"), rows)


def _coupling(mode: Mode) -> str:
    maps = []
    if mode.values:
        maps.append(
            "<div><p>Row i, column j: how far sample i's output moves when sample j is replaced; "
            f"the first {len(mode.values)} samples."
            f"</p>{_heat(range(len(mode.values)), mode.values)}</div>"
        )
    if mode.gradients:
        maps.append(
            "<div><p>Row i, column j: the gradient of sample i's loss with respect to sample j, "
            "over that with respect to itself.</p>"
            f"{_heat([i for i, _ in mode.gradients], [row for _, row in mode.gradients])}</div>"
        )
    joined = "\n".join(maps)
    return f'<h2>Sample by sample, {mode.mode} mode</h2>\n<div class="maps">{joined}</div>'


def _heat(names: Iterable[int], rows: Sequence[Sequence[float]]) -> str:
    """Colour on a logarithmic scale from 1e-4 to 1."""
    head = "".join(f'<th scope="col">{j}</th>' for j in range(len(rows[0])))
    lines = [f"<tr><th></th>{head}</tr>"]
    for i, row in zip(names, rows, strict=True):
        cells = []
        for j, value in enumerate(row):
            shown = "" if i == j else _number(value)
            cells.append(
                f'<td style="background: rgba(var(--heat), {0 if i == j else _depth(value):.2f})">'
                f"{shown}</td>"
            )
        lines.append(f'<tr><th scope="row">{i}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table class="heat">{"".join(lines)}</table></div>'


def _depth(value: float) -> float:
    if not value > 1e-4:
        return 0.0
    return 0.08 + 0.62 * min(1.0, (math.log10(min(value, 1.0)) + 4) / 4)


def _sweep(report: AuditReport) -> str:
    points = [p for p in report.sweep if p.output is not None and math.isfinite(p.output)]
    if not points:
        return ""
    smallest = (
        f"From {report.smallest_batch} samples on"
        if report.smallest_batch
        else "At no smaller size"
    )
    said = (
        f"{smallest} the output stays within {percent(report.tolerance)} of that of "
        f"{report.samples} samples."
    )
    heads = ("size", "output", "batch mean", "batch variance")
    rows = [[p.size, *(maybe(v) for v in (p.output, p.mean, p.variance))] for p in report.sweep]
    note = (
        "Output: relative distance from the whole batch's. Mean: in standard deviations. "
        "Variance: |log ratio|. Both over the BatchNorm layers."
    )
    return (
        f"<h2>Batch size, train mode</h2>\n<p>{escape(said)}</p>{_curve(points, report.tolerance)}"
        f'{table(heads, rows)}<p class="dim">{note}</p>'
    )


def _curve(points: Sequence[SweepPoint], tolerance: float) -> str:
    width, height, left, bottom = 520, 240, 60, 36
    values = [max(p.output or 0.0, 1e-6) for p in points]
    limit_at = max(tolerance, 1e-6)
    y, grid = log_axis([*values, limit_at], left, width, height - bottom)

    def x(i: int) -> float:
        return left + 30 + i * (width - left - 60) / max(len(points) - 1, 1)

    path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    dots = "".join(
        f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="4" fill="rgb(var(--heat))"/>'
        f'<text x="{x(i):.1f}" y="{height - 14}" text-anchor="middle">{p.size}</text>'
        for i, (p, v) in enumerate(zip(points, values, strict=True))
    )
    limit = (
        f'<line x1="{left}" x2="{width}" y1="{y(limit_at):.1f}" y2="{y(limit_at):.1f}" '
        'stroke="var(--green)" stroke-dasharray="6 4"/>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        'aria-label="Distance of the output over the batch size">'
        f'{grid}{limit}<polyline points="{path}" fill="none" stroke="rgb(var(--heat))" '
        f'stroke-width="2"/>{dots}</svg>'
    )


def _layers(layers: Sequence[Layer]) -> str:
    if not layers:
        return ""
    heads = (
        *("module", "class", "kind", "channels", "groups", "values a statistic"),
        *("coupling, train", "coupling, eval", "train/eval gap"),
    )
    rows = [
        [
            code(layer.module),
            layer.type,
            layer.kind,
            *("" if v is None else v for v in (layer.channels, layer.groups, layer.elements)),
            *(maybe(v) for v in (layer.train_coupling, layer.eval_coupling, layer.gap)),
        ]
        for layer in layers
    ]
    note = "Groups: the layer's own, or those that the policy would choose for a GroupNorm here."
    return f'<h2>Norm layers</h2>\n{table(heads, rows, sortable=True)}<p class="dim">{note}</p>'


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"
