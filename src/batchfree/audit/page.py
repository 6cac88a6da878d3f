"""The frame of a self-contained page: its style, sortable tables, escaped cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from batchfree.audit.findings import percent

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


def document(title: str, body: str) -> str:
    """A whole page; the title is escaped here, the body before."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body>\n{body}\n<script>{_JS}</script></body></html>\n"
    )


class Html(str):
    """Escaped already."""


def code(text: str) -> Html:
    """A name, escaped."""
    return Html(f"<code>{escape(text)}</code>")


class Amount(float):
    """A relative amount."""


def maybe(value: float | None) -> Amount | str:
    """An amount, or an empty cell."""
    return "" if value is None else Amount(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], sortable: bool = False) -> str:
    """Cells that are no `Html` are escaped; columns of numbers are set to the right."""
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


def log_axis(
    values: Sequence[float], left: int, width: int, floor: int
) -> tuple[Callable[[float], float], str]:
    """A logarithmic axis of whole decades around positive values, for an SVG.

    Args:
        values: what has to fit.
        left, width: where its lines begin and end, in pixels.
        floor: the lowest decade's y.

    Returns:
        The y of a value, and the lines with their labels in percent.
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def y(value: float) -> float:
        return floor - (math.log10(value) - low) / (high - low) * (floor - 14)

    grid = "".join(
        f'<line x1="{left}" x2="{width}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}" '
        f'stroke="var(--line)"/><text x="{left - 8}" y="{y(10.0**e) + 4:.1f}" '
        f'text-anchor="end">{100 * 10.0**e:g}%</text>'
        for e in range(low, high + 1)
    )
    return y, grid


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(value: object, numeric: bool) -> str:
    if isinstance(value, Html):
        return f"<td{_class(numeric)}>{value}</td>"
    if isinstance(value, Amount):
        number = float(value)
        order = number if math.isfinite(number) else 1e30
        return f'<td{_class(numeric)} data-value="{order!r}">{escape(percent(number))}</td>'
    return f"<td{_class(numeric)}>{escape(str(value))}</td>"
