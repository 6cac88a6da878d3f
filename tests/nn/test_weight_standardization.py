import pytest
import torch
from torch import nn

import batchfree


def test_filters_have_zero_mean_and_unit_variance():
    conv = batchfree.WeightStandardizedConv2d(6, 8, 3, padding=1, groups=2)
    w = conv.standardized_weight().double().flatten(1)
    torch.testing.assert_close(w.mean(1), torch.zeros(8).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(w.var(1, correction=0), torch.ones(8).double(), rtol=1e-3, atol=0)


def test_equals_a_convolution_with_the_standardized_weight():
    conv = batchfree.WeightStandardizedConv2d(6, 8, 3, padding=1, stride=2, padding_mode="reflect")
    twin = nn.Conv2d(6, 8, 3, padding=1, stride=2, padding_mode="reflect")
    w = conv.weight.detach().double()
    mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), correction=0, keepdim=True)
    twin.load_state_dict({"weight": ((w - mean) / std).float(), "bias": conv.bias.detach()})
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(conv(x), twin(x), rtol=1e-3, atol=1e-3)


def test_scale_and_shift_of_the_weight_do_not_matter():
    conv = batchfree.WeightStandardizedConv2d(6, 8, 3)
    x = torch.randn(2, 6, 8, 8)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(3).add_(0.5)
    torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-3)


def test_standardize_weights_keeps_parameters_and_leaves_single_value_filters():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1, groups=8)))
    parameters = list(net.parameters())
    assert batchfree.standardize_weights(net) is net
    assert type(net[0]) is batchfree.WeightStandardizedConv2d
    assert type(net[1][0]) is nn.Conv2d
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 8, 6, 6)


def test_single_value_filters_are_refused():
    with pytest.raises(ValueError, match=r"filters of 2 or more values.*\(8, 1, 1, 1\)"):
        batchfree.WeightStandardizedConv2d(8, 8, 1, groups=8)
