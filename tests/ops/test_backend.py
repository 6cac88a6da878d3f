import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import batchfree
from batchfree.ops.backend import BACKENDS, Backend, select

backend_module = import_module("batchfree.ops.backend")
X = torch.ones(1, 2, 3)


def test_automatic_choice_is_the_first_that_serves(monkeypatch):
    monkeypatch.setitem(BACKENDS, "picky", Backend("picky", None, lambda x: "never"))
    ordered = {"picky": BACKENDS["picky"], **BACKENDS}
    monkeypatch.setattr(backend_module, "BACKENDS", ordered)
    monkeypatch.setattr(backend_module, "_chosen", None)
    assert select(X).name == "cpu"


def test_explicit_choice_is_taken_nests_and_ends():
    with batchfree.backend("reference"):
        assert select(X).name == "reference"
        with batchfree.backend("aten"):
            assert select(X).name == "aten"
        assert select(X).name == "reference"
    assert select(X).name == "cpu"


def test_explicit_choice_is_undone_by_an_exception():
    with pytest.raises(KeyError), batchfree.backend("reference"):
        raise KeyError
    assert select(X).name == "cpu"


def test_explicit_choice_that_cannot_serve_raises(monkeypatch):
    monkeypatch.setitem(
        BACKENDS, "picky", Backend("picky", None, lambda x: f"{x.dtype} is not supported")
    )
    with (
        batchfree.backend("picky"),
        pytest.raises(batchfree.BackendError, match=r"'picky'.*float32 is not supported"),
    ):
        batchfree.group_norm(X, 1)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="did you mean 'reference'"), batchfree.backend("refrence"):
        pass


@pytest.mark.parametrize(
    ("value", "expected"), [("reference", ""), ("refrence", "did you mean 'reference'")]
)
def test_environment_variable(value, expected):
    code = "import torch, batchfree as b; b.group_norm(torch.ones(1, 2, 3), 2)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "BATCHFREE_BACKEND": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stderr
    assert (done.returncode == 0) == (value in BACKENDS)
