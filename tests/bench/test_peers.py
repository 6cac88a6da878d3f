import sys

import pytest
import torch
import torch.nn.functional as F

from batchfree._errors import ConfigError
from batchfree.bench import peers
from batchfree.bench.inputs import Setting, make_inputs
from batchfree.bench.suites import Case

CASE = Case("x", (2, 8, 3, 5), 4, "relu", True)
# What runs anywhere and needs no compiler.
NAMES = [n for n in peers.peer_names() if n not in ("compile", "triton", *peers.OTHERS)]


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", NAMES)
def test_every_peer_runs_in_both_modes(name, mode):
    setting = Setting("s", CASE, mode=mode)
    inputs = make_inputs(setting)
    before = inputs.x.detach().clone()
    peers.make_peer(name, setting)(inputs)(2)
    assert torch.equal(inputs.x, before)
    assert all(leaf.grad is None for leaf in inputs.leaves)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_eager_and_batchfree_compute_the_same(activation):
    setting = Setting("s", Case("x", (2, 8, 3, 5), 4, activation, True))
    t = make_inputs(setting)
    arguments = (t.x, t.residual, t.weight, t.bias)
    ours, theirs = peers._batchfree(setting)(*arguments), peers._eager(setting)(*arguments)
    torch.testing.assert_close(ours, theirs)
    expected = F.batch_norm(t.x, None, None, t.weight, t.bias, training=True) + t.residual
    if activation is not None:
        expected = getattr(F, activation)(expected)
    torch.testing.assert_close(peers._batch_norm(setting, t)(*arguments), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler has warnings of its own
def test_the_compiled_peer_runs():
    setting = Setting("s", CASE, mode="forward+backward")
    peers.make_peer("compile", setting)(make_inputs(setting))(1)


def test_the_backend_that_serves_is_told():
    inputs = make_inputs(Setting("s", CASE))
    assert peers.serving_backend("reference", inputs) == "reference"
    assert peers.serving_backend("batchfree", inputs) in peers.BACKENDS
    assert peers.serving_backend("eager", inputs) is None


def test_the_copy_moves_the_bytes_of_the_floor(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "ones", lambda n, **_: made.append(n) or torch.full((n,), 1.0))
    setting = Setting("s", CASE)
    peers.make_peer("floor", setting)(make_inputs(setting))(1)
    assert made[-1] * 4 * 2 == setting.floor_bytes


def test_an_unknown_peer_names_the_nearest():
    setting = Setting("s", CASE)
    with pytest.raises(ConfigError, match="no peer 'eagre'; did you mean 'eager'"):
        peers.make_peer("eagre", setting)


@pytest.mark.parametrize("name", ["liger", "apex"])
def test_a_peer_that_is_not_installed_says_so(name, monkeypatch):
    for package in ("liger_kernel", "apex"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{name}.* is not installed"):
        peers.make_peer(name, Setting("s", CASE))
