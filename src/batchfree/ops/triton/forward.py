"""`batchfree::group_norm` by the Triton kernels: the plan of a call, and its launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from batchfree.ops.triton import forward_kernels as kernels
from batchfree.ops.triton import given as checks
from batchfree.ops.triton import plan as planning
from batchfree.ops.triton.given import Given, given, unpacked
from batchfree.ops.triton.launch import Step
from batchfree.ops.triton.placing import PLANS, Layout, copied, is_elsewhere, lag_of, layout_of


@dataclass(frozen=True)
class Resident:
    """One launch, of programs that keep whole groups."""

    step: Step


@dataclass(frozen=True)
class Apart:
    """Three launches over pieces, and room for what they find: float32 elements."""

    moments: Step
    combine: Step
    apply: Step
    workspace: int


@dataclass(frozen=True)
class Interleaved:
    """The three steps in one launch."""

    step: Step
    units: int
    lag: int
    workspace: int


Way = Resident | Apart | Interleaved | None


@lru_cache(PLANS)
def _plan_forward(
    x_given: Given,
    weight_given: Given | None,
    bias_given: Given | None,
    residual_given: Given | None,
    num_groups: int,
    activation: int,
) -> tuple[Layout, Way]:
    x = Given(*x_given)
    weight, bias, residual = map(unpacked, (weight_given, bias_given, residual_given))
    checks.check_call(x, num_groups, activation)
    checks.check_like("residual", residual, x)
    checks.check_parameter("weight", weight, x)
    checks.check_parameter("bias", bias, x)
    layout = layout_of(x, num_groups, (x, residual), (weight, bias))
    return layout, _way(x, layout, activation, 1 + (residual is not None))


def _way(x: Given, layout: Layout, activation: int, reads: int) -> Way:
    sample, (hv, sv), n = layout.sample, layout.vectors, layout.samples
    if n == 0:
        return None
    c, d, last = sample.channels, sample.width, sample.last
    # Channels first pieces have long rows, and cost less than a large tile.
    limits = planning.LIMITS
    most = limits.resident_forward // (1 if last else 2)
    tile = planning.resident(sample, limits, most, limits.lane_forward)
    if tile is not None:
        constants = (c, d, tile.K, tile.DP, tile.P, hv, sv, last, activation)
        return Resident(Step(kernels.resident, n * tile.programs(sample), constants, tile.warps))
    pieces = planning.pieces(sample, limits, limits.steps_forward)
    chunks, unit = pieces.chunks(sample), pieces.unit(sample)
    total, workspace = n * chunks * pieces.blocks(sample), 3 * n * c * chunks
    entries = min(2048, planning.power(d * chunks))
    shared = (c, d, pieces.R, pieces.P, pieces.steps, pieces.stages, hv, sv, last)
    lag = lag_of(x, sample, pieces, reads)
    if lag is not None:
        step = Step(
            kernels.interleaved, 2 * total, (*shared, activation, unit, entries), pieces.warps
        )
        return Interleaved(step, total // (unit * chunks), lag, workspace)
    combined = (c, d, pieces.chunk, last, entries, hv)
    return Apart(
        Step(kernels.moments, total, shared, pieces.warps),
        # As many warps as where it is interleaved: they decide the order of sums.
        Step(kernels.combine, layout.groups, combined, pieces.warps),
        Step(kernels.apply, total, (*shared, activation), pieces.warps),
        workspace,
    )


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """The forward operator: (y, statistics)."""
    eps = float(eps)  # Triton would compile another kernel for a 1 or a 0
    if not math.isfinite(eps):
        raise RuntimeError("batchfree::group_norm: eps must be finite")
    device = x.get_device()
    if is_elsewhere(device):
        with torch.cuda.device(device):
            return group_norm(x, weight, bias, residual, num_groups, eps, activation)
    layout, way = _plan_forward(
        given(x), given(weight), given(bias), given(residual), num_groups, activation
    )
    memory_format = layout.memory_format
    y = torch.empty_like(x, memory_format=memory_format)
    statistics = torch.empty((3, x.shape[0], num_groups), dtype=torch.float32, device=x.device)
    if way is None:
        return y, statistics
    if layout.any_copies:
        x = copied(x, layout.copies[0], memory_format)
        residual = copied(residual, layout.copies[1], memory_format)
        weight = copied(weight, layout.parameter_copies[0], torch.contiguous_format)
        bias = copied(bias, layout.parameter_copies[1], torch.contiguous_format)
    hw, x_n, r_n = layout.numbers
    groups = layout.groups
    tensors, numbers = (x, weight, bias, residual, y, statistics), (hw, x_n, r_n, groups)
    if isinstance(way, Resident):
        way.step(device, *tensors, *numbers, eps)
        return y, statistics
    workspace = torch.empty(way.workspace, dtype=torch.float32, device=y.device)
    if isinstance(way, Apart):
        way.moments(device, x, workspace, hw, x_n, groups)
        way.combine(device, workspace, statistics, hw, groups, eps)
        way.apply(device, *tensors, *numbers)
    else:
        counters = torch.zeros(1 + 2 * way.units, dtype=torch.int32, device=y.device)
        way.step(device, *tensors, workspace, counters, *numbers, way.units, way.lag, eps)
    return y, statistics
