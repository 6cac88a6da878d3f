"""Every model of the zoo: no finding missed, no false alarm, the model left as it was."""

import copy

import pytest
import torch
from zoo import CASES, Queue

import batchfree


def state_of(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(a, b):
    for name in ("training", "hooks", "requires_grad", "gradients"):
        assert a[name] == b[name], name
    assert torch.equal(a["random"], b["random"])
    assert a["state"].keys() == b["state"].keys()
    for key, value in a["state"].items():
        assert torch.equal(value, b["state"][key]), key


def test_a_buffer_that_a_forward_writes_to_is_told_in_eval_mode_too():
    report = batchfree.audit(Queue(), CASES["a memory"].batch)
    told = {f.mode: f.message for f in report.findings if f.kind == "buffers"}
    assert told.keys() == {"eval", "train"}
    assert "changes 1 buffers: queue" in told["eval"]


@pytest.mark.parametrize("name", CASES)
def test_the_modules_where_coupling_enters_are_named_and_no_others(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make()
    lazy = any(isinstance(p, torch.nn.UninitializedParameter) for p in model.parameters())
    before = None if lazy else state_of(model)
    batch = copy.deepcopy(case.batch)
    report = batchfree.audit(model, batch)
    found = {
        mode: {f.module for f in report.findings if f.level == "coupling" and f.mode == mode}
        for mode in ("eval", "train")
    }
    assert found == {"eval": set(case.eval), "train": set(case.train)}, str(report)
    assert report.ok == (not case.eval and not case.train)
    if not lazy:
        assert_same(before, state_of(model))
