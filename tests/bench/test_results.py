import csv
import io
from dataclasses import replace

import pytest
from bench_rows import ORIGIN, kernel_row

from batchfree._errors import ResultsError
from batchfree.bench import results
from batchfree.bench.results import Bench, OverheadRow, StepRow, Timed, gather, read_bench


@pytest.fixture
def bench():
    row = kernel_row()
    base = {name: getattr(row, name) for name in Timed.__dataclass_fields__}
    overhead = OverheadRow(**base, subject="eager group_norm", mode="forward", shape=(1, 32, 2, 2))
    step = StepRow(
        **base,
        **{"model": "BN", "network": "resnet50", "batch": 4, "size": 224},
        **{"layout": "contiguous", "saved_bytes": 10},
    )
    failed = kernel_row(
        "batch_norm", median_us=None, ratio=None, floors=None, failure="RuntimeError: no"
    )
    return Bench(ORIGIN, True, (row, kernel_row("batchfree"), failed), (overhead,), (step,))


def test_what_is_written_is_read_back(bench, tmp_path):
    written = results.write_bench(tmp_path, bench)
    assert [path.name for path in written] == [
        *("bench.json", "kernels.csv", "overhead.csv", "steps.csv")
    ]
    assert read_bench(tmp_path) == read_bench(tmp_path / "bench.json") == bench
    assert results.is_bench(tmp_path)
    assert results.is_bench(tmp_path / "bench.json")
    assert not results.is_bench(tmp_path / "kernels.csv")
    assert not results.is_bench(tmp_path / "none.json")


def test_a_line_of_csv_stands_for_itself(bench, tmp_path):
    results.write_bench(tmp_path, bench)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "kernels.csv").read_text())))
    assert len(lines) == 3
    assert lines[1]["peer"] == "batchfree"
    assert lines[1]["shape"] == "2x320x64x64"
    assert lines[1]["ratio"] == "4.0"
    assert lines[1]["allocator"] == "keep"
    assert lines[1]["commit"] == "0123456789ab"
    assert lines[1]["torch"] == "2.15.0"
    assert lines[1]["cpu"] == "Synthetic CPU"
    assert lines[2]["median_us"] == ""
    assert lines[2]["failure"] == "RuntimeError: no"


def test_rows_are_gathered_up_to_a_line_that_was_cut(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in (*bench.kernels, *bench.overhead, *bench.steps):
        results.append(path, row)
    with open(path, "a") as file:
        file.write('{"kind": "kernels", "ro')
    found = gather([path, tmp_path / "none.jsonl"], ORIGIN, complete=True)
    assert found == bench


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "not a file of schema"),
        ('{"schema": "batchfree.results/1"}', "not a file of schema"),
        ('{"schema": "batchfree.bench/1"}', "'origin' is missing.*damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_clear_error(tmp_path, content, message):
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultsError, match=message):
        read_bench(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("median_us", -1.0), ("ratio", "fast"), ("shape", []), ("residual", 1), ("threads", 1.5)],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ResultsError, match=field):
        replace(kernel_row(), **{field: value})
