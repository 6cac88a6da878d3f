"""`batchfree::group_norm_backward` by the Triton kernels: the plan of a call, its launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from batchfree.ops.fused import BIAS, INPUT, RESIDUAL, WEIGHT
from batchfree.ops.triton import backward_kernels as kernels
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
class Backward:
    """A planned backward call."""

    layout: Layout
    parameter_copies: tuple[bool, bool]
    groups: int
    samples: int
    splits: int
    chunks: int = 1
    resident: Step | None = None
    sums: Step | None = None
    pieces: tuple[Step, Step] | None = None
    interleaved: Step | None = None
    interleaving: Interleaving | None = None
    parameters: Step | None = None


@lru_cache(PLANS)
def _plan_backward(
    dy: Given,
    x: Given,
    weight: Given | None,
    bias: Given | None,
    residual: Given | None,
    y: Given | None,
    statistics: Given,
    num_groups: int,
    activation: int,
    splits: int,
    wanted: int,
) -> Backward:
    dy, x, weight, bias, residual, y, statistics = (
        t and Given(*t) for t in (dy, x, weight, bias, residual, y, statistics)
    )
    checks.check_call(x, num_groups, activation)
    for name, t in (("dy", dy), ("residual", residual), ("y", y)):
        checks.check_like(name, t, x)
    checks.check_parameter("weight", weight, x)
    checks.check_parameter("bias", bias, x)
    checks.check_statistics(statistics, x, num_groups)
    checks.check_splits(splits, x.shape[0])
    checks.check_sign(y, activation)
    other = residual if y is None else y
    layout = layout_of(x, num_groups, (dy, x, other))
    sample, (hv, sv) = layout.sample, layout.vectors
    n, groups = x.shape[0], x.shape[0] * num_groups
    common = dict(
        layout=layout,
        parameter_copies=(parameter_copied(weight), parameter_copied(bias)),
        groups=groups,
        samples=n,
        splits=max(splits, 1),
    )
    if n == 0:
        return Backward(**common)
    c, d, last = sample.channels, sample.width, sample.last
    sign = y is not None
    parameters = bool(wanted & WEIGHT and weight) or bool(wanted & BIAS and bias)

    reduction = None
    if parameters:
        per_split = n // max(splits, 1)
        cb = min(planning.power(c), 8)
        rows = min(512, planning.power(per_split))
        constants = (c, cb, rows)
        programs = max(splits, 1) * -(-c // cb)
        reduction = Step(kernels.parameters, programs, constants, max(1, rows * cb // 512))
    common["parameters"] = reduction
    tile = planning.resident(sample, planning.LIMITS.resident_backward)
    if tile is not None:
        constants = (c, d, tile.K, tile.DP, tile.P, hv, sv, last, activation, sign)
        step = Step(kernels.resident, n * tile.programs(sample), constants, tile.warps)
        return Backward(**common, resident=step)
    pieces = planning.pieces(sample, planning.LIMITS, planning.LIMITS.steps_backward)
    chunks = pieces.chunks(sample)
    total = n * chunks * pieces.blocks(sample)
    shared = (
        *(c, d, pieces.R, pieces.P, pieces.steps, pieces.stages, hv, sv, last),
        *(activation, sign),
    )
    dp = planning.power(d)
    combined = (dp, max(1, min(planning.power(chunks), 1024 // dp)))
    common["chunks"] = chunks
    reads = 2 + (other is not None)
    interleaving = interleaving_of(x, sample, pieces, reads)
    if interleaving is not None and wanted & INPUT:
        constants = (*shared, pieces.unit(sample), *combined)
        step = Step(kernels.interleaved, 2 * total, constants, pieces.warps)
        return Backward(**common, interleaved=step, interleaving=interleaving)
    constants = (c, d, pieces.chunk, last, hv, *combined)
    combine = Step(kernels.combine, groups, constants, max(1, min(4, combined[1] // 64)))
    return Backward(
        **common,
        sums=Step(kernels.sums, total, shared, pieces.warps),
        pieces=(combine, Step(kernels.apply, total, shared, pieces.warps)),
    )


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    statistics: Tensor,
    num_groups: int,
    activation: int,
    splits: int,
    wanted: int,
) -> tuple[Tensor | None, ...]:
    """The backward operator: (dx, dresidual, dweight, dbias), None for what is not wanted."""
    index = x.get_device()
    if is_elsewhere(index):
        with torch.cuda.device(index):
            return group_norm_backward(
                dy, x, weight, bias, residual, y, statistics, num_groups, activation, splits, wanted
            )
    plan = _plan_backward(
        given(dy),
        given(x),
        given(weight),
        given(bias),
        given(residual),
        given(y),
        given(statistics),
        num_groups,
        activation,
        splits,
        wanted,
    )
    layout, groups, device = plan.layout, plan.groups, x.device
    memory_format = layout.memory_format

    def like_input(flag: int) -> Tensor | None:
        return torch.empty_like(x, memory_format=memory_format) if wanted & flag else None

    def like_parameter(flag: int, p: Tensor | None) -> Tensor | None:
        if p is None or not wanted & flag:
            return None
        shape = (splits, x.shape[1]) if splits else (x.shape[1],)
        return torch.empty(shape, dtype=p.dtype, device=device)

    dx, dr = like_input(INPUT), like_input(RESIDUAL)
    dw, db = like_parameter(WEIGHT, weight), like_parameter(BIAS, bias)
    if groups:
        _launch(
            plan, (dy, x, weight, bias, residual if y is None else y), statistics, dx, dr, dw, db
        )
    else:
        for p in (dw, db):
            if p is not None:
                p.zero_()
    return dx, dr, dw, db


def _launch(
    plan: Backward,
    inputs: tuple[Tensor | None, ...],
    statistics: Tensor,
    dx: Tensor | None,
    dr: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
) -> None:
    layout, groups, device = plan.layout, plan.groups, statistics.get_device()
    formats = [layout.memory_format] * 2 + [torch.contiguous_format] * 2 + [layout.memory_format]
    whether = (*layout.copies[:2], *plan.parameter_copies, layout.copies[2])
    if any(whether):
        inputs = tuple(map(copied, inputs, whether, formats))
    hw, dy_n, x_n, r_n = layout.numbers
    numbers = hw, dy_n, x_n, r_n, groups
    weight = inputs[2]

    def room(elements: int) -> Tensor:
        return torch.empty(elements, dtype=torch.float32, device=statistics.device)

    totals = room(2 * groups * layout.sample.width) if plan.parameters is not None else None
    if plan.resident is not None:
        plan.resident(device, *inputs, statistics, dx, dr, totals, *numbers)
    else:
        parts, means = room(2 * groups * layout.sample.width * plan.chunks), room(2 * groups)
        if plan.interleaving is not None:
            units, lag = plan.interleaving.units, plan.interleaving.lag
            counters = torch.zeros(1 + 2 * units, dtype=torch.int32, device=statistics.device)
            outputs = means, dx, dr, parts, totals, counters
            plan.interleaved(device, *inputs, statistics, *outputs, *numbers, units, lag)
        else:
            combine, apply = plan.pieces
            plan.sums(device, *inputs, statistics, parts, *numbers)
            combine(device, parts, weight, totals, means, hw, groups)
            if dx is not None or dr is not None:
                apply(device, *inputs, statistics, means, dx, dr, *numbers)
    if plan.parameters is not None:
        plan.parameters(device, totals, dw, db, plan.samples, plan.samples // plan.splits)
