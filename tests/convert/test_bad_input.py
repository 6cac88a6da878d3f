"""Input that cannot be converted: an error that says so, the model as it was, no file."""

import functools

import pytest
import torch
from nets import images, resnet, trained
from test_converting import state_of
from torch import nn

import batchfree
from batchfree import ConfigError, DataError


@pytest.fixture(scope="module")
def model():
    return trained(resnet())


def nan(x):
    x = x.clone()
    x[3, 0, 0, 0] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (torch.randn(8, 4, 8, 8), ConfigError, r"cannot run on calibration data of shape \(7, 4"),
        (torch.randn(8, 3), ConfigError, "cannot run on calibration data of shape"),
        ([], DataError, "the calibration data is empty"),
        (torch.randn(0, 3, 8, 8), DataError, "the calibration data is empty"),
        (iter(()), DataError, "the calibration data is empty"),
        (nan(images()), DataError, "holds NaN or infinity"),
        (["words"], ConfigError, "holds no tensor, got str"),
        (7, ConfigError, "a tensor or an iterable of batches, got int"),
        ([{}], ConfigError, "holds no tensor, got dict"),
    ],
)
def test_calibration_data_that_does_not_fit(model, data, kind, words):
    before = state_of(model)
    with pytest.raises(kind, match=words):
        batchfree.convert(model, data)
    after = state_of(model)
    assert all(torch.equal(v, after[0][k]) for k, v in before[0].items())
    assert before[1:] == after[1:]


def test_activations_that_are_nan_name_the_layer(model):
    class Breaks(nn.Module):
        def forward(self, x):
            return x / 0.0 * 0.0

    broken = nn.Sequential(nn.BatchNorm2d(3), Breaks(), nn.BatchNorm2d(3))
    with (
        pytest.raises(DataError, match="input of layer '2' holds NaN"),
        pytest.warns(batchfree.ConversionWarning),
    ):
        batchfree.convert(broken, images())


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Conv2d(3, 8, 3), "it has no norm layers"),
        (
            nn.Sequential(nn.GroupNorm(2, 8), nn.LayerNorm(8)),
            "norm layers are GroupNorm, LayerNorm",
        ),
        (nn.Sequential(nn.LazyBatchNorm2d()), "'0' is kept: lazy"),
    ],
)
def test_a_model_without_a_batch_norm(net, words):
    with pytest.raises(ConfigError, match=words):
        batchfree.convert(net)


def test_what_is_no_model():
    with pytest.raises(ConfigError, match=r"must be a torch.nn.Module, got function"):
        batchfree.convert(lambda x: x)
    with pytest.raises(ConfigError, match=r"must be a torch.nn.Module, got dict"):
        batchfree.plan_conversion({})
    with pytest.warns(FutureWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(ConfigError, match=r"torch.jit module cannot be rewritten"):
        batchfree.convert(scripted)


def test_batch_norms_that_never_ran_are_said_to_be():
    with pytest.warns(batchfree.ConversionWarning, match="of 5 BatchNorms are as they were made"):
        result = batchfree.convert(resnet(), images())
    assert "load the trained weights first" in result.report.notes[0]


def test_arguments_that_do_not_fit(model):
    for options, words in (
        ({"method": "calibrate"}, "method must be one of .*did you mean 'calibrated'"),
        ({"degenerate": "drop"}, "degenerate must be one of"),
        ({"anchor": -1.0}, "anchor must be None or a number from 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"method": "calibrated"}, "method='calibrated' needs calibration data"),
        ({"groups": "auto"}, "groups='auto' needs calibration data"),
    ):
        with pytest.raises(ValueError, match=words):
            batchfree.convert(model, **options)


def test_a_plan_of_another_model(model):
    plan = batchfree.plan_conversion(model)
    with pytest.raises(ConfigError, match=r"of another model: it has no module '3.bn1'"):
        batchfree.convert(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)), plan=plan)
    with pytest.raises(ConfigError, match="'1' has 16 channels, the plan says 32"):
        batchfree.convert(trained(resnet(channels=16)), plan=plan)
    plan["1"].groups = 5
    with pytest.raises(ConfigError, match=r"layer '1': num_groups must divide .* 4 or 8"):
        batchfree.convert(model, plan=plan)


def one_by_one(channels=8):
    return trained(
        nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.BatchNorm2d(channels),
            nn.Flatten(),
            nn.Linear(channels, 2),
        )
    )


def test_groups_of_one_element_are_refused_by_name_kept_or_merged():
    net, x = one_by_one(), images()
    with pytest.raises(ConfigError, match=r"'2' cannot hold: 8 channels at 1 position.* in 8 gro"):
        batchfree.convert(net, x, groups=32)
    with pytest.raises(ConfigError, match="no BatchNorm left to convert: '2' is kept: groups of"):
        batchfree.convert(net, x, groups=32, degenerate="keep")
    merged = batchfree.convert(net, x, groups=32, degenerate="merge")
    assert merged.plan["2"].groups == 4
    assert "merged" in merged.report.layers[0].reason
    two = nn.Sequential(nn.BatchNorm2d(3), *one_by_one())
    kept = batchfree.convert(trained(two), x, groups=32, degenerate="keep")
    assert isinstance(kept.model[3], nn.BatchNorm2d)
    assert kept.report.left[0].reason.startswith("groups of one element")
    alone = trained(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)))
    with pytest.raises(ConfigError, match="cannot hold"):
        batchfree.convert(alone, x, degenerate="merge")


def test_auto_never_takes_groups_of_one_element():
    result = batchfree.convert(one_by_one(32), images(), groups="auto")
    assert result.plan["2"].groups < 32


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("1.running_var", float("nan"), "'1.running_var' holds NaN"),
        ("1.running_var", -1.0, "'1.running_var' holds negative variances"),
        ("1.weight", float("inf"), "'1.weight' holds NaN or infinity"),
        ("0.weight", float("nan"), "'0.weight' holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_finite_are_named(name, value, words):
    model = trained(resnet())
    model.state_dict()[name].flatten()[0] = value
    with pytest.raises(batchfree.DataError, match=words):
        batchfree.convert(model)


def test_a_layer_that_the_forward_holds_on_to_is_named():
    class Closure(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.call = functools.partial(nn.Module.__call__, self.norm)

        def forward(self, x):
            return self.call(x)

    with pytest.raises(batchfree.ConfigError, match="'norm' runs in the model and not"):
        batchfree.convert(trained(Closure()), images())


def test_a_plan_says_it_all():
    model = trained(resnet())
    plan = batchfree.plan_conversion(model)
    for others in ({"groups": 4}, {"keep": "1"}):
        with pytest.raises(batchfree.ConfigError, match="leave out groups and keep"):
            batchfree.convert(model, plan=plan, **others)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 3.5}, "groups must be a number, a Groups or 'auto', got 3.5"),
        ({"groups": True}, "groups must be a number"),
        ({"samples": "x"}, "samples must be at least 1 and whole, got 'x'"),
        ({"steps": -5}, "steps must be at least 0"),
        ({"method": "copy", "groups": "auto"}, "method='copy' measures none"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(batchfree.ConfigError, match=words):
        batchfree.convert(trained(resnet()), images(), **options)


def test_an_auto_plan_without_data_is_refused():
    model = trained(resnet())
    plan = batchfree.plan_conversion(model, "auto")
    with pytest.raises(batchfree.ConfigError, match="groups='auto' needs calibration data"):
        batchfree.convert(model, plan=plan)


def test_a_model_that_cannot_be_copied():
    model = trained(resnet())
    model.last = model(images()) * nn.Parameter(torch.ones(1))
    with pytest.raises(batchfree.ConfigError, match="keeps an activation as an attribute"):
        batchfree.convert(model)


def test_groups_of_one_channel_over_vectors_are_warned_of():
    model = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32))
    trained(model, [torch.randn(8, 3)])
    with pytest.warns(batchfree.ConversionWarning, match="1 layers .* get groups of one channel"):
        batchfree.convert(model, groups=32)
