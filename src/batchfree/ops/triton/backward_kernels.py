"""The backward kernels, in the same three ways as the forward ones."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from batchfree.ops.triton.backward_pieces import (
    dz_of,
    group_sums,
    piece_gradients,
    piece_sums,
)
from batchfree.ops.triton.tile import (
    normalise,
    of_channels,
    offsets,
    over_groups,
    piece_of,
    ticketed,
    to_channels,
)

RUNTIME = ("hwv", "dy_n", "x_n", "r_n", "groups", "units", "lag")


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
    """Every gradient of K groups, which the program keeps."""
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
    dz = dz_of(dys, xh, w, b, rs, residual is not None, SIGN, ACT)
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
    """First step: the sums of a piece."""
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    n, block, t, chunks = piece_of(tl.program_id(0), hw, BLOCKS, P * STEPS)
    piece_sums(
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
    """Second step: the sums of a group."""
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + CHUNK - 1) // CHUNK
    group = tl.program_id(0).to(tl.int64)
    plane = groups * D * chunks
    group_sums(workspace, weight, totals, sums, group, hw, chunks, plane, groups, C, D, LAST, DP, T)


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
    """Third step: dx and dr of a piece."""
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    # Backwards: what `sums` read last is still in the cache.
    last = tl.num_programs(0) - 1
    n, block, t, _ = piece_of(last - tl.program_id(0), hw, BLOCKS, P * STEPS)
    piece_gradients(
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
    pieces = (tl.num_programs(0) // 2).to(tl.int64)
    ticket = tl.atomic_add(counters, 1, sem="relaxed").to(tl.int64)
    applies, piece = ticketed(ticket, pieces, lag)
    n, block, t, chunks = piece_of(piece, hw, BLOCKS, P * STEPS)
    plane = groups * D * chunks
    unit = piece // chunks // UNIT
    done = counters + 1 + unit
    ready = counters + 1 + units + unit
    if applies:
        while tl.atomic_add(ready, 0, sem="acquire") == 0:
            pass
        piece_gradients(
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
        piece_sums(
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
                group_sums(
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
