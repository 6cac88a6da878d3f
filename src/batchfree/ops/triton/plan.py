"""Which kernels serve a call, on which tiles. No triton here: plain numbers from plain numbers.

What shapes the sums (the tile, and whether a program keeps whole groups) depends on the shape of a
sample, its dtype and its layout, never on the number of samples, so a sample's bits are the same
whatever its batch. Whether the two steps run apart or interleaved moves no bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """The numbers behind the choices, measured on an H200 (benchmarks/NOTES.md).

    Attributes:
        resident_forward: the most elements that a program keeps, padding included; half as many
            where channels come first.
        resident_backward: likewise, where x and dy are kept.
        resident_least: elements up to which a program that keeps groups takes more of them.
        resident_row: bytes of its tile's row of channels, channels last, where there are so many.
        lane_forward: elements that each of its lanes keeps.
        lane_backward: likewise.
        tile: elements that a program works on at a time, where it does not keep a group.
        warps: that work on such a tile.
        steps_forward: the most tiles of a program; up to 16, see `forward_kernels`.
        steps_backward: likewise.
        pieces: programs that a sample is cut into before a program takes more than one tile.
        cache: bytes from which on steps are interleaved; None: the device's L2 cache.
        lagging: the most bytes by which outputs may lag behind sums; None: the L2 cache.
        stages: tiles that a program loads ahead, plus one.
        row: bytes of a tile's row of channels, channels last.
        in_flight: pieces that a device has at work at once, by which outputs lag behind sums.
    """

    resident_forward: int = 32768
    resident_backward: int = 16384
    resident_least: int = 512
    resident_row: int = 32
    lane_forward: int = 64
    lane_backward: int = 32
    tile: int = 2048
    warps: int = 4
    steps_forward: int = 16
    steps_backward: int = 8
    pieces: int = 64
    cache: int | None = None
    lagging: int | None = None
    in_flight: int = 512
    stages: int = 4
    row: int = 128


LIMITS = Limits()


@dataclass(frozen=True)
class Sample:
    """What a sample is: C channels in groups of D, HW positions, bytes of an element, layout."""

    channels: int
    width: int
    positions: int
    item: int
    last: bool

    @property
    def groups(self) -> int:
        """Groups of a sample."""
        return self.channels // self.width

    @property
    def elements(self) -> int:
        """Elements of a sample."""
        return self.channels * self.positions


@dataclass(frozen=True)
class Resident:
    """Tiles of `K` whole groups of `DP` (padded) channels by `P` (padded) positions."""

    K: int
    DP: int
    P: int
    warps: int

    @property
    def elements(self) -> int:
        """Elements of a tile."""
        return self.K * self.DP * self.P

    def programs(self, sample: Sample) -> int:
        """Programs of a sample."""
        return -(-sample.groups // self.K)


@dataclass(frozen=True)
class Pieces:
    """Pieces of `R` channels by `steps` tiles of `P` positions."""

    R: int
    P: int
    steps: int
    stages: int
    warps: int

    @property
    def chunk(self) -> int:
        """Positions of a piece."""
        return self.P * self.steps

    def chunks(self, sample: Sample) -> int:
        """Pieces that the positions of a channel are cut into."""
        return -(-sample.positions // self.chunk)

    def blocks(self, sample: Sample) -> int:
        """Blocks of channels."""
        return -(-sample.channels // self.R)

    def unit(self, sample: Sample) -> int:
        """The fewest blocks that hold whole groups, the same number in each unit."""
        if sample.channels % self.R:
            return self.blocks(sample)
        return max(1, sample.width // self.R) if self._nests(sample) else self.blocks(sample)

    def _nests(self, sample: Sample) -> bool:
        return self.R % sample.width == 0 or sample.width % self.R == 0


def power(n: int) -> int:
    """The least power of two from n on."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def divides(*numbers: int) -> int:
    """The largest power of two up to 16 that divides all of them."""
    return math.gcd(16, *numbers)


def resident(sample: Sample, limits: Limits, most: int, lane: int) -> Resident | None:
    """The tile of programs that keep whole groups; None where a group is too large for that.

    Args:
        sample: what a sample is.
        limits: the numbers behind the choice.
        most: elements of a tile.
        lane: elements that a lane keeps.
    """
    dp, p, groups = power(sample.width), power(sample.positions), power(sample.groups)
    row = power(-(-limits.resident_row // (sample.width * sample.item)))
    k = min(groups, row) if sample.last else 1
    while k < groups and k * dp * p < limits.resident_least:
        k *= 2
    found = Resident(k, dp, p, warps=min(16, max(1, k * dp * p // (32 * lane))))
    far = sample.last and p * sample.channels >= 2**31  # offsets within a tile are int32
    return found if found.elements <= most and not far else None


def pieces(sample: Sample, limits: Limits, steps: int) -> Pieces:
    """The tiles of programs that share the work on a group."""
    if sample.last:
        most = limits.row // sample.item
        r = math.gcd(sample.channels, most)
        if r < most // 4:
            r = min(most, power(sample.channels))
        p = limits.tile // r
    else:
        # Rows of at least 256 positions, of channels of one group; where that makes a poor tile, of
        # as many as there are.
        p = min(256, limits.tile, power(sample.positions))
        r = math.gcd(sample.width, limits.tile // p)
        if r * power(sample.positions) < limits.tile // 4:
            r = min(power(sample.width), limits.tile // p)
        p = limits.tile // r
    p = min(p, power(sample.positions))
    tiles = sample.elements // (r * p)
    most = min(steps, -(-sample.positions // p))
    steps = max(1, min(most, tiles // limits.pieces))
    return Pieces(r, p, steps, limits.stages, max(1, min(limits.warps, r * p // 256)))


def with_limits(**changes: int | None) -> Limits:
    """Other limits, for tests and for tuning; the caller sets `LIMITS` to them."""
    return replace(LIMITS, **changes)  # type: ignore[arg-type]
