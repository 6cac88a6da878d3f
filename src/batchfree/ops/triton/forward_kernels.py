"""The forward kernels.

- `resident`: a program keeps whole groups in registers; x is read once.
- `moments`, `combine`, `apply`: each program takes a piece of some channels; x is read twice.
- `interleaved`: the same three steps of the same pieces in one launch, in an order in which the
  second read finds x in the L2 cache.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from batchfree.ops.triton.activations import activate
from batchfree.ops.triton.forward_pieces import (
    group_statistics,
    piece_moments,
    piece_outputs,
)
from batchfree.ops.triton.tile import (
    less,
    of_channels,
    offsets,
    over_groups,
    piece_of,
    store_statistics,
    ticketed,
    to_channels,
)

RUNTIME = ("hwv", "x_n", "r_n", "groups", "units", "lag", "eps")


@triton.jit(do_not_specialize=RUNTIME)
def resident(
    x,
    weight,
    bias,
    residual,
    y,
    statistics,
    hwv: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    DP: tl.constexpr,
    P: tl.constexpr,
    HV: tl.constexpr,
    SV: tl.constexpr,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
):
    """y and statistics of K groups, which the program keeps."""
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
    y_base = n * hw * C + base

    xs = tl.load(x + (n * x_n * SV + base) + tile, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        rs = tl.load(residual + (n * r_n * SV + base) + tile, mask=mask, other=0.0)
    count = (hw * D).to(tl.float32)
    mean = over_groups(tl.sum(xs, 1), K, DP) / count
    centred = tl.where(mask, xs - to_channels(mean, K, DP)[:, None], 0.0)
    low = over_groups(tl.sum(centred, 1), K, DP) / count
    m2 = less(over_groups(tl.sum(centred * centred, 1), K, DP), count * low * low)
    k = tl.arange(0, K)
    rstd, shift = store_statistics(
        statistics, n * G + g0 + k, groups, mean, low, m2, count, eps, g0 + k < G
    )
    w = of_channels(weight, g0 * D + c, valid, 1.0)
    b = to_channels(shift, K, DP) * w + of_channels(bias, g0 * D + c, valid, 0.0)
    z = centred * (to_channels(rstd, K, DP) * w)[:, None] + b[:, None]
    if residual is not None:
        z += rs.to(tl.float32)
    tl.store(y + y_base + tile, activate(z, ACT).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def moments(
    x,
    workspace,
    hwv: tl.int64,
    x_n: tl.int64,
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
):
    """First step: the moments of a piece."""
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    n, block, t, chunks = piece_of(tl.program_id(0), hw, BLOCKS, P * STEPS)
    plane = groups * D * chunks
    piece_moments(
        x, workspace, n, block, t, hw, x_n, chunks, plane, C, R, P, STEPS, STAGES, SV, LAST
    )


@triton.jit(do_not_specialize=RUNTIME)
def combine(
    workspace,
    statistics,
    hwv: tl.int64,
    groups: tl.int64,
    eps,
    C: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    E: tl.constexpr,
    HV: tl.constexpr,
):
    """Second step: the statistics of a group."""
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + CHUNK - 1) // CHUNK
    group = tl.program_id(0).to(tl.int64)
    plane = groups * D * chunks
    group_statistics(
        workspace, statistics, group, hw, chunks, plane, groups, eps, C, D, CHUNK, LAST, E
    )


@triton.jit(do_not_specialize=RUNTIME)
def apply(
    x,
    weight,
    bias,
    residual,
    y,
    statistics,
    hwv: tl.int64,
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
):
    """Third step: y of a piece."""
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    # Backwards: what `moments` read last is still in the cache.
    last = tl.num_programs(0) - 1
    n, block, t, _ = piece_of(last - tl.program_id(0), hw, BLOCKS, P * STEPS)
    piece_outputs(
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
        C,
        D,
        R,
        P,
        STEPS,
        STAGES,
        SV,
        LAST,
        ACT,
    )


@triton.jit(do_not_specialize=RUNTIME)
def interleaved(
    x,
    weight,
    bias,
    residual,
    y,
    statistics,
    workspace,
    counters,
    hwv: tl.int64,
    x_n: tl.int64,
    r_n: tl.int64,
    groups: tl.int64,
    units: tl.int64,
    lag: tl.int64,
    eps,
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
    UNIT: tl.constexpr,
    E: tl.constexpr,
):
    """Every piece twice: its moments, and `lag` pieces later its output.

    Programs take tickets, so a piece is waited for only by programs that started after the one
    that works on it: whatever the hardware runs at once, somebody moves on. A unit is the fewest
    blocks of channels (UNIT of them) that hold whole groups. Whoever finishes a unit's last piece
    combines it, in the same order as anybody else would.
    """
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
        piece_outputs(
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
            C,
            D,
            R,
            P,
            STEPS,
            STAGES,
            SV,
            LAST,
            ACT,
        )
    else:
        piece_moments(
            x, workspace, n, block, t, hw, x_n, chunks, plane, C, R, P, STEPS, STAGES, SV, LAST
        )
        tl.debug_barrier()
        if tl.atomic_add(done, 1, sem="acq_rel") == chunks * UNIT - 1:
            IN_UNIT: tl.constexpr = (R * UNIT) // D if BLOCKS > UNIT else C // D
            for g in range(0, IN_UNIT):
                group_statistics(
                    workspace,
                    statistics,
                    unit * IN_UNIT + g,
                    hw,
                    chunks,
                    plane,
                    groups,
                    eps,
                    C,
                    D,
                    P * STEPS,
                    LAST,
                    E,
                )
            tl.debug_barrier()
            tl.atomic_xchg(ready, 1, sem="release")
