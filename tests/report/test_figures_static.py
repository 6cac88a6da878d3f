import io
from dataclasses import replace
from xml.etree import ElementTree

import detection_rows
import matplotlib
import matplotlib.image
import pytest

from batchfree.report.charts import charts
from batchfree.report.detection_charts import detection_charts
from batchfree.report.figures_static import _LOOK, _draw, static_figure


@pytest.mark.parametrize("rank", [0, 1])
def test_both_files_are_whole_pictures(results, rank):
    files = static_figure(charts(results)[rank])
    picture = matplotlib.image.imread(io.BytesIO(files[".png"]))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800
    assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[2])}) > 5
    assert ElementTree.fromstring(files[".svg"]).tag.endswith("svg")


def test_the_same_rows_give_the_same_files(results):
    chart = charts(results)[0]
    assert static_figure(chart) == static_figure(chart)


def test_a_norm_that_looks_like_a_formula_is_drawn(results, make_row):
    rows = (make_row("_$x^{$", None, 1, 5.0), make_row("a & <b>", 2, 1, 5.0))
    for chart in charts(replace(results, rows=rows))[:2]:
        ElementTree.fromstring(static_figure(chart)[".svg"])


@pytest.mark.parametrize("experiment", ["detection", "scratch"])
def test_no_legend_is_wider_than_its_figure(experiment):
    for chart in detection_charts(detection_rows.results(experiment)):
        with matplotlib.rc_context(_LOOK):
            figure = _draw(chart)
            figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
