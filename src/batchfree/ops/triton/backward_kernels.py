"""The backward kernels, in the same three ways as the forward ones.

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
    over_groups,
    slot,
    ticketed,
    to_channels,
)

RUNTIME = ("hwv", "dy_n", "x_n", "r_n", "groups", "units", "lag", "per_split")


@triton.jit
def _dz(dys, xh, w, b, rs, RESIDUAL: tl.constexpr, SIGN: tl.constexpr, ACT: tl.constexpr):
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


@triton.jit(do_not_specialize=RUNTIME)
def resident(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    dx,
    dr,
    totals,
    hwv: tl.int64,
    dy_n: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    C: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    DP: tl.constexpr,
    P: tl.constexpr,
    HV: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
    SIGN: tl.constexpr,
):
    G: tl.constexpr = C // D
    BLOCKS: tl.constexpr = (G + K - 1) // K
    pid = tl.program_id(0)
    n = (pid // BLOCKS).to(tl.int64)
    g0 = (pid % BLOCKS) * K
    hw = hwv.to(tl.int32) * HV

    row = tl.arange(0, K * DP)
    if DP == D:
        c = row
        valid = row < (G - g0) * D
    else:
        c = row // DP * D + row % DP
        valid = (row % DP < D) & (g0 + row // DP < G)
    p = tl.arange(0, P)
    mask = valid[:, None] & (p < hw)[None, :]
    base, tile = offsets(c, p, g0 * D, 0 * g0, hw, C, LAST)
    own = n * hw * C + base

    xs = tl.load(x + (n * x_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
    dys = tl.load(dy + (n * dy_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
    rs = dys
    if residual is not None:
        rs = tl.load(residual + (n * r_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
    at = statistics + n * G + g0 + row // DP
    mean = tl.load(at, mask=valid, other=0.0)
    rstd = tl.load(at + groups, mask=valid, other=0.0)
    shift = tl.load(at + 2 * groups, mask=valid, other=0.0)
    w = of_channels(weight, g0 * D + c, valid, 1.0)
    b = of_channels(bias, g0 * D + c, valid, 0.0)
    xh = normalise(xs, mean, rstd, shift)
    dz = _dz(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
    if dr is not None:
        tl.store(dr + own + tile, dz.to(dr.dtype.element_ty), mask=mask)
    sum_dz = tl.sum(dz, 1)
    sum_dz_xh = tl.sum(dz * xh, 1)
    if totals is not None:
        here = totals + n * C + g0 * D + c
        tl.store(here, sum_dz, mask=valid)
        tl.store(here + groups * D, sum_dz_xh, mask=valid)
    if dx is not None:
        count = (hw * D).to(tl.float32)
        s1 = rstd * to_channels(over_groups(sum_dz * w, K, DP) / count, K, DP)
        s2 = rstd * to_channels(over_groups(sum_dz_xh * w, K, DP) / count, K, DP)
        dxs = (rstd * w)[:, None] * dz - (xh * s2[:, None] + s1[:, None])
        tl.store(dx + own + tile, dxs.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _sums(
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
        dz = _dz(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
        # Past the end dy is 0, and so is dz.
        sum_dz += dz
        sum_dz_xh += dz * xh
        base += P * C if LAST else P
        left -= P
    here = workspace + slot(n, c, t, chunks, C, LAST)
    tl.store(here, tl.sum(sum_dz, 1), mask=valid)
    tl.store(here + plane, tl.sum(sum_dz_xh, 1), mask=valid)


@triton.jit
def _combine(
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
    """The sums of a sample's channels (totals), and S1 / M and S2 / M of their group."""
    d, j = tl.arange(0, DP), tl.arange(0, T)
    n = group // (C // D)
    c = (group % (C // D)).to(tl.int32) * D + d
    valid = d < D
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
    count = hw.to(tl.float32) * D
    tl.store(sums + group, tl.sum(w * sum_dz, 0) / count)
    tl.store(sums + groups + group, tl.sum(w * sum_dz_xh, 0) / count)


@triton.jit
def _apply(
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
        dz = _dz(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
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


@triton.jit(do_not_specialize=RUNTIME)
def sums(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    workspace,
    hwv: tl.int64,
    dy_n: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    HV: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
    SIGN: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + P * STEPS - 1) // (P * STEPS)
    pid = tl.program_id(0)
    t = pid % chunks
    block = pid // chunks % BLOCKS
    n = (pid // chunks // BLOCKS).to(tl.int64)
    _sums(
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
        groups * D * chunks,
        groups,
        C,
        D,
        R,
        P,
        STEPS,
        STAGES,
        SV,
        LAST,
        ACT,
        SIGN,
    )


@triton.jit(do_not_specialize=RUNTIME)
def combine(
    workspace,
    weight,
    totals,
    sums,
    hwv: tl.int64,
    groups: tl.int64,
    C: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    HV: tl.constexpr,
    DP: tl.constexpr,
    T: tl.constexpr,
):
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + CHUNK - 1) // CHUNK
    group = tl.program_id(0).to(tl.int64)
    plane = groups * D * chunks
    _combine(workspace, weight, totals, sums, group, hw, chunks, plane, groups, C, D, LAST, DP, T)


@triton.jit(do_not_specialize=RUNTIME)
def apply(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    sums,
    dx,
    dr,
    hwv: tl.int64,
    dy_n: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    HV: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
    SIGN: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + P * STEPS - 1) // (P * STEPS)
    # Backwards: what `sums` read last is still in the cache.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    t = pid % chunks
    block = pid // chunks % BLOCKS
    n = (pid // chunks // BLOCKS).to(tl.int64)
    _apply(
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
        C,
        D,
        R,
        P,
        STEPS,
        STAGES,
        SV,
        LAST,
        ACT,
        SIGN,
    )


@triton.jit(do_not_specialize=RUNTIME)
def interleaved(
    dy,
    x,
    weight,
    bias,
    residual,
    statistics,
    sums,
    dx,
    dr,
    workspace,
    totals,
    counters,
    hwv: tl.int64,
    dy_n: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    units: tl.int64,
    lag: tl.int64,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    HV: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
    SIGN: tl.constexpr,
    UNIT: tl.constexpr,
    DP: tl.constexpr,
    T: tl.constexpr,
):
    """Every piece twice: its sums, and `lag` pieces later its gradient; as in the forward."""
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + P * STEPS - 1) // (P * STEPS)
    plane = groups * D * chunks
    pieces = (tl.num_programs(0) // 2).to(tl.int64)
    ticket = tl.atomic_add(counters, 1, sem="relaxed").to(tl.int64)
    applies, piece = ticketed(ticket, pieces, lag)
    t = (piece % chunks).to(tl.int32)
    block = (piece // chunks % BLOCKS).to(tl.int32)
    n = piece // chunks // BLOCKS
    unit = piece // chunks // UNIT
    done = counters + 1 + unit
    ready = counters + 1 + units + unit
    if applies:
        while tl.atomic_add(ready, 0, sem="acquire") == 0:
            pass
        _apply(
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
            C,
            D,
            R,
            P,
            STEPS,
            STAGES,
            SV,
            LAST,
            ACT,
            SIGN,
        )
    else:
        _sums(
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
            C,
            D,
            R,
            P,
            STEPS,
            STAGES,
            SV,
            LAST,
            ACT,
            SIGN,
        )
        tl.debug_barrier()
        if tl.atomic_add(done, 1, sem="acq_rel") == chunks * UNIT - 1:
            IN_UNIT: tl.constexpr = (R * UNIT) // D if BLOCKS > UNIT else C // D
            for g in range(0, IN_UNIT):
                _combine(
                    workspace,
                    weight,
                    totals,
                    sums,
                    unit * IN_UNIT + g,
                    hw,
                    chunks,
                    plane,
                    groups,
                    C,
                    D,
                    LAST,
                    DP,
                    T,
                )
            tl.debug_barrier()
            tl.atomic_xchg(ready, 1, sem="release")


@triton.jit(do_not_specialize=RUNTIME)
def parameters(
    totals,
    dweight,
    dbias,
    samples: tl.int64,
    per_split: tl.int64,
    C: tl.constexpr,
    CB: tl.constexpr,
    NB: tl.constexpr,
):
    """dweight and dbias of CB channels, over a run of `per_split` samples, added in float64."""
    BLOCKS: tl.constexpr = (C + CB - 1) // CB
    pid = tl.program_id(0)
    split = (pid // BLOCKS).to(tl.int64)
    c = pid % BLOCKS * CB + tl.arange(0, CB)
    i = tl.arange(0, NB)
    dw = tl.zeros((NB, CB), tl.float64)
    db = tl.zeros((NB, CB), tl.float64)
    for first in range(0, per_split, NB):
        mask = (first + i < per_split)[:, None] & (c < C)[None, :]
        at = totals + (split * per_split + first + i)[:, None] * C + c[None, :]
        db += tl.load(at, mask=mask, other=0.0)
        dw += tl.load(at + samples * C, mask=mask, other=0.0)
    out = split * C + c
    if dweight is not None:
        total = tl.sum(dw, 0).to(tl.float32)
        tl.store(dweight + out, total.to(dweight.dtype.element_ty), mask=c < C)
    if dbias is not None:
        total = tl.sum(db, 0).to(tl.float32)
        tl.store(dbias + out, total.to(dbias.dtype.element_ty), mask=c < C)
