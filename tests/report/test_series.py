from dataclasses import replace

import pytest

from batchfree.experiments.results import CurvePoint
from batchfree.report import series


def test_a_cell_is_mean_and_range_over_seeds(results, make_row):
    rows = [
        replace(make_row("bn", 8, seed, 5.0), val_error=error)
        for seed, error in ((2, 6.0), (0, 5.0), (1, 5.5))
    ]
    cell = series.cell(replace(results, rows=tuple(rows)), "bn", 8)
    assert (cell.mean, cell.low, cell.high) == (5.5, 5.0, 6.0)
    assert cell.seeds == (0, 1, 2)
    assert not cell.shared


def test_a_row_without_normalization_batch_stands_for_every_size(results):
    cells = series.cells(results, "gn")
    assert [cell.size for cell in cells] == [32, 16, 8, 4, 2]
    assert [cell.mean for cell in cells] == pytest.approx([5.9] * 5)
    assert all(cell.shared for cell in cells)
    assert series.is_shared(results, "gn")
    assert not series.is_shared(results, "bn")
    assert not series.is_shared(results, "absent")


def test_a_row_of_the_size_itself_comes_before_one_for_every_size(results, make_row):
    rows = (make_row("gn", None, 1, 6.0), make_row("gn", 2, 1, 8.0))
    mixed = replace(results, rows=rows)
    assert [cell.mean for cell in series.cells(mixed, "gn")] == [6.0, 6.0, 6.0, 6.0, 8.0]
    assert not series.is_shared(mixed, "gn")


def test_sizes_without_rows_have_no_cell(results, make_row):
    only = replace(results, rows=(make_row("bn", 4, 1, 6.0),))
    assert series.cell(only, "bn", 32) is None
    assert [cell.size for cell in series.cells(only, "bn")] == [4]


def test_a_curve_averages_the_steps_that_every_run_measured(make_row):
    def run(seed, **errors):
        points = [
            CurvePoint(int(step[1:]), 1.0, 50.0, error) for step, error in sorted(errors.items())
        ]
        return make_row("bn", 2, seed, 5.0, curve=points)

    runs = [run(0, s1=40.0, s2=20.0, s3=10.0), run(1, s1=20.0, s2=None, s3=12.0, s4=9.0)]
    curve = series.curve(runs, "val_error")
    assert curve.steps == (1, 3)
    assert curve.means == (30.0, 11.0)
    assert curve.seeds == (0, 1)


@pytest.mark.parametrize("curves", [[], [[]], [[1], [2]]])
def test_no_common_step_is_no_curve(make_row, curves):
    runs = [
        make_row("bn", 2, seed, 5.0, curve=[CurvePoint(step, 1.0, 5.0, 5.0) for step in steps])
        for seed, steps in enumerate(curves)
    ]
    assert series.curve(runs, "val_error") is None


def test_norms_stand_in_a_fixed_order_with_unknown_ones_last(results, make_row):
    rows = [make_row(norm, None, 0, 5.0) for norm in ("zz", "in", "aa", "gn", "bn")]
    assert series.norms(replace(results, rows=tuple(rows))) == ["bn", "gn", "in", "aa", "zz"]
