"""The closed form against what the layers really compute, in float64."""

import pytest
import torch
import torch.nn.functional as F

from batchfree.convert.contrast import contrast
from batchfree.convert.moments import Moments, analytic, balance, fit

EPS = 1e-5


def data(n=12, c=8, positions=(5, 3)):
    x = torch.randn(n, c, *positions, dtype=torch.float64)
    x = x * (torch.rand(n, c, *[1] * len(positions), dtype=torch.float64) + 0.2)
    return x + torch.randn(c, *[1] * len(positions), dtype=torch.float64)


def affine(c=8):
    return torch.randn(c, dtype=torch.float64), torch.randn(c, dtype=torch.float64)


def layer(x, found):
    per_channel = (-1, *[1] * (x.dim() - 2))
    if found.scale is not None:
        x = x * found.scale.view(per_channel) + found.shift.view(per_channel)
    return F.group_norm(x, found.groups, found.weight, found.bias, EPS)


def expanded(v, x):
    return v.view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("anchor", [None, 0.0, 2.0])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_error_is_the_one_that_the_layer_makes(groups, anchor):
    x, (slope, offset) = data(), affine()
    found = fit(Moments.of(x), slope, offset, groups, EPS, anchor=anchor)
    u = x * expanded(slope, x) + expanded(offset, x)
    y = layer(x, found)
    channels = (0, *range(2, x.dim()))
    torch.testing.assert_close(y.mean(channels), u.mean(channels), atol=1e-5, rtol=1e-5)
    measured = (y - u).square().sum() / (u - u.mean(channels, keepdim=True)).square().sum()
    assert found.error == pytest.approx(float(measured), rel=1e-4)


def test_the_mean_slope_over_samples_is_batch_norms():
    x, (slope, offset) = data(), affine()
    found = fit(Moments.of(x), slope, offset, 2, EPS, anchor=None)
    sigma = x.view(12, 2, -1).var(2, correction=0).add(EPS).sqrt().repeat_interleave(4, 1)
    torch.testing.assert_close((found.weight / sigma).mean(0), slope, atol=1e-5, rtol=1e-5)


def test_a_target_mean_is_met():
    x, (slope, offset) = data(), affine()
    wanted = torch.arange(8.0, dtype=torch.float64)
    found = fit(Moments.of(x), slope, offset, 4, EPS, anchor=1.0, target_mean=wanted)
    torch.testing.assert_close(layer(x, found).mean((0, 2, 3)), wanted, atol=1e-5, rtol=1e-5)


def test_moments_of_parts_are_those_of_the_whole():
    x = data(n=10)
    parts = Moments.joined([Moments.of(x[:3]), Moments.of(x[3:])])
    mean, variance = parts.overall()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0), atol=1e-6, rtol=1e-6)


def test_calls_of_other_sizes_count_by_their_positions():
    a, b = data(n=2, positions=(2, 2)), data(n=3, positions=(7,)).unsqueeze(3)
    mean, _ = Moments.joined([Moments.of(a), Moments.of(b)]).overall()
    together = torch.cat([t.transpose(0, 1).flatten(1) for t in (a, b)], 1)
    torch.testing.assert_close(mean, together.mean(1), atol=1e-6, rtol=1e-6)


def test_an_input_without_positions():
    x, (slope, offset) = data(positions=()), affine()
    found = fit(Moments.of(x), slope, offset, 2, EPS, anchor=None)
    u = x * slope + offset
    measured = (layer(x, found) - u).square().sum() / (u - u.mean(0)).square().sum()
    assert found.error == pytest.approx(float(measured), rel=1e-4)


def test_balanced_channels_have_unit_variance_and_the_group_a_fixed_part():
    mean, variance = affine()[0], torch.rand(8, dtype=torch.float64) + 0.1
    scale, shift = balance(mean, variance, 0.0, 2, anchor=3.0)
    torch.testing.assert_close(variance * scale.square(), torch.ones(8, dtype=torch.float64))
    constant = (mean * scale + shift).view(2, 4)
    torch.testing.assert_close(constant.mean(1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(constant.square().mean(1), torch.full((2,), 9.0).double())


def test_a_large_anchor_leaves_only_the_group_means():
    x, (slope, offset) = data(), affine()
    x = x - x.mean((2, 3), keepdim=True)  # each sample's channel means are zero
    found = fit(Moments.of(x), slope, offset, 2, EPS, anchor=50.0)
    assert found.error < 1e-3
    assert fit(Moments.of(x), slope, offset, 2, EPS, anchor=None).error > 0.02


def test_channels_that_move_together_are_set_against_each_other():
    common = torch.randn(40, 1, dtype=torch.float64)
    means = common + 0.05 * torch.randn(40, 4, dtype=torch.float64)
    weights = torch.full((40, 1), 1 / 40, dtype=torch.float64)
    factors = contrast(means, weights, torch.ones(4, dtype=torch.float64), 1)
    assert sorted(factors.sign().tolist()) == [-1, -1, 1, 1]
    assert float((means * factors).mean(1).var()) < 0.02 * float(means.mean(1).var())
    assert float(factors.square().mean()) == pytest.approx(1)
    assert contrast(means, weights, torch.ones(4, dtype=torch.float64), 4) is None


def test_contrast_keeps_what_balance_loses():
    common = torch.randn(60, 1, 1, 1, dtype=torch.float64)
    x = common + 0.3 * torch.randn(60, 8, 4, 4, dtype=torch.float64)
    slope, offset = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    found = fit(Moments.of(x), slope, offset, 2, EPS, anchor=4.0)
    assert (found.scale < 0).any()
    assert found.error < 0.1
    u = x
    measured = (layer(x, found) - u).square().sum() / (
        u - u.mean((0, 2, 3), keepdim=True)
    ).square().sum()
    assert found.error == pytest.approx(float(measured), rel=1e-3)


def test_analytic_is_the_law_of_total_variance():
    mean, variance = affine()[0], torch.rand(8, dtype=torch.float64) + 0.1
    slope, offset = affine()
    found = analytic(mean, variance, slope, offset, 2, EPS, anchor=None)
    by_group = mean.view(2, 4)
    total = variance.view(2, 4).mean(1) + by_group.var(1, correction=0)
    sigma = total.add(EPS).sqrt().repeat_interleave(4)
    torch.testing.assert_close(found.weight, slope * sigma)
    centre = by_group.mean(1).repeat_interleave(4)
    torch.testing.assert_close(found.bias, offset + slope * centre)
