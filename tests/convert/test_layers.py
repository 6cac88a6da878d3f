import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchfree
from batchfree.convert import BlendNorm, ConvertedNorm


def scaled(groups=2, channels=8, **options):
    layer = ConvertedNorm(groups, channels, scaled=True, **options)
    for t in (layer.weight.data, layer.bias.data, layer.scale.data, layer.shift.data):
        t.normal_()
    return layer


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 5), (4, 8, 3, 3), (4, 8, 2, 3, 2)])
def test_rescaled_group_norm_on_every_rank(shape):
    layer, x = scaled(), torch.randn(shape)
    per_channel = (-1, *[1] * (len(shape) - 2))
    moved = x * layer.scale.view(per_channel) + layer.shift.view(per_channel)
    torch.testing.assert_close(layer(x), F.group_norm(moved, 2, layer.weight, layer.bias, 1e-5))


def test_what_follows_the_norm_runs_in_its_order_and_keeps_its_names():
    layer = ConvertedNorm(2, 8, then={"drop": nn.Identity(), "act": nn.ReLU(inplace=True)})
    assert [n for n, _ in layer.named_children()] == ["drop", "act"]
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(layer(x), F.group_norm(x, 2).relu())
    assert layer.scale is None


def test_the_old_memory_format_and_dtype_stay():
    layer = scaled().bfloat16()
    y = layer(torch.randn(2, 8, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last))
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_an_input_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="normalises 8 channels"):
        scaled()(torch.randn(2, 4, 3, 3))


def blend(norm=None, **options):
    bn = nn.BatchNorm2d(8, eps=1e-3)
    for t in (bn.weight.data, bn.bias.data, bn.running_mean):
        t.normal_()
    bn.running_var.uniform_(0.5, 2)
    norm = norm or scaled(**options)
    return bn, BlendNorm(norm, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


@pytest.mark.parametrize("training", [True, False])
def test_alpha_1_is_batch_norm_in_eval_mode(training):
    bn, layer = blend()
    layer.train(training)
    x = torch.randn(4, 8, 3, 3)
    wanted = bn.eval()(x)
    assert torch.equal(layer(x), wanted)
    assert torch.equal(layer.running_mean, bn.running_mean)


def test_alpha_0_is_the_group_norm_and_so_is_what_it_collapses_into():
    norm = scaled()
    _, layer = blend(norm)
    layer.alpha.zero_()
    x = torch.randn(4, 8, 3, 3)
    torch.testing.assert_close(layer(x), norm(x), atol=1e-5, rtol=1e-5)
    collapsed = layer.collapsed()
    assert type(collapsed) is ConvertedNorm
    torch.testing.assert_close(collapsed(x), layer(x), atol=1e-5, rtol=1e-5)
    plain = blend(batchfree.GroupNorm(2, 8))[1].collapsed()
    assert type(plain) is batchfree.GroupNorm


def test_between_them_it_is_between_them_and_learns():
    norm = scaled()
    bn, layer = blend(norm)
    layer.alpha.fill_(0.25)
    x = torch.randn(4, 8, 3, 3)
    wanted = 0.25 * bn.eval()(x) + 0.75 * norm(x)
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    layer(x).square().sum().backward()
    assert layer.weight.grad.abs().min() > 0
    assert layer.bias.grad.abs().min() > 0
    batchfree.assert_batch_independent(layer, x, mode="train")


def test_a_gamma_of_zero_stays_a_number():
    bn = nn.BatchNorm2d(8)
    bn.weight.data.zero_()
    norm = batchfree.GroupNorm(2, 8)
    norm.weight.data.zero_()
    layer = BlendNorm(norm, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
    layer.alpha.fill_(0.5)
    assert bool(layer(torch.randn(2, 8, 3, 3)).isfinite().all())


def test_activation_and_residual_are_applied_once():
    bn, layer = blend(activation="relu")
    x, skip = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    assert torch.equal(layer(x, residual=skip), (bn.eval()(x) + skip).relu())
