from dataclasses import replace

import pytest

from batchfree.report.charts import charts, curves_chart, summary_chart, train_chart


def test_the_sweep_has_its_three_charts(results):
    assert [chart.key for chart in charts(results)] == ["summary", "curves", "train"]


def test_the_summary_has_a_line_per_norm_and_says_which_are_flat(results):
    chart = summary_chart(results)
    (panel,) = chart.panels
    assert [line.label for line in panel.lines] == ["BN", "GN", "GN+WS", "LN", "IN"]
    assert panel.lines[0].y == pytest.approx((5.2, 5.3, 5.7, 6.4, 9.5))
    assert panel.lines[0].low == pytest.approx((5.0, 5.1, 5.5, 6.2, 9.3))
    assert "GN, GN+WS, LN and IN cannot see the normalisation batch" in chart.note
    assert chart.y_top > 10.0


def test_curves_have_a_panel_per_norm_and_a_line_per_size(results):
    chart = curves_chart(results)
    assert [panel.title for panel in chart.panels][:2] == ["BatchNorm", "GroupNorm"]
    assert [line.label for line in chart.panels[0].lines] == [
        f"{size} images" for size in (32, 16, 8, 4, 2)
    ]
    assert [line.label for line in chart.panels[1].lines] == ["every size"]
    assert chart.x_end == 1500
    assert chart.y_top < 50


def test_the_train_chart_is_of_the_largest_size(results):
    chart = train_chart(results)
    assert chart.title.endswith("32")
    assert {row.normalization_batch for row in chart.rows} == {32, None}


def test_looks_are_told_apart_without_colour(results):
    lines = summary_chart(results).panels[0].lines
    assert len({(line.style.dash, line.style.marker) for line in lines}) == len(lines)
    assert len({line.style.light for line in curves_chart(results).panels[0].lines}) == 5


def test_no_rows_and_no_curves_leave_charts_out(results):
    assert charts(replace(results, rows=())) == []
    bare = replace(results, rows=tuple(replace(row, curve=()) for row in results.rows))
    assert [chart.key for chart in charts(bare)] == ["summary"]


def test_errors_of_zero_still_have_an_axis(results, make_row):
    row = make_row("bn", 32, 1, 0.0)
    row = replace(row, curve=[replace(p, train_error=0, val_error=0) for p in row.curve])
    assert all(chart.y_top > 0 for chart in charts(replace(results, rows=(row,))))
