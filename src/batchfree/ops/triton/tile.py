"""A tile of channels by positions: where its elements lie, and how groups are summed over it.

Both layouts share every kernel: an element (c, p) of a sample lies at c * HW + p, channels last at
p * C + c. The compiler sees which of the two runs along memory.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offsets(c, p, c0, p0, hw, C: tl.constexpr, LAST: tl.constexpr):
    """Where element (c0 + c, p0 + p) of a sample lies: (int64 scalar, int32 tile)."""
    if LAST:
        base = p0.to(tl.int64) * C + c0
        return base, p[None, :] * C + c[:, None]
    else:
        base = c0.to(tl.int64) * hw + p0
        return base, c[:, None] * hw + p[None, :]


@triton.jit
def slot(n, c, t, chunks, C: tl.constexpr, LAST: tl.constexpr):
    """Where a workspace holds what piece t found of channel c; neighbours as in x's memory."""
    if LAST:
        return (n * chunks + t) * C + c
    else:
        return (n * C + c) * chunks + t


@triton.jit
def entry(group, i, chunks, C: tl.constexpr, D: tl.constexpr, LAST: tl.constexpr):
    """Entry i of a group's channels and pieces: (slot, channel, piece)."""
    n = group // (C // D)
    c0 = (group % (C // D)).to(tl.int32) * D
    if LAST:
        c, t = c0 + i % D, i // D
    else:
        c, t = c0 + i // chunks, i % chunks
    return slot(n, c, t, chunks, C, LAST), c, t


@triton.jit
def of_channels(pointer, c, valid, default: tl.constexpr):
    """A value for each channel, in float32; the default where there is no such parameter."""
    if pointer is None:
        return tl.full(c.shape, default, tl.float32)
    else:
        return tl.load(pointer + c, mask=valid, other=default).to(tl.float32)


@triton.jit
def over_groups(rows, K: tl.constexpr, DP: tl.constexpr):
    """(K * DP,) -> (K,): sums over the channels of each group."""
    return tl.sum(tl.reshape(rows, (K, DP)), 1)


@triton.jit
def to_channels(values, K: tl.constexpr, DP: tl.constexpr):
    """(K,) -> (K * DP,): the group's value for each of its channels."""
    return tl.reshape(tl.broadcast_to(values[:, None], (K, DP)), (K * DP,))


@triton.jit
def normalise(x, mean, rstd, shift):
    """xh of a tile from its channels' (mean, rstd, shift), as `statistics` holds them."""
    return (x - mean[:, None]) * rstd[:, None] + shift[:, None]


@triton.jit
def less(m2, correction):
    """m2 - correction; where squares overflow both are infinite, and m2 stays so."""
    return tl.where(m2 < float("inf"), m2 - correction, m2)


@triton.jit
def store_statistics(statistics, group, groups, mean, low, m2, count, eps, valid):
    """Writes (mean, rstd, shift) of groups whose mean is mean + low, two floats for one number."""
    variance = m2 / count
    variance = tl.where(variance < 0.0, 0.0, variance)  # NaN passes
    rstd = 1.0 / tl.sqrt_rn(variance + eps)
    shift = -low * rstd
    tl.store(statistics + group, mean, mask=valid)
    tl.store(statistics + groups + group, rstd, mask=valid)
    tl.store(statistics + 2 * groups + group, shift, mask=valid)
    return rstd, shift


@triton.jit
def ticketed(ticket, pieces, lag):
    """Whether a ticket is for the second step, and for which piece: the first `lag` are for the
    first step, the last `lag` for the second, those between for the two in turns."""
    k = ticket - lag
    between = 2 * (pieces - lag)
    second = (k >= between) | ((k >= 0) & (k % 2 == 1))
    of_second = tl.where(k < between, k // 2, ticket - pieces)
    of_first = tl.where(k < 0, ticket, lag + k // 2)
    return second, tl.where(second, of_second, of_first)


@triton.jit
def piece_of(index, hw, BLOCKS: tl.constexpr, CHUNK: tl.constexpr):
    """Sample, block of channels and chunk of positions of a piece, and the number of chunks."""
    chunks = (hw + CHUNK - 1) // CHUNK
    n = (index // chunks // BLOCKS).to(tl.int64)
    return n, (index // chunks % BLOCKS).to(tl.int32), (index % chunks).to(tl.int32), chunks
