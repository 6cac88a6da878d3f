import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchfree._errors import ResultsError
from batchfree.experiments.paper import IMAGENET_RESNET50
from batchfree.experiments.results import (
    CurvePoint,
    Results,
    Row,
    read_results,
    read_row,
    write_results,
    write_row,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "results-schema.md"


def row(**changes):
    fields = {
        "norm": "bn",
        "normalization_batch": 32,
        "seed": 0,
        "steps": 200,
        "batch_size": 32,
        "learning_rate": 0.1,
        "train_error": 4.0,
        "val_error": 5.2,
        "curve": [CurvePoint(100, 1.5, 50.0, None), CurvePoint(200, 0.4, 4.0, 5.2)],
        "seconds": 6.5,
        "commit": "25f9764+dirty",
        "versions": {"torch": "2.15.0"},
        "machine": {"cpu": "Example “CPU”", "cores": 2, "system": "Linux"},
        "command": "batchfree demo --note 'a \"quoted\" {brace] \\\\'",
        "config": {"width": 32, "milestones": (30, 60), "nested": {"wide": True, "nothing": None}},
    }
    return Row(**{**fields, **changes})


def results(**changes):
    fields = {
        "experiment": "batch-size",
        "protocol": "isolated",
        "preset": "demo",
        "sizes": (32, 2),
        "rows": (row(), row(normalization_batch=2), row(norm="gn", normalization_batch=None)),
        "command": "batchfree demo",
        "created": "2026-01-31T12:00:00+00:00",
    }
    return Results(**{**fields, **changes})


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results())
    return path


def test_results_come_back_as_they_were(written):
    assert read_results(written) == results()
    assert read_results(str(written)).rows[0].config["milestones"] == [30, 60]


def test_results_without_rows_come_back(tmp_path):
    write_results(tmp_path / "deep" / "down" / "results.json", results(rows=()))
    assert read_results(tmp_path / "deep" / "down" / "results.json") == results(rows=())


def test_a_row_comes_back_from_its_own_file(tmp_path):
    write_row(tmp_path / "row.json", row(commit=None))
    assert read_row(tmp_path / "row.json") == row(commit=None)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf"), None])
def test_a_loss_that_is_not_finite_is_null(tmp_path, loss):
    write_row(tmp_path / "row.json", row(curve=[CurvePoint(1, loss, 90.0, 90.0)]))
    assert read_row(tmp_path / "row.json").curve[0].train_loss is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(config=st.dictionaries(st.text(), json_values, max_size=3), command=st.text(min_size=1))
def test_any_config_and_command_come_back(tmp_path_factory, config, command):
    if not command.strip():
        return
    path = tmp_path_factory.mktemp("row") / "row.json"
    write_row(path, row(config=config, command=command))
    assert read_row(path) == row(config=config, command=command)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm", ""),
        ("norm", 3),
        ("normalization_batch", 0),
        ("normalization_batch", 2.0),
        ("normalization_batch", True),
        ("seed", -1),
        ("steps", 0),
        ("batch_size", "32"),
        ("learning_rate", float("nan")),
        ("train_error", None),
        ("val_error", None),
        ("val_error", float("nan")),
        ("val_error", 101),
        ("val_error", -0.1),
        ("val_error", "5.2"),
        ("curve", None),
        ("curve", [3]),
        ("curve", [{"step": 1}]),
        ("seconds", float("inf")),
        ("seconds", 10**400),
        ("commit", 7),
        ("versions", {"torch": 2}),
        ("versions", []),
        ("machine", {"cpu": "x", "cores": 2}),
        ("machine", {"cpu": "x", "cores": "2", "system": "Linux"}),
        ("command", None),
        ("config", "none"),
        ("config", {"x": float("nan")}),
        ("config", {"x": object()}),
        ("config", {1: "x"}),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ResultsError, match=f"^{field}"):
        row(**{field: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"experiment": "other"}, "experiment"),
        ({"protocol": "none"}, "protocol"),
        ({"preset": None}, "preset"),
        ({"sizes": ()}, "sizes"),
        ({"sizes": (2, 32)}, "sizes"),
        ({"sizes": (32, 32)}, "sizes"),
        ({"sizes": 32}, "sizes"),
        ({"sizes": (32, 0)}, r"sizes\[1\]"),
        ({"rows": {}}, "rows"),
        ({"rows": [row(normalization_batch=8)]}, r"rows\[0\]: normalization_batch"),
        ({"rows": [row(), row()]}, r"rows\[1\]: the same run as rows\[0\]"),
        ({"created": "yesterday"}, "created"),
    ],
)
def test_wrong_results_are_named(changes, named):
    with pytest.raises(ResultsError, match=f"^{named}"):
        results(**changes)


def damage(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["rows"][1].pop("seed"), r"rows\[1\]: the field 'seed' is missing"),
        (lambda v: v["rows"][1].update(sede=1), r"rows\[1\]: the field 'sede' is not known"),
        (lambda v: v["rows"][2].update(val_error="x"), r"rows\[2\]: val_error: .* got 'x'"),
        (lambda v: v["rows"][0]["curve"][1].update(step=None), r"rows\[0\]: curve\[1\]: step"),
        (lambda v: v["rows"].append(3), r"rows\[3\]: expected an object, got int"),
        (lambda v: v.pop("rows"), "the field 'rows' is missing"),
        (lambda v: v.update(schema="batchfree.results/2"), "schema 'batchfree.results/2' where"),
        (lambda v: v.pop("schema"), "no field 'schema'"),
        (lambda v: v["rows"][0].update(val_error=float("nan")), "NaN is not a JSON number"),
        (lambda v: v["rows"][0].update(config={"x": float("inf")}), "Infinity is not a JSON"),
    ],
)
def test_a_damaged_file_is_named_with_place_and_remedy(written, change, told):
    damage(written, change)
    with pytest.raises(ResultsError, match=told) as caught:
        read_results(written)
    assert str(caught.value).startswith(f"{written}: ")
    assert re.search(r"run the same command again|name another|name a file", str(caught.value))


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"', b"{}"])
def test_other_json_is_refused(written, content):
    written.write_bytes(content)
    with pytest.raises(ResultsError, match="not a batchfree file"):
        read_results(written)


@pytest.mark.parametrize("content", [b'{"schema": \xff}', b"{]}", b'{"a": 1} x', b"\x00\x01"])
def test_what_is_no_json_is_refused(written, content):
    written.write_bytes(content)
    with pytest.raises(ResultsError, match="not JSON"):
        read_results(written)


def test_deep_nesting_is_an_error_not_a_crash(written):
    written.write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ResultsError):
        read_results(written)


def test_a_file_cut_anywhere_says_that_it_ends_early(written):
    whole = written.read_bytes()
    for length in range(0, len(whole.rstrip()), 10):
        written.write_bytes(whole[:length])
        with pytest.raises(ResultsError, match=r"ends early; .* under rows/; run the same"):
            read_results(written)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ResultsError, match="there is no such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose another"),
        (errno.EACCES, "choose another"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    written, monkeypatch, code, remedy, step
):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    before = written.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=remedy) as caught:
        write_results(written, results(rows=()))
    assert caught.value.errno == code
    assert isinstance(caught.value, type(OSError(code, "")))
    assert str(written) in str(caught.value)
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_a_path_under_a_file_and_a_folder_are_clear_errors(written):
    with pytest.raises(OSError, match=r"choose another .*results\.json/below"):
        write_results(written / "below", results())
    with pytest.raises(IsADirectoryError, match="choose another"):
        write_results(written.parent, results())


def test_new_files_have_ordinary_permissions(written):
    (written.parent / "plain").touch()
    assert written.stat().st_mode == (written.parent / "plain").stat().st_mode


def test_rows_are_frozen_and_say_what_they_are():
    assert row().key == ("bn", 32, 0)
    with pytest.raises(AttributeError):
        row().seed = 1
    assert replace(row(), seed=4).seed == 4


def test_the_documented_example_is_read(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (tmp_path / "results.json").write_text(example)
    found = read_results(tmp_path / "results.json")
    assert found.rows[0].normalization_batch is None
    assert {"schema", *found.to_json()} == set(json.loads(example))


@pytest.mark.parametrize("kind", [Results, Row, CurvePoint])
def test_every_field_is_documented(kind):
    text = DOCUMENT.read_text()
    missing = [name for name in kind.__dataclass_fields__ if f"| `{name}` |" not in text]
    assert not missing


def test_the_papers_table_is_complete_for_bn_and_gn():
    for norm in ("bn", "gn"):
        assert tuple(IMAGENET_RESNET50.errors[norm]) == IMAGENET_RESNET50.sizes
    assert IMAGENET_RESNET50.errors["bn"][2] == 34.7
