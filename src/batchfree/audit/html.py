"""A report as one self-contained page: no library, no network, both colour themes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from batchfree.audit.findings import percent
from batchfree.audit.report import AuditReport, Layer, Mode, SweepPoint
from batchfree.audit.text import grouped, headline, place

_CSS = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c1f26; --dim: #5c6370;
  --line: #d9dce3; --red: #b3261e; --green: #1b7f3b; --amber: #8a5a00; --heat: 201, 83, 10; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171c; --text: #e6e8ee; --dim: #9aa1ae;
  --line: #343944; --red: #ff8a80; --green: #6fd08c; --amber: #ffc46b; --heat: 255, 155, 94; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--ground);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 48rem; } .dim { color: var(--dim); }
.ok { color: var(--green); } .coupling { color: var(--red); }
.bits, .warning { color: var(--amber); } .note { color: var(--dim); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
.heat td, .heat th { padding: .25rem .5rem; text-align: center; border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
.maps { display: flex; flex-wrap: wrap; gap: 2rem; } .maps > * { min-width: 0; max-width: 100%; }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
"""

_JS = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const h of heads) h.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = value(a), y = value(b), m = parseFloat(x), n = parseFloat(y);
      const order = isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def page(report: AuditReport) -> str:
    """The page's HTML. Every name and message is escaped."""
    title = escape(f"Audit of {report.model}")
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
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body>\n{body}\n<script>{_JS}</script></body></html>\n"
    )


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
                _Html(f'<span class="{look}">{verdict}</span>'),
                len(mode.entries),
                _code(first) if first else "",
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
        f'<p class="dim">{escape(cost)}</p>\n{_table(heads, rows)}'
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
                _Html(f'<span class="{finding.level}">{finding.level}</span>'),
                finding.mode or "",
                _code(place(finding, count)),
                finding.message + most,
                _Html(advice),
            ]
        )
    return "<h2>Findings</h2>\n" + _table(("level", "mode", "where", "seen", "what to do"), rows)


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
    rows = [[p.size, *(_maybe(v) for v in (p.output, p.mean, p.variance))] for p in report.sweep]
    note = (
        "Output: relative distance from the whole batch's. Mean: in standard deviations. "
        "Variance: |log ratio|. Both over the BatchNorm layers."
    )
    return (
        f"<h2>Batch size, train mode</h2>\n<p>{escape(said)}</p>{_curve(points, report.tolerance)}"
        f'{_table(heads, rows)}<p class="dim">{note}</p>'
    )


def _curve(points: Sequence[SweepPoint], tolerance: float) -> str:
    width, height, left, bottom = 520, 240, 60, 36
    values = [max(p.output or 0.0, 1e-6) for p in points] + [tolerance]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(i: int) -> float:
        return left + 30 + i * (width - left - 60) / max(len(points) - 1, 1)

    def y(value: float) -> float:
        part = (math.log10(max(value, 1e-6)) - low) / (high - low)
        return (height - bottom) - part * (height - bottom - 14)

    grid = "".join(
        f'<line x1="{left}" x2="{width}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}" '
        f'stroke="var(--line)"/><text x="{left - 8}" y="{y(10.0**e) + 4:.1f}" '
        f'text-anchor="end">{100 * 10.0**e:g}%</text>'
        for e in range(low, high + 1)
    )
    path = " ".join(f"{x(i):.1f},{y(p.output or 0.0):.1f}" for i, p in enumerate(points))
    dots = "".join(
        f'<circle cx="{x(i):.1f}" cy="{y(p.output or 0.0):.1f}" r="4" fill="rgb(var(--heat))"/>'
        f'<text x="{x(i):.1f}" y="{height - 14}" text-anchor="middle">{p.size}</text>'
        for i, p in enumerate(points)
    )
    limit = (
        f'<line x1="{left}" x2="{width}" y1="{y(tolerance):.1f}" y2="{y(tolerance):.1f}" '
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
            _code(layer.module),
            layer.type,
            layer.kind,
            *("" if v is None else v for v in (layer.channels, layer.groups, layer.elements)),
            *(_maybe(v) for v in (layer.train_coupling, layer.eval_coupling, layer.gap)),
        ]
        for layer in layers
    ]
    note = "Groups: the layer's own, or those that the policy would choose for a GroupNorm here."
    return f'<h2>Norm layers</h2>\n{_table(heads, rows, sortable=True)}<p class="dim">{note}</p>'


class _Html(str):
    """Escaped already."""


def _code(text: str) -> _Html:
    return _Html(f"<code>{escape(text)}</code>")


class _Amount(float):
    """A relative amount."""


def _maybe(value: float | None) -> _Amount | str:
    return "" if value is None else _Amount(value)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], sortable: bool = False) -> str:
    numeric = [
        bool(rows) and all(isinstance(r[i], (int, float)) or r[i] == "" for r in rows)
        for i in range(len(heads))
    ]
    button = "<button>{}</button>" if sortable else "{}"
    head = "".join(
        f'<th scope="col"{_class(n)}>{button.format(escape(h))}</th>'
        for h, n in zip(heads, numeric, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(v, n) for v, n in zip(row, numeric, strict=True)) + "</tr>"
        for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(value: object, numeric: bool) -> str:
    if isinstance(value, _Html):
        return f"<td{_class(numeric)}>{value}</td>"
    if isinstance(value, _Amount):
        number = float(value)
        order = number if math.isfinite(number) else 1e30
        return f'<td{_class(numeric)} data-value="{order!r}">{escape(percent(number))}</td>'
    return f"<td{_class(numeric)}>{escape(str(value))}</td>"
