"""The steps of the forward pass, of one piece or one group each."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from batchfree.ops.triton.activations import activate
from batchfree.ops.triton.tile import (
    entry,
    less,
    of_channels,
    offsets,
    slot,
    store_statistics,
)


@triton.jit
def piece_moments(
    x,
    workspace,
    n,
    block,
    t,
    hw,
    x_n,
    chunks,
    plane,
    C: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
):
    """Moments of a piece: (mean, what its rounding left, M2) of each of its R channels.

    Each lane adds up x and its square less the lane's first x, by which no more digits are lost
    than a lane has elements, whatever these are: its M2 is at least an n-th of that of the first.
    """
    c, p = tl.arange(0, R), tl.arange(0, P)
    valid = block * R + c < C
    p0 = t * (P * STEPS)
    left = hw - p0
    base, tile = offsets(c, p, block * R, p0, hw, C, LAST)
    at = x + (n * x_n * SV + base)
    first = tl.load(at + tile, mask=valid[:, None] & (p < left)[None, :], other=0.0).to(tl.float32)
    s1 = tl.zeros((R, P), tl.float32)
    s2 = tl.zeros((R, P), tl.float32)
    rest = left - P
    for _ in tl.range(1, tl.minimum(STEPS, (left + P - 1) // P), num_stages=STAGES):
        at += P * C if LAST else P
        inside = p < rest
        mask = valid[:, None] & inside[None, :]
        xs = tl.load(at + tile, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(inside[None, :], xs - first, 0.0)
        s1 += d
        s2 += d * d
        rest -= P
    total = tl.minimum(left, P * STEPS)
    lanes = tl.where(p < left, (total - p + P - 1) // P, 0).to(tl.float32)[None, :]
    count = total.to(tl.float32)
    step = s1 / tl.maximum(lanes, 1.0)
    mean = first + step
    m2 = less(s2, s1 * step)
    all_mean = tl.sum(mean * lanes, 1) / count
    d = (first - all_mean[:, None]) + step
    low = tl.sum(lanes * d, 1) / count
    all_m2 = less(tl.sum(m2 + lanes * d * d, 1), count * low * low)
    here = workspace + slot(n, block * R + c, t, chunks, C, LAST)
    tl.store(here, all_mean, mask=valid)
    tl.store(here + plane, low, mask=valid)
    tl.store(here + 2 * plane, all_m2, mask=valid)


@triton.jit
def group_statistics(
    workspace,
    statistics,
    group,
    hw,
    chunks,
    plane,
    groups,
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    E: tl.constexpr,
):
    """Statistics of a group from the moments of its pieces, in an order of their own."""
    e = tl.arange(0, E)
    entries = chunks * D
    count = hw.to(tl.float32) * D
    sums = tl.zeros((E,), tl.float32)
    for start in range(0, entries, E):
        place, _, t = entry(group, start + e, chunks, C, D, LAST)
        there = start + e < entries
        size = tl.minimum(hw - t * CHUNK, CHUNK).to(tl.float32) / count
        means = tl.load(workspace + place, mask=there, other=0.0, cache_modifier=".cg")
        sums += size * means
    mean = tl.sum(sums, 0)
    low = tl.zeros((E,), tl.float32)
    m2 = tl.zeros((E,), tl.float32)
    for start in range(0, entries, E):
        place, _, t = entry(group, start + e, chunks, C, D, LAST)
        there = start + e < entries
        size = tl.minimum(hw - t * CHUNK, CHUNK).to(tl.float32)
        at = workspace + place
        means = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
        rest = tl.load(at + plane, mask=there, other=0.0, cache_modifier=".cg")
        own = tl.load(at + 2 * plane, mask=there, other=0.0, cache_modifier=".cg")
        d = tl.where(there, (means - mean) + rest, 0.0)
        low += size * d
        m2 += own + size * d * d
    all_low = tl.sum(low, 0) / count
    all_m2 = less(tl.sum(m2, 0), count * all_low * all_low)
    store_statistics(statistics, group, groups, mean, all_low, all_m2, count, eps, True)


@triton.jit
def piece_outputs(
    x,
    weight,
    bias,
    residual,
    y,
    statistics,
    n,
    block,
    t,
    hw,
    x_n,
    r_n,
    groups,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
):
    """y of a piece."""
    row, p = tl.arange(0, R), tl.arange(0, P)
    c = block * R + row
    valid = c < C
    at = statistics + n * (C // D) + c // D
    mean = tl.load(at, mask=valid, other=0.0, cache_modifier=".cg")
    rstd = tl.load(at + groups, mask=valid, other=0.0, cache_modifier=".cg")
    shift = tl.load(at + 2 * groups, mask=valid, other=0.0, cache_modifier=".cg")
    w = of_channels(weight, c, valid, 1.0)
    b = shift * w + of_channels(bias, c, valid, 0.0)
    w *= rstd
    p0 = t * (P * STEPS)
    left = hw - p0
    base, tile = offsets(row, p, block * R, p0, hw, C, LAST)
    for _ in tl.range(0, tl.minimum(STEPS, (left + P - 1) // P), num_stages=STAGES):
        mask = valid[:, None] & (p < left)[None, :]
        xs = tl.load(
            x + (n * x_n * SV + base) + tile, mask=mask, other=0.0, eviction_policy="evict_first"
        )
        z = (xs.to(tl.float32) - mean[:, None]) * w[:, None] + b[:, None]
        if residual is not None:
            rs = tl.load(
                residual + (n * r_n * SV + base) + tile,
                mask=mask,
                other=0.0,
                eviction_policy="evict_first",
            )
            z += rs.to(tl.float32)
        tl.store(
            y + (n * hw * C + base) + tile,
            activate(z, ACT).to(y.dtype.element_ty),
            mask=mask,
            eviction_policy="evict_first",
        )
        base += P * C if LAST else P
        left -= P
