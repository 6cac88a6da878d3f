"""The figures of a benchmark's page; colours are CSS variables, which the page fills in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from batchfree.bench.results import Bench, KernelRow
from batchfree.report.bench_bars import overhead_chart, steps_chart
from batchfree.report.bench_frame import (
    PEERS,
    Chart,
    Panel,
    axes,
    bytes_text,
    log_axis,
    narrow,
    peer_style,
    ratio_text,
)
from batchfree.report.styles import Style
from batchfree.report.tables import Entry, Table

_NONE = Entry("–")


def bench_charts(benches: Sequence[Bench]) -> list[Chart]:
    """The figures that the rows are enough for, in reading order."""
    kernels = [row for bench in benches for row in bench.kernels]
    found = []
    for mode in dict.fromkeys(row.mode for row in kernels):
        rows = [row for row in kernels if row.mode == mode and row.median_us is not None]
        found += [_speed(mode, rows), _floors(mode, rows)]
    found.append(overhead_chart([row for bench in benches for row in bench.overhead]))
    found.append(steps_chart([row for bench in benches for row in bench.steps]))
    return [chart for chart in found if chart is not None]


def _speed(mode: str, rows: list[KernelRow]) -> Chart | None:
    shown = [row for row in rows if row.peer != "eager" and row.ratio is not None]
    return _dots(
        key=f"speed-{_slug(mode)}",
        title=f"Times as fast as PyTorch eager, {_spell(mode)}",
        note="Each mark is one case, the median of the ratios within a repetition; the bar reaches "
        "from the 10th percentile to the 90th. The line at 1 is eager: above it is faster. The "
        "floor is a copy of the bytes that have to move.",
        y_label="times as fast as eager (log scale), by size of x",
        rows=shown,
        value=lambda row: (row.ratio or 0, row.ratio_p10 or 0, row.ratio_p90 or 0),
    )


def _floors(mode: str, rows: list[KernelRow]) -> Chart | None:
    shown = [row for row in rows if row.peer != "floor" and row.floors is not None]
    return _dots(
        key=f"floor-{_slug(mode)}",
        title=f"How far from a copy of the same bytes, {_spell(mode)}",
        note="Time over that of a copy, by the same threads and into warm memory, of the bytes "
        "that a fused kernel has to read and write. The line at 1 is the copy: lower is better.",
        y_label="times the copy’s time (log scale), by size of x",
        rows=shown,
        value=lambda row: (row.floors or 0, row.floors or 0, row.floors or 0),
    )


def _dots(
    key: str,
    title: str,
    note: str,
    y_label: str,
    rows: list[KernelRow],
    value: Callable[[KernelRow], tuple[float, float, float]],
) -> Chart | None:
    rows = [row for row in rows if value(row)[0] > 0]
    if not rows:
        return None
    peers = sorted({row.peer for row in rows}, key=_rank)
    legend = {peer: peer_style(peer, peers) for peer in peers}
    places = list(dict.fromkeys(_place(row) for row in rows))
    common = {word for word in places[0] if all(word in place for place in places)}
    low = min(min(value(row)[0] for row in rows), 1) / 1.3
    high = max(max(value(row)[0] for row in rows), 1) * 1.3
    sizes = [row.bytes for row in rows]
    layout = axes(
        {
            "type": "log",
            **log_axis(sizes, [2**n for n in range(8, 34)], bytes_text, 2.0),
            "showgrid": False,
        },
        {"type": "log", **log_axis([low, high], [2.0**n for n in range(-8, 12)], ratio_text, 1.0)},
    )
    layout["shapes"] = [
        {
            **{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1},
            "line": {"color": "var(--axis)", "width": 1.5},
        }
    ]
    panels = []
    for place in places:
        own = [row for row in rows if _place(row) == place]
        heading = ", ".join(word for word in place if word and word not in common)
        data = [_marks(peer, legend[peer], own, value) for peer in peers]
        spoken = "; ".join(
            f"{peer} {_range([value(row)[0] for row in own if row.peer == peer])}"
            for peer in peers
            if any(row.peer == peer for row in own)
        )
        words = f"{title}, {heading or ', '.join(place)}. {spoken}."
        panels.append(Panel(heading, {"data": data, "layout": layout}, words))
    note = (
        f"{note} All: {', '.join(w for w in places[0] if w and w in common)}." if common else note
    )
    return Chart(
        key, title, note, y_label, tuple(panels), _dot_table(title, rows, peers, value), legend
    )


def _marks(
    peer: str,
    style: Style,
    rows: list[KernelRow],
    value: Callable[[KernelRow], tuple[float, float, float]],
) -> dict[str, Any]:
    own = [row for row in rows if row.peer == peer]
    values = [value(row) for row in own]
    color = f"var(--line-{style.key})"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [row.bytes for row in own],
        "y": [y for y, _, _ in values],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - y for y, _, high in values],
            "arrayminus": [y - low for y, low, _ in values],
            **{"color": color, "thickness": 1, "width": 0},
        },
        "marker": {
            **{"symbol": style.marker, "size": 9, "color": color},
            "line": {"width": 1, "color": "var(--surface)"},
        },
        # Plotly reads markup in hover text.
        "text": [
            f"<b>{escape(row.peer)}</b>  {ratio_text(y)}{_spread(low, high)}<br>"
            f"{escape(_case(row))}<br>{_time(row)}, {row.repetitions} repetitions"
            for row, (y, low, high) in zip(own, values, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "name": escape(peer),
        "legendgroup": peer,
    }


def _dot_table(
    title: str,
    rows: list[KernelRow],
    peers: list[str],
    value: Callable[[KernelRow], tuple[float, float, float]],
) -> Table:
    lines: dict[tuple[object, ...], dict[str, Entry]] = {}
    heads: dict[tuple[object, ...], tuple[str, ...]] = {}
    for row in rows:
        y, low, high = value(row)
        notes = (_time(row), *((_spread(low, high).strip(),) if low < high else ()))
        lines.setdefault(row.setting, {})[row.peer] = Entry(ratio_text(y), notes)
        heads[row.setting] = ("x".join(map(str, row.shape)), row.fusion, *_place(row))
    words = ("x", "Norm", "Dtype", "Layout", "Parameters", "Device", "Threads", "Malloc")
    table = [
        (*map(Entry, heads[key]), *(line.get(peer, _NONE) for peer in peers))
        for key, line in lines.items()
    ]
    return narrow(title, (*words, *peers), table, len(words))


def _place(row: KernelRow) -> tuple[str, ...]:
    parameters = "" if row.parameters == "same" else f"{row.parameters} parameters"
    threads = f"{row.threads} thread{'s' * (row.threads != 1)}"
    return (row.dtype, row.layout, parameters, row.device, threads, f"malloc {row.allocator}")


def _rank(peer: str) -> tuple[int, str]:
    return (list(PEERS).index(peer) if peer in PEERS else len(PEERS), peer)


def _case(row: KernelRow) -> str:
    return f"{'x'.join(map(str, row.shape))} {row.fusion}"


def _time(row: KernelRow) -> str:
    microseconds = row.median_us or 0
    return f"{microseconds:.1f} µs" if microseconds < 1000 else f"{microseconds / 1e3:.2f} ms"


def _spread(low: float, high: float) -> str:
    return f" ({low:.2f} to {high:.2f})" if low < high else ""


def _range(values: list[float]) -> str:
    return f"{ratio_text(min(values))} to {ratio_text(max(values))}"


def _spell(mode: str) -> str:
    return mode.replace("+", " and ")


def _slug(mode: str) -> str:
    return mode.replace("+", "-")
