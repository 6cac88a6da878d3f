import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from batchfree.report.charts import charts
from batchfree.report.figures_plotly import plotly_figures


@pytest.mark.parametrize("rank", range(3))
def test_plotly_accepts_every_figure(results, rank):
    for figure in plotly_figures(charts(results)[rank]):
        text = json.dumps(figure).replace("var(--font)", "Arial")
        assert go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", text))).data


def test_a_norm_is_a_band_and_a_line(results):
    (figure,) = plotly_figures(charts(results)[0])
    assert len(figure["data"]) == 10
    band, line = figure["data"][:2]
    assert band["fill"] == "toself"
    assert line["x"] == [32, 16, 8, 4, 2]
    assert "<b>BN</b>  9.5% (9.3 to 9.7)" in line["text"]
    assert {trace["legendgroup"] for trace in figure["data"][:2]} == {"BN"}


def test_the_size_axis_runs_from_large_to_small(results):
    (figure,) = plotly_figures(charts(results)[0])
    first, last = figure["layout"]["xaxis"]["range"]
    assert first > last
    assert figure["layout"]["xaxis"]["ticktext"] == ["32", "16", "8", "4", "2"]


def test_markup_in_a_norm_is_not_markup_in_a_figure(results, make_row):
    row = make_row("<a href='https://example.org'>x</a>", None, 1, 5.0)
    for chart in charts(replace(results, rows=(row,))):
        for figure in plotly_figures(chart):
            shown = [
                text
                for trace in figure["data"]
                for text in [trace.get("name", ""), *trace.get("text", [])]
            ]
            assert not any("<a" in text for text in shown)
