"""`batchfree::group_norm` by the Triton kernels: the plan of a call, and its launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from batchfree.ops.triton import forward_kernels as kernels
from batchfree.ops.triton import given as checks
from batchfree.ops.triton import plan as planning
from batchfree.ops.triton.given import Given, given
from batchfree.ops.triton.launch import Step
from batchfree.ops.triton.placing import (
    PLANS,
    Interleaving,
    Layout,
    copied,
    interleaving_of,
    is_elsewhere,
    layout_of,
    parameter_copied,
)


@dataclass(frozen=True)
class Forward:
    """A planned forward call."""

    layout: Layout
    parameter_copies: tuple[bool, bool]
    groups: int
    resident: Step | None = None
    pieces: tuple[Step, Step, Step] | None = None
    interleaved: Step | None = None
    interleaving: Interleaving | None = None
    workspace: int = 0  # float32 elements

    @cached_property
    def copies(self) -> bool:
        """Whether any tensor has to be copied first."""
        return any((*self.layout.copies, *self.parameter_copies))


@lru_cache(PLANS)
def _plan_forward(
    x: Given,
    weight: Given | None,
    bias: Given | None,
    residual: Given | None,
    num_groups: int,
    activation: int,
) -> Forward:
    x, weight, bias, residual = (t and Given(*t) for t in (x, weight, bias, residual))
    checks.check_call(x, num_groups, activation)
    checks.check_like("residual", residual, x)
    checks.check_parameter("weight", weight, x)
    checks.check_parameter("bias", bias, x)
    layout = layout_of(x, num_groups, (x, residual))
    sample, (hv, sv) = layout.sample, layout.vectors
    n, groups = x.shape[0], x.shape[0] * num_groups
    copies = (parameter_copied(weight), parameter_copied(bias))
    if n == 0:
        return Forward(layout, copies, groups)
    c, d, last = sample.channels, sample.width, sample.last
    tile = planning.resident(sample, planning.LIMITS.resident_forward)
    if tile is not None:
        constants = (c, d, tile.K, tile.DP, tile.P, hv, sv, last, activation)
        step = Step(kernels.resident, n * tile.programs(sample), constants, tile.warps)
        return Forward(layout, copies, groups, resident=step)
    pieces = planning.pieces(sample, planning.LIMITS, planning.LIMITS.steps_forward)
    chunks = pieces.chunks(sample)
    total = n * chunks * pieces.blocks(sample)
    entries = min(2048, planning.power(d * chunks))
    shared = (c, d, pieces.R, pieces.P, pieces.steps, pieces.stages, hv, sv, last)
    common = dict(layout=layout, parameter_copies=copies, groups=groups)
    workspace = 3 * n * c * chunks
    interleaving = interleaving_of(x, sample, pieces, 1 + (residual is not None))
    if interleaving is not None:
        constants = (*shared, activation, pieces.unit(sample), entries)
        step = Step(kernels.interleaved, 2 * total, constants, pieces.warps)
        return Forward(**common, interleaved=step, interleaving=interleaving, workspace=workspace)
    steps = (
        Step(kernels.moments, total, shared, pieces.warps),
        Step(
            kernels.combine,
            groups,
            (c, d, pieces.chunk, last, entries, hv),
            max(1, entries // 512),
        ),
        Step(kernels.apply, total, (*shared, activation), pieces.warps),
    )
    return Forward(**common, pieces=steps, workspace=workspace)


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
    if not math.isfinite(eps):
        raise RuntimeError("batchfree::group_norm: eps must be finite")
    device = x.get_device()
    if is_elsewhere(device):
        with torch.cuda.device(device):
            return group_norm(x, weight, bias, residual, num_groups, eps, activation)
    plan = _plan_forward(
        given(x), given(weight), given(bias), given(residual), num_groups, activation
    )
    memory_format = plan.layout.memory_format
    y = torch.empty_like(x, memory_format=memory_format)
    statistics = torch.empty((3, x.shape[0], num_groups), dtype=torch.float32, device=x.device)
    if not plan.groups:
        return y, statistics
    if plan.copies:
        x = copied(x, plan.layout.copies[0], memory_format)
        residual = copied(residual, plan.layout.copies[1], memory_format)
        weight = copied(weight, plan.parameter_copies[0], torch.contiguous_format)
        bias = copied(bias, plan.parameter_copies[1], torch.contiguous_format)
    hw, x_n, r_n = plan.layout.numbers
    tensors = x, weight, bias, residual, y, statistics
    numbers = hw, x_n, r_n, plan.groups
    if plan.resident is not None:
        plan.resident(device, *tensors, *numbers, eps)
        return y, statistics
    workspace = torch.empty(plan.workspace, dtype=torch.float32, device=x.device)
    if plan.interleaving is not None:
        units, lag = plan.interleaving.units, plan.interleaving.lag
        counters = torch.zeros(1 + 2 * units, dtype=torch.int32, device=x.device)
        plan.interleaved(device, *tensors, workspace, counters, *numbers, units, lag, eps)
    else:
        moments, combine, apply = plan.pieces
        moments(device, x, workspace, hw, x_n, plan.groups)
        combine(device, workspace, statistics, hw, plan.groups, eps)
        apply(device, *tensors, *numbers)
    return y, statistics
