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
from batchfree.ops.triton.tile import (
    entry,
    less,
    of_channels,
    offsets,
    over_groups,
    slot,
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


@triton.jit
def _moments(
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
def _combine(
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
def _apply(
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
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + P * STEPS - 1) // (P * STEPS)
    pid = tl.program_id(0)
    t = pid % chunks
    block = pid // chunks % BLOCKS
    n = (pid // chunks // BLOCKS).to(tl.int64)
    plane = groups * D * chunks
    _moments(x, workspace, n, block, t, hw, x_n, chunks, plane, C, R, P, STEPS, STAGES, SV, LAST)


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
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + CHUNK - 1) // CHUNK
    group = tl.program_id(0).to(tl.int64)
    plane = groups * D * chunks
    _combine(workspace, statistics, group, hw, chunks, plane, groups, eps, C, D, CHUNK, LAST, E)


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
    BLOCKS: tl.constexpr = (C + R - 1) // R
    hw = hwv.to(tl.int32) * HV
    chunks = (hw + P * STEPS - 1) // (P * STEPS)
    # Backwards: what `moments` read last is still in the cache.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    t = pid % chunks
    block = pid // chunks % BLOCKS
    n = (pid // chunks // BLOCKS).to(tl.int64)
    _apply(
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
        _moments(
            x, workspace, n, block, t, hw, x_n, chunks, plane, C, R, P, STEPS, STAGES, SV, LAST
        )
        tl.debug_barrier()
        if tl.atomic_add(done, 1, sem="acq_rel") == chunks * UNIT - 1:
            IN_UNIT: tl.constexpr = (R * UNIT) // D if BLOCKS > UNIT else C // D
            for g in range(0, IN_UNIT):
                _combine(
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
