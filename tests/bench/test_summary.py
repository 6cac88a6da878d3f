import pytest
from bench_rows import kernel_row

from batchfree.bench.summary import compare_layouts, geometric_mean, summarize


def test_a_group_has_mean_least_network_and_floor():
    small = {"case": "small", "shape": (2, 640, 32, 32), "count": 1}
    rows = [
        kernel_row("eager"),
        kernel_row("batchfree"),
        kernel_row("eager", median_us=100.0, **small),
        kernel_row("batchfree", median_us=100.0, ratio=1.0, floors=4.5, **small),
    ]
    eager, ours = summarize(rows)
    assert eager.mean == eager.least == eager.network == 1
    assert ours.mean == pytest.approx(2)
    assert (ours.least, ours.least_case) == (1.0, "2x640x32x32")
    assert ours.network == pytest.approx((8 * 1000 + 100) / (8 * 250 + 100))
    assert ours.floors == pytest.approx(3)
    assert ours.most_floors == 4.5
    assert (ours.cases, ours.failed) == (2, 0)


@pytest.mark.parametrize(
    "change",
    [
        *({"dtype": "bfloat16"}, {"mode": "forward+backward"}, {"allocator": "default"}),
        *({"layout": "channels_last"}, {"activation": None}, {"suite": "tiny"}),
    ],
)
def test_what_differs_is_another_group(change):
    rows = [kernel_row("batchfree"), kernel_row("batchfree", **change)]
    assert [group.cases for group in summarize(rows)] == [1, 1]


def test_failures_are_counted_and_left_out():
    none = {"median_us": None, "ratio": None, "floors": None, "failure": "no"}
    (group,) = summarize([kernel_row("batchfree", **none)])
    assert (group.cases, group.failed) == (0, 1)
    assert group.mean is group.least is group.network is group.floors is group.most_floors is None


def test_layouts_are_compared_case_by_case():
    rows = [
        kernel_row("batchfree", layout=layout, median_us=time, case=case)
        for case, first, last in (("a", 100.0, 50.0), ("b", 100.0, 200.0))
        for layout, time in (("contiguous", first), ("channels_last", last))
    ]
    (found,) = compare_layouts(rows)
    assert (found.suite, found.fusion, found.dtype, found.mode, found.peer) == (
        *("target", "GN+silu", "float32", "forward", "batchfree"),
    )
    assert found.cases == 2
    assert found.mean == pytest.approx(1)
    assert found.least == 0.5
    assert compare_layouts(rows[:1]) == []


def test_geometric_mean():
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert geometric_mean([]) is None
