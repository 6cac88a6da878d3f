"""Models as people have them: wrapped, hooked, layers in lists, half precision, few samples."""

import copy

import pytest
import torch
from nets import images, resnet, trained
from torch import nn

import batchfree


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return trained(resnet())


def test_a_plan_s_eps_is_the_new_layer_s(original):
    plan = batchfree.plan_conversion(original)
    plan["1"].eps = 0.5
    result = batchfree.convert(original, images(), plan=plan)
    assert result.model[1].eps == 0.5
    assert result.plan["1"].eps == 0.5


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_s_plan_is_its_own(wrap, original):
    wrapped = wrap(copy.deepcopy(original))
    plan = batchfree.plan_conversion(wrapped)
    assert plan["1"].action == "convert"
    assert len(batchfree.convert(wrapped, plan=plan).report.converted) == len(plan.converted)


def test_layers_in_nested_lists_are_reached():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
            self.steps = [[self.conv, self.norm], {"then": (nn.ReLU(), [self.norm])}]

        def forward(self, x):
            (conv, norm), rest = self.steps
            assert rest["then"][1][0] is norm
            return rest["then"][0](norm(conv(x)))

    result = batchfree.convert(trained(Nested()), images())
    model = result.model
    assert model.steps[0][1] is model.norm is model.steps[1]["then"][1][0]
    assert isinstance(model.norm, nn.GroupNorm)
    assert 0 < result.report.output_error < 0.5


def test_hooks_move_to_the_new_layer(original):
    model = copy.deepcopy(original)
    model[1].register_forward_hook(lambda m, args, y: y * 2)
    found = batchfree.convert(model, images())
    assert len(found.model[1]._forward_hooks) == 1
    assert found.report.output_error < 0.5


def test_layers_of_a_class_that_differ_in_what_they_do_are_told_apart():
    class Maybe(nn.BatchNorm2d):
        clamp = False

        def forward(self, x):
            y = super().forward(x)
            return y.clamp(-1, 1) if self.clamp else y

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Maybe(8), nn.Conv2d(8, 8, 1), Maybe(8))
    model[3].clamp = True
    plan = batchfree.plan_conversion(trained(model))
    assert [plan[path].action for path in "13"] == ["convert", "keep"]


@pytest.mark.parametrize("method", ["calibrated", "blend"])
def test_the_result_runs_under_autocast(method, original):
    result = batchfree.convert(original, images(), method=method)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = result.model(images())
    torch.testing.assert_close(y.float(), result.model(images()), atol=0.2, rtol=0.1)


def test_inference_mode_does_not_matter(original):
    with torch.inference_mode():
        result = batchfree.convert(original, images(), method="distill", steps=2)
    result.model(images()).sum().backward()


def test_too_few_samples_to_hold_some_out_are_told_of(original):
    report = batchfree.convert(original, images(4)).report
    assert report.output_error is None
    assert "none held out" in str(report.notes)
