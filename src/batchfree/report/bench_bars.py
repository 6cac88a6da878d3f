"""The bars of a benchmark's page: host overhead, and a training step."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from batchfree.bench.results import OverheadRow, StepRow, Timed
from batchfree.report.bench_frame import (
    PEERS,
    Chart,
    Panel,
    axes,
    number_text,
    peer_style,
    ratio_text,
)
from batchfree.report.styles import Style
from batchfree.report.tables import Entry, Table


def overhead_chart(rows: list[OverheadRow]) -> Chart | None:
    """Microseconds of a call, a panel a mode; None without rows."""
    families = {
        "batchfree": PEERS["batchfree"],
        "PyTorch GroupNorm": PEERS["eager"],
        "PyTorch BatchNorm": PEERS["batch_norm"],
    }

    def family(row: OverheadRow) -> str:
        if row.subject.startswith("batchfree"):
            return "batchfree"
        return "PyTorch BatchNorm" if "batch_norm" in row.subject else "PyTorch GroupNorm"

    def group(row: OverheadRow) -> str:
        return f"{row.mode}, {row.device}, {row.threads} threads, malloc {row.allocator}"

    return _bars(
        key="overhead",
        title="Host overhead of a call",
        note="Microseconds of one call on a tensor of shape "
        f"{'x'.join(map(str, rows[0].shape)) if rows else ''}, in which there is hardly any "
        "work; median over repetitions.",
        y_label="microseconds a call",
        families=families,
        bars=[
            (group(row), row.subject, family(row), row.median_us, "µs", row)
            for row in rows
            if row.median_us is not None
        ],
    )


def steps_chart(rows: list[StepRow]) -> Chart | None:
    """Milliseconds of a step and megabytes kept; None without rows."""
    looks = {"fused GN": "batchfree", "eager GN": "eager", "BN": "batch_norm"}
    bars = []
    for row in rows:
        where = f"batch {row.batch}, {row.size} px, {row.layout}, {row.precision}, "
        where += f"malloc {row.allocator}"
        on_device = row.clock == "device"
        if row.median_us is not None:
            what = "step, GPU alone" if on_device else "step"
            title = f"{row.network} {what} (ms), {where}"
            bars.append((title, row.model, row.model, row.median_us / 1e3, "ms", row))
        if row.saved_bytes is not None and not on_device:
            title = f"kept for the backward (MB), {where}"
            bars.append((title, row.model, row.model, row.saved_bytes / 1e6, "MB", row))
    return _bars(
        key="steps",
        title="A training step",
        note="Forward, backward and an SGD step, interleaved; and the bytes of distinct storages "
        "that the forward keeps for the backward, parameters excluded. Eager GN and BN are "
        "torchvision’s, with ReLU in place.",
        y_label="milliseconds of a step, megabytes kept: lower is better",
        families={
            name: PEERS[looks[name]] if name in looks else peer_style(name, [name])
            for name in dict.fromkeys(row.model for row in rows)
        },
        bars=sorted(bars, key=lambda bar: bar[4] == "MB"),
    )


def _bars(
    key: str,
    title: str,
    note: str,
    y_label: str,
    families: dict[str, Style],
    bars: Sequence[tuple[str, str, str, float, str, Timed]],
) -> Chart | None:
    """Horizontal bars: (panel, label, family, value, unit, row) each."""
    if not bars:
        return None
    panels, lines = [], []
    for heading in dict.fromkeys(bar[0] for bar in bars):
        own = [bar for bar in bars if bar[0] == heading]
        data = [
            {
                **{
                    "type": "bar",
                    "orientation": "h",
                    "legendgroup": family,
                    "name": escape(family),
                },
                "x": [value for _, _, name, value, _, _ in own if name == family],
                "y": [escape(label) for _, label, name, _, _, _ in own if name == family],
                "text": [number_text(value) for _, _, name, value, _, _ in own if name == family],
                "textposition": "auto",
                "hovertemplate": f"%{{y}}: %{{x:.4g}} {own[0][4]}<extra></extra>",
                "marker": {"color": f"var(--line-{style.key})"},
            }
            for family, style in families.items()
        ]
        labels = [escape(label) for _, label, *_ in own]
        layout = axes(
            {"rangemode": "tozero", "nticks": 5},
            {
                **{"type": "category", "categoryorder": "array", "showgrid": False},
                "categoryarray": labels[::-1],
                "tickfont": {"size": 12},
            },
        )
        layout |= {"barmode": "overlay", "bargap": 0.25}
        spoken = "; ".join(f"{bar[1]} {number_text(bar[3])} {bar[4]}" for bar in own)
        panels.append(Panel(heading, {"data": data, "layout": layout}, f"{heading}. {spoken}."))
        for _, label, _, value, unit, row in own:
            ratio = "" if row.ratio is None else f"{ratio_text(row.ratio)}"
            lines.append(
                (Entry(f"{heading}: {label}"), Entry(f"{number_text(value)} {unit}"), Entry(ratio))
            )
    table = Table(title, ("What", "Median", "Times as fast as eager"), tuple(lines))
    return Chart(key, title, note, y_label, tuple(panels), table, families)
