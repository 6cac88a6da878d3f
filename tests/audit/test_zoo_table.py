"""The committed table of audited models holds what the documentation says of it."""

import csv
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "results" / "audit-zoo.csv"
if not TABLE.exists():
    pytest.skip("an installed package has no results", allow_module_level=True)
with TABLE.open() as _file:
    ROWS = list(csv.DictReader(_file))


def test_models_stand_there_once():
    names = [row["model"] for row in ROWS]
    assert len(names) == len(set(names)) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_every_batch_norm_that_works_is_an_entry_and_nothing_else_is(row):
    working = int(row["batch_norms"]) - int(row["zero_gamma"])
    assert int(row["entries_train"]) == working
    assert int(row["entries_eval"]) == 0
    assert row["verdict"] == ("coupled" if working else "independent")
