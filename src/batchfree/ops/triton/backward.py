"""`batchfree::group_norm_backward` by the Triton kernels: the plan of a call, its launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from batchfree.ops.fused import BIAS, INPUT, RESIDUAL, WEIGHT
from batchfree.ops.triton import backward_kernels as kernels
from batchfree.ops.triton import given as checks
from batchfree.ops.triton import parameters as parameter_kernels
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
    """Three launches over pieces, `chunks` of them along the positions."""

    sums: Step
    combine: Step
    apply: Step
    chunks: int


@dataclass(frozen=True)
class Interleaved:
    """The three steps in one launch."""

    step: Step
    units: int
    lag: int
    chunks: int


Way = Resident | Apart | Interleaved | None


@dataclass(frozen=True)
class Plan:
    """How a call is computed; `parameters` adds up samples where weight or bias want it."""

    layout: Layout
    way: Way
    parameters: Step | None
    per_split: int


@lru_cache(PLANS)
def _plan_backward(
    dy_given: Given,
    x_given: Given,
    weight_given: Given | None,
    bias_given: Given | None,
    residual_given: Given | None,
    y_given: Given | None,
    statistics_given: Given,
    num_groups: int,
    activation: int,
    splits: int,
    wanted: int,
) -> Plan:
    dy, x, statistics = Given(*dy_given), Given(*x_given), Given(*statistics_given)
    weight, bias = unpacked(weight_given), unpacked(bias_given)
    residual, y = unpacked(residual_given), unpacked(y_given)
    checks.check_call(x, num_groups, activation)
    checks.check_like("dy", dy, x)
    checks.check_like("residual", residual, x)
    checks.check_like("y", y, x)
    checks.check_parameter("weight", weight, x)
    checks.check_parameter("bias", bias, x)
    checks.check_statistics(statistics, x, num_groups)
    checks.check_splits(splits, x.shape[0])
    checks.check_sign(y, activation)
    other = residual if y is None else y
    layout = layout_of(x, num_groups, (dy, x, other), (weight, bias))
    reads = 2 + (other is not None)
    way = _way(x, layout, (activation, y is not None), reads, bool(wanted & INPUT))
    runs = max(splits, 1)
    adds = (wanted & WEIGHT and weight is not None) or (wanted & BIAS and bias is not None)
    reduction = _reduction(layout, runs) if adds and way is not None else None
    return Plan(layout, way, reduction, layout.samples // runs)


def _way(
    x: Given, layout: Layout, activation: tuple[int, bool], reads: int, input_wanted: bool
) -> Way:
    sample, (hv, sv), n = layout.sample, layout.vectors, layout.samples
    if n == 0:
        return None
    c, d, last = sample.channels, sample.width, sample.last
    limits = planning.LIMITS
    tile = planning.resident(sample, limits, limits.resident_backward, limits.lane_backward)
    if tile is not None:
        constants = (c, d, tile.K, tile.DP, tile.P, hv, sv, last, *activation)
        return Resident(Step(kernels.resident, n * tile.programs(sample), constants, tile.warps))
    pieces = planning.pieces(sample, limits, limits.steps_backward)
    chunks, unit = pieces.chunks(sample), pieces.unit(sample)
    total, rows = n * chunks * pieces.blocks(sample), min(planning.power(d), 64)
    at_once = max(1, min(planning.power(chunks), 1024 // rows))
    shared = (c, d, pieces.R, pieces.P, pieces.steps, pieces.stages, hv, sv, last, *activation)
    lag = lag_of(x, sample, pieces, reads) if input_wanted else None
    if lag is not None:
        step = Step(kernels.interleaved, 2 * total, (*shared, unit, rows, at_once), pieces.warps)
        return Interleaved(step, total // (unit * chunks), lag, chunks)
    combined = (c, d, pieces.chunk, last, hv, rows, at_once)
    return Apart(
        Step(kernels.sums, total, shared, pieces.warps),
        # As many warps as where it is interleaved: they decide the order of sums.
        Step(kernels.combine, layout.groups, combined, pieces.warps),
        Step(kernels.apply, total, shared, pieces.warps),
        chunks,
    )


def _reduction(layout: Layout, runs: int) -> Step:
    """Adds up the samples of each run, 8 channels a program."""
    c = layout.sample.channels
    channels = min(planning.power(c), 8)
    rows = min(512, planning.power(layout.samples // runs))
    return Step(
        parameter_kernels.parameters,
        runs * -(-c // channels),
        (c, channels, rows),
        max(1, rows * channels // 512),
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
    device = x.get_device()
    if is_elsewhere(device):
        with torch.cuda.device(device):
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
    memory_format = plan.layout.memory_format

    def like_input(flag: int) -> Tensor | None:
        return torch.empty_like(x, memory_format=memory_format) if wanted & flag else None

    def like_parameter(flag: int, p: Tensor | None) -> Tensor | None:
        if p is None or not wanted & flag:
            return None
        shape = (splits, x.shape[1]) if splits else (x.shape[1],)
        # Without samples nobody writes to it.
        make = torch.zeros if plan.way is None else torch.empty
        return make(shape, dtype=p.dtype, device=x.device)

    dx, dr = like_input(INPUT), like_input(RESIDUAL)
    dw, db = like_parameter(WEIGHT, weight), like_parameter(BIAS, bias)
    if plan.way is not None:
        inputs = dy, x, weight, bias, residual if y is None else y
        _launch(plan, plan.way, inputs, statistics, (dx, dr), (dw, db))
    return dx, dr, dw, db


def _launch(
    plan: Plan,
    way: Resident | Apart | Interleaved,
    inputs: tuple[Tensor | None, ...],
    statistics: Tensor,
    outputs: tuple[Tensor | None, Tensor | None],
    gradients: tuple[Tensor | None, Tensor | None],
) -> None:
    layout, groups = plan.layout, plan.layout.groups
    where, device = statistics.device, statistics.get_device()
    if layout.any_copies:
        dense, flat = layout.memory_format, torch.contiguous_format
        whether = (*layout.copies[:2], *layout.parameter_copies, layout.copies[2])
        inputs = tuple(map(copied, inputs, whether, (dense, dense, flat, flat, dense)))
    numbers = (*layout.numbers, groups)

    def room(elements: int) -> Tensor:
        return torch.empty(elements, dtype=torch.float32, device=where)

    elements = 2 * layout.samples * layout.sample.channels
    totals = room(elements) if plan.parameters is not None else None
    if isinstance(way, Resident):
        way.step(device, *inputs, statistics, *outputs, totals, *numbers)
    else:
        parts, means = room(elements * way.chunks), room(2 * groups)
        if isinstance(way, Apart):
            way.sums(device, *inputs, statistics, parts, *numbers)
            way.combine(device, parts, inputs[2], totals, means, layout.numbers[0], groups)
            if any(t is not None for t in outputs):
                way.apply(device, *inputs, statistics, means, *outputs, *numbers)
        else:
            counters = torch.zeros(1 + 2 * way.units, dtype=torch.int32, device=where)
            rest = (*outputs, parts, totals, counters, *numbers, way.units, way.lag)
            way.step(device, *inputs, statistics, means, *rest)
    if plan.parameters is not None:
        plan.parameters(device, totals, *gradients, layout.samples, plan.per_split)
