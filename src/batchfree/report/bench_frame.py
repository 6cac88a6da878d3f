"""What the figures of a benchmark share: their parts, the peers' looks, axes and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchfree.report.styles import Style
from batchfree.report.tables import Entry, Table

_BLUE, _ORANGE = ("#0068a8", "#5cb8f5"), ("#c9530a", "#ff9b5e")
_GREY = ("#4a4f5e", "#c3c8d4")
PEERS = {
    "batchfree": Style("batchfree", *_BLUE, "solid", "square"),
    "eager": Style("eager", *_GREY, "dash", "diamond"),
    "compile": Style("compile", "#00805c", "#3ccfa0", "dashdot", "triangle-up"),
    "batch_norm": Style("batch-norm", *_ORANGE, "solid", "circle"),
    "floor": Style("floor", "#a8478a", "#e79bcb", "dot", "triangle-down"),
}
_OTHERS = (("#6b5d00", "#d9c855"), ("#7a3b3b", "#e0a3a3"), ("#3d5a3d", "#a9cfa9"))


@dataclass(frozen=True)
class Panel:
    """One set of axes: its heading, a Plotly figure, and what it shows in words."""

    title: str
    figure: dict[str, Any]
    spoken: str


@dataclass(frozen=True)
class Chart:
    """One figure: heading, a sentence on how to read it, panels, looks, and its numbers."""

    key: str
    title: str
    note: str
    y_label: str
    panels: tuple[Panel, ...]
    table: Table
    legend: dict[str, Style] = field(default_factory=dict)


def peer_style(peer: str, peers: Iterable[str]) -> Style:
    """A peer's look; those without one of their own share what is left, by rank in `peers`."""
    if peer in PEERS:
        return PEERS[peer]
    rank = sorted(set(peers) - set(PEERS)).index(peer)
    return Style(f"backend-{rank}", *_OTHERS[rank % len(_OTHERS)], "dot", "circle")


def axes(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """A Plotly layout with these axes."""
    axis = {
        **{"gridcolor": "var(--grid)", "linecolor": "var(--axis)", "tickcolor": "var(--axis)"},
        **{"zeroline": False, "automargin": True},
    }
    return {
        "autosize": True,
        "font": {"family": "var(--font)", "size": 13, "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 36, "r": 12, "t": 8, "b": 36},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--axis)",
            "font": {"color": "var(--ink)", "family": "var(--font)"},
        },
        "xaxis": {**axis, "showline": True, "ticks": "outside", "ticklen": 4, "tickangle": 0, **x},
        "yaxis": {**axis, **y},
    }


def log_axis(
    values: Sequence[float], ticks: Sequence[float], word: Callable[[float], str], pad: float
) -> dict[str, Any]:
    """Range and at most six ticks of a logarithmic axis."""
    low, high = min(values) / pad / 1.05, max(values) * pad * 1.05
    inside = [tick for tick in ticks if low <= tick <= high]
    step = math.ceil(len(inside) / 6) or 1
    # Keeps the tick at 1, where there is one.
    start = inside.index(1.0) % step if 1.0 in inside else 0
    chosen = inside[start::step]
    return {
        "range": [math.log10(low), math.log10(high)],
        "tickvals": chosen,
        "ticktext": [word(tick) for tick in chosen],
    }


def ratio_text(value: float) -> str:
    """`3.21×`."""
    return f"{value:.2f}×" if value < 10 else f"{value:,.1f}×" if value < 100 else f"{value:,.0f}×"


def number_text(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def bytes_text(value: float) -> str:
    """`32 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.0f} GiB"


def narrow(caption: str, head: Sequence[str], rows: Sequence[Sequence[Entry]], words: int) -> Table:
    """A table without those of its first columns, `words` of them, that are the same in every row.

    The first column stays; what is left out is told in the caption.
    """
    same = [rank for rank in range(1, words) if len({row[rank].text for row in rows}) == 1]
    common = ", ".join(rows[0][rank].text for rank in same if rows[0][rank].text)
    kept = [rank for rank in range(len(head)) if rank not in same]
    return Table(
        caption=f"{caption}. All: {common}" if common else caption,
        head=tuple(head[rank] for rank in kept),
        rows=tuple(tuple(row[rank] for rank in kept) for row in rows),
    )
