"""Charts to Plotly figures. Colours are left as CSS variables; the page fills in its theme's."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from batchfree.report.charts import Chart, Line, Panel


def plotly_figures(chart: Chart) -> list[dict[str, Any]]:
    """A Plotly figure, as plain `data` and `layout`, for each panel of a chart.

    Every trace carries its line's label as `legendgroup`, by which the page hides and shows lines.
    """
    return [
        {
            "data": [trace for line in panel.lines for trace in _traces(line, chart)],
            "layout": _layout(chart, panel),
        }
        for panel in chart.panels
    ]


def _traces(line: Line, chart: Chart) -> list[dict[str, Any]]:
    color = f"var(--line-{line.style.key})"
    band = []
    if line.low:
        band.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [*line.x, *reversed(line.x)],
                "y": [*line.high, *reversed(line.low)],
                "fill": "toself",
                "fillcolor": f"var(--band-{line.style.key})",
                "line": {"width": 0, "color": color},
                "hoverinfo": "skip",
                "legendgroup": line.label,
            }
        )
    main = {
        "type": "scatter",
        "mode": "lines+markers" if line.style.marker else "lines",
        "x": list(line.x),
        "y": list(line.y),
        "line": {"color": color, "width": 2.25, "dash": line.style.dash},
        "text": [_hover(line, index) for index in range(len(line.x))],
        "hovertemplate": "%{text}<extra></extra>",
        "name": escape(line.label),
        "legendgroup": line.label,
    }
    if line.style.marker:
        main["marker"] = {
            "symbol": line.style.marker,
            # Plotly draws triangles smaller than squares of the same size.
            "size": 13 if line.style.marker.startswith("triangle") else 9.5,
            "color": color,
            "line": {"width": 1.5, "color": "var(--surface)"},
        }
    return [*band, main]


def _hover(line: Line, index: int) -> str:
    spread = ""
    if line.low and line.low[index] < line.high[index]:
        spread = f" ({line.low[index]:.1f} to {line.high[index]:.1f})"
    # Plotly reads markup in hover text.
    return f"<b>{escape(line.label)}</b>  {line.y[index]:.1f}%{spread}"


def _layout(chart: Chart, panel: Panel) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--axis)",
        "tickcolor": "var(--axis)",
        "zeroline": False,
        "automargin": True,
    }
    x: dict[str, Any] = {
        **axis,
        "title": {"text": chart.x_label, "standoff": 10, "font": {"size": 13}},
        "showgrid": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "spikecolor": "var(--axis)",
        "spikethickness": 1,
        "unifiedhovertitle": {"text": f"%{{x:,}} {chart.x_unit}"},
    }
    if chart.sizes:
        pad = 0.08
        x |= {
            "type": "log",
            "range": [math.log10(chart.sizes[0]) + pad, math.log10(chart.sizes[-1]) - pad],
            "tickvals": list(chart.sizes),
            "ticktext": [str(size) for size in chart.sizes],
            "unifiedhovertitle": {"text": "normalisation batch %{x}"},
        }
    else:
        x |= {"range": [0, chart.x_end], "nticks": 5, "separatethousands": True}
    return {
        "autosize": True,
        "font": {"family": "var(--font)", "size": 13, "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 36, "r": 12, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--axis)",
            "font": {"color": "var(--ink)", "family": "var(--font)"},
        },
        "xaxis": x,
        "yaxis": {**axis, "range": [0, chart.y_top], "ticksuffix": "%", "nticks": 6},
    }
