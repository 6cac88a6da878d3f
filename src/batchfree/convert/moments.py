"""Fitting a GroupNorm to a BatchNorm from each sample's moments; in closed form, any groups.

BatchNorm with fixed statistics is u = k x + l in each channel. Of the sample's mean M and variance
V in every channel follow its group statistics for any grouping, any factor and offset per channel
before the norm, and with them all first and second moments of the GroupNorm's output and of u. So
one pass over the data tells, without keeping an activation, how every choice would do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree.convert.contrast import contrast

_LARGEST = 1e4
"""Of a factor, and of a channel's mean times it: float16 ends at 65504, under autocast too."""


@dataclass
class Moments:
    """Of a layer's input, each sample and call a row, in float64.

    Attributes:
        mean: (R, C), over positions.
        variance: (R, C), biased.
        positions: (R,), over which the two were taken.
    """

    mean: Tensor
    variance: Tensor
    positions: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Of an input (N, C, *)."""
        x = x.detach()
        flat = x.float().flatten(2) if x.dim() > 2 else x.float().unsqueeze(2)
        variance, mean = torch.var_mean(flat, 2, correction=0)
        positions = torch.full((x.shape[0],), float(flat.shape[2]))
        return cls(mean.double().cpu(), variance.double().cpu(), positions.double())

    @classmethod
    def joined(cls, parts: list[Moments]) -> Moments:
        """Of several calls together."""
        return cls(
            torch.cat([p.mean for p in parts]),
            torch.cat([p.variance for p in parts]),
            torch.cat([p.positions for p in parts]),
        )

    @property
    def weights(self) -> Tensor:
        """(R, 1), the share of each row in all positions."""
        return (self.positions / self.positions.sum()).unsqueeze(1)

    def overall(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) over all rows and positions."""
        mean = (self.weights * self.mean).sum(0)
        spread = self.variance + (self.mean - mean).square()
        return mean, (self.weights * spread).sum(0)


@dataclass
class Fit:
    """A GroupNorm's parameters, all (C,) in float64.

    Attributes:
        groups: the number of groups.
        weight, bias: gamma and beta.
        scale, shift: of the input before the norm; None where it is taken as it is.
        error: E(y - u)^2 over Var(u), both summed over the channels.
    """

    groups: int
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    error: float


def balance(
    mean: Tensor, variance: Tensor, eps: float, groups: int, anchor: float
) -> tuple[Tensor, Tensor]:
    """Factor and offset (C,) that give each channel of a group the same say in its statistics.

    Every channel gets unit variance and the mean `_ramp`; less of variance, where its own is so
    small beside its mean that the factor would leave float16's range.
    """
    scale = _bounded((variance + eps).rsqrt(), mean)
    return scale, anchor * _ramp(mean, groups) - mean * scale


def _bounded(scale: Tensor, mean: Tensor) -> Tensor:
    most = _LARGEST / mean.abs().clamp_min(1)
    return scale.clamp(-most, most)


def _ramp(like: Tensor, groups: int) -> Tensor:
    """Constants (C,) of mean 0 and mean square 1 in each group.

    They are a constant part of the group's variance, 1 + anchor^2 in all, beside which the part
    that varies with the sample is small.
    """
    channels = len(like) // groups
    ramp = torch.linspace(-1, 1, channels, dtype=like.dtype) if channels > 1 else like.new_zeros(1)
    return (ramp / ramp.square().mean().sqrt().clamp_min(1e-12)).repeat(groups)


def fit(
    moments: Moments,
    slope: Tensor,
    offset: Tensor,
    groups: int,
    eps: float,
    *,
    anchor: float | None,
    target_mean: Tensor | None = None,
    least_variance: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Fit:
    """The GroupNorm that comes nearest to u = slope x + offset on inputs of these moments.

    Of the input as `balance` rescales it, and with `contrast` on top, the one of less error.

    Args:
        moments: of the inputs.
        slope, offset: (C,), the BatchNorm's k and l, float64.
        groups: the number of groups.
        eps: of the GroupNorm.
        anchor: of `balance`; None leaves the input as it is.
        target_mean: (C,), the mean that each channel of the output should have; u's by default.
        least_variance: (C,), below which `balance` takes no channel's variance to be: one that is
            silent on this data must not drown its group on other.
        dtype: of the layer: gamma and beta make up for what rounding does to factor and offset.
    """

    def solve(scale: Tensor | None, shift: Tensor | None) -> Fit:
        if scale is not None and shift is not None:
            scale, shift = (t.to(dtype).double() for t in (scale, shift))
        return _solve(moments, slope, offset, groups, eps, scale, shift, target_mean)

    if anchor is None:
        return solve(None, None)
    mean, variance = moments.overall()
    if least_variance is not None:
        variance = variance.maximum(least_variance)
    scale, shift = balance(mean, variance, eps, groups, anchor)
    best = solve(scale, shift)
    if len(moments.mean) > 1:
        centred = (moments.mean - mean) * scale
        factors = contrast(centred, moments.weights, (slope / scale).square(), groups)
        if factors is not None:
            scale = _bounded(scale * factors, mean)
            other = solve(scale, anchor * _ramp(mean, groups) - mean * scale)
            best = other if other.error < best.error else best
    return best


def _solve(
    moments: Moments,
    slope: Tensor,
    offset: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    target_mean: Tensor | None,
) -> Fit:
    """Gamma and beta for this rescaling, and the error that is left.

    gamma = slope / (scale E[1/sigma_g]), so that the mean slope over samples is BatchNorm's own;
    beta makes each channel's mean that of the target.
    """
    mean, variance = moments.mean, moments.variance
    if scale is not None and shift is not None:
        mean, variance = mean * scale + shift, variance * scale.square()
    rows, channels = mean.shape
    by_group = mean.view(rows, groups, -1)
    centre = by_group.mean(2)
    spread = (variance.view_as(by_group) + (by_group - centre.unsqueeze(2)).square()).mean(2)
    inverse = (spread + eps).rsqrt().repeat_interleave(channels // groups, 1)
    centre = centre.repeat_interleave(channels // groups, 1)

    w = moments.weights
    factor = torch.ones_like(slope) if scale is None else scale
    weight = slope / (factor * (w * inverse).sum(0))
    hat = (mean - centre) * inverse
    wanted = slope * moments.mean + offset
    wanted_mean = (w * wanted).sum(0)
    bias = (wanted_mean if target_mean is None else target_mean) - weight * (w * hat).sum(0)
    # Within a sample y - u is affine in x: its slope error over V, and its offset.
    tilt = weight * factor * inverse - slope
    gap = weight * (hat - (w * hat).sum(0)) - (wanted - wanted_mean)
    wrong = (w * (tilt.square() * moments.variance + gap.square())).sum()
    total = (w * (slope.square() * moments.variance + (wanted - wanted_mean).square())).sum()
    error = float(wrong / total) if total > 0 else 0.0
    return Fit(groups, weight, bias, scale, shift, error)


def analytic(
    mean: Tensor,
    variance: Tensor,
    slope: Tensor,
    offset: Tensor,
    groups: int,
    eps: float,
    *,
    anchor: float | None,
    dtype: torch.dtype = torch.float64,
) -> Fit:
    """The same without data: group statistics from the running ones by the law of total variance.

    sigma_g^2 = mean of the channels' variances + variance of their means; mu_g the mean of means.
    """
    one = Moments(mean.unsqueeze(0), variance.unsqueeze(0), torch.ones(1, dtype=torch.float64))
    found = fit(one, slope, offset, groups, eps, anchor=anchor, dtype=dtype)
    found.error = float("nan")
    return found
