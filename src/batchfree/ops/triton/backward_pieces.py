"""The steps of the backward pass, of one piece or one group each.

With dz = dy * act'(z), and sums over a group's M elements:
dx = rstd * (gamma * dz - (S1 + xh * S2) / M), S1 = sum(gamma * dz), S2 = sum(gamma * dz * xh).
Sums of dz and of dz * xh lie in two planes, one after the other: those of pieces in the workspace,
those of a sample's channels in totals, which `parameters` adds up over samples.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from batchfree.ops.triton.activations import slope
from batchfree.ops.triton.tile import (
    normalise,
    of_channels,
    offsets,
    slot,
)


@triton.jit
def dz_of(dys, xh, w, b, rs, RESIDUAL: tl.constexpr, SIGN: tl.constexpr, ACT: tl.constexpr):
    """dz of a tile. rs is the residual, or the output, of which ReLU's gradient needs the sign."""
    if ACT == 0:
        return dys
    elif SIGN:
        return tl.where(rs > 0.0, dys, 0.0)
    else:
        z = xh * w[:, None] + b[:, None]
        if RESIDUAL:
            z += rs
        if ACT == 1:
            return tl.where(z > 0.0, dys, 0.0)
        else:
            return dys * slope(z, ACT)


@triton.jit
def piece_sums(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    workspace,
    n,
    block,
    t,
    hw,
    dy_n,
    x_n,
    r_n,
    chunks,
    plane,
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
    SIGN: tl.constexpr,
):
    """sum(dz) and sum(dz * xh) of a piece, for each of its R channels."""
    row, p = tl.arange(0, R), tl.arange(0, P)
    c = block * R + row
    valid = c < C
    at = statistics + n * (C // D) + c // D
    mean = tl.load(at, mask=valid, other=0.0)
    rstd = tl.load(at + groups, mask=valid, other=0.0)
    shift = tl.load(at + 2 * groups, mask=valid, other=0.0)
    w = of_channels(weight, c, valid, 1.0)
    b = of_channels(bias, c, valid, 0.0)
    p0 = t * (P * STEPS)
    left = hw - p0
    base, tile = offsets(row, p, block * R, p0, hw, C, LAST)
    sum_dz = tl.zeros((R, P), tl.float32)
    sum_dz_xh = tl.zeros((R, P), tl.float32)
    for _ in tl.range(0, tl.minimum(STEPS, (left + P - 1) // P), num_stages=STAGES):
        mask = valid[:, None] & (p < left)[None, :]
        xs = tl.load(x + (n * x_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
        dys = tl.load(dy + (n * dy_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
        rs = dys
        if residual is not None:
            rs = tl.load(residual + (n * r_n * SV + base) + tile, mask=mask, other=0.0)
            rs = rs.to(tl.float32)
        xh = normalise(xs, mean, rstd, shift)
        dz = dz_of(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
        # Past the end dy is 0, and so is dz.
        sum_dz += dz
        sum_dz_xh += dz * xh
        base += P * C if LAST else P
        left -= P
    here = workspace + slot(n, c, t, chunks, C, LAST)
    tl.store(here, tl.sum(sum_dz, 1), mask=valid)
    tl.store(here + plane, tl.sum(sum_dz_xh, 1), mask=valid)


@triton.jit
def group_sums(
    workspace,
    weight,
    totals,
    sums,
    group,
    hw,
    chunks,
    plane,
    groups,
    C: tl.constexpr,
    D: tl.constexpr,
    LAST: tl.constexpr,
    DP: tl.constexpr,
    T: tl.constexpr,
):
    """The sums of a sample's channels (totals), and S1 / M and S2 / M of their group.

    DP channels at a time, and T pieces of them.
    """
    d, j = tl.arange(0, DP), tl.arange(0, T)
    n = group // (C // D)
    c0 = (group % (C // D)).to(tl.int32) * D
    s1 = tl.zeros((DP,), tl.float32)
    s2 = tl.zeros((DP,), tl.float32)
    for first in range(0, D, DP):
        c = c0 + first + d
        valid = first + d < D
        dz = tl.zeros((DP, T), tl.float32)
        dz_xh = tl.zeros((DP, T), tl.float32)
        for start in range(0, chunks, T):
            t = start + j
            mask = valid[:, None] & (t < chunks)[None, :]
            at = workspace + slot(n, c[:, None], t[None, :], chunks, C, LAST)
            dz += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
            dz_xh += tl.load(at + plane, mask=mask, other=0.0, cache_modifier=".cg")
        sum_dz, sum_dz_xh = tl.sum(dz, 1), tl.sum(dz_xh, 1)
        if totals is not None:
            tl.store(totals + n * C + c, sum_dz, mask=valid)
            tl.store(totals + groups * D + n * C + c, sum_dz_xh, mask=valid)
        w = of_channels(weight, c, valid, 1.0)
        s1 += w * sum_dz
        s2 += w * sum_dz_xh
    count = hw.to(tl.float32) * D
    tl.store(sums + group, tl.sum(s1, 0) / count)
    tl.store(sums + groups + group, tl.sum(s2, 0) / count)


@triton.jit
def piece_gradients(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    sums,
    dx,
    dr,
    n,
    block,
    t,
    hw,
    dy_n,
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
    SIGN: tl.constexpr,
):
    """dx and dr of a piece."""
    row, p = tl.arange(0, R), tl.arange(0, P)
    c = block * R + row
    valid = c < C
    group = n * (C // D) + c // D
    mean = tl.load(statistics + group, mask=valid, other=0.0)
    rstd = tl.load(statistics + groups + group, mask=valid, other=0.0)
    shift = tl.load(statistics + 2 * groups + group, mask=valid, other=0.0)
    s1 = rstd * tl.load(sums + group, mask=valid, other=0.0, cache_modifier=".cg")
    s2 = rstd * tl.load(sums + groups + group, mask=valid, other=0.0, cache_modifier=".cg")
    w = of_channels(weight, c, valid, 1.0)
    b = of_channels(bias, c, valid, 0.0)
    p0 = t * (P * STEPS)
    left = hw - p0
    base, tile = offsets(row, p, block * R, p0, hw, C, LAST)
    for _ in tl.range(0, tl.minimum(STEPS, (left + P - 1) // P), num_stages=STAGES):
        mask = valid[:, None] & (p < left)[None, :]
        own = n * hw * C + base
        dys = tl.load(
            dy + (n * dy_n * SV + base) + tile, mask=mask, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        xs = tl.load(
            x + (n * x_n * SV + base) + tile, mask=mask, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        rs = dys
        if residual is not None:
            rs = tl.load(
                residual + (n * r_n * SV + base) + tile,
                mask=mask,
                other=0.0,
                eviction_policy="evict_first",
            ).to(tl.float32)
        xh = normalise(xs, mean, rstd, shift)
        dz = dz_of(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
        if dr is not None:
            tl.store(
                dr + own + tile,
                dz.to(dr.dtype.element_ty),
                mask=mask,
                eviction_policy="evict_first",
            )
        if dx is not None:
            dxs = (rstd * w)[:, None] * dz - (xh * s2[:, None] + s1[:, None])
            tl.store(
                dx + own + tile,
                dxs.to(dx.dtype.element_ty),
                mask=mask,
                eviction_policy="evict_first",
            )
        base += P * C if LAST else P
        left -= P
