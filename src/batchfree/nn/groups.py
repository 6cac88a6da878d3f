"""`Groups`: one policy for how many groups a layer's channels are split into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchfree._checks import check_choice, divisors, nearest_divisors

OnIndivisible = Literal["nearest", "gcd", "error"]


@dataclass(frozen=True)
class Groups:
    """How many groups the channels of a layer are split into, for any number of channels.

    Wish for a number of groups or for a number of channels per group, not both; with neither the
    wish is the paper's 32 groups (Table 3 of Wu & He 2018 compares both kinds).

    Args:
        num_groups: the number of groups wished for.
        channels_per_group: the number of channels in a group wished for.
        on_indivisible: what to do where the wish does not divide the channels: `"nearest"` takes
            the nearest divisor (of two equally near, the one with the larger groups), `"gcd"` the
            greatest common divisor of wish and channels (Opacus' rule), `"error"` raises.
        min_elements_per_group: fewest values (channels times positions) that a group may hold;
            where the wish gives fewer, groups are merged until it holds. A layer's constructor
            knows no positions, so there it bounds the channels per group.

    Raises:
        ValueError: a wish that is not positive, or both wishes at once.

    Example:
        >>> Groups(32).resolve(256), Groups(32).resolve(80)
        (32, 40)
        >>> Groups(channels_per_group=16).resolve(80)
        5
        >>> Groups(32, min_elements_per_group=16).resolve(64, positions=1)
        4
    """

    num_groups: int | None = None
    channels_per_group: int | None = None
    on_indivisible: OnIndivisible = "nearest"
    min_elements_per_group: int = 1

    def __post_init__(self) -> None:
        if self.num_groups is not None and self.channels_per_group is not None:
            raise ValueError(
                "Groups takes num_groups or channels_per_group, not both; got "
                f"num_groups={self.num_groups}, channels_per_group={self.channels_per_group}"
            )
        if self.num_groups is None and self.channels_per_group is None:
            object.__setattr__(self, "num_groups", 32)
        for name in ("num_groups", "channels_per_group", "min_elements_per_group"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        check_choice(self.on_indivisible, ("nearest", "gcd", "error"), "on_indivisible")

    def resolve(self, num_channels: int, positions: int = 1) -> int:
        """The number of groups for a layer of `num_channels` channels.

        Args:
            num_channels: the layer's channels.
            positions: the spatial positions of its input (H times W), where they are known; they
                count only towards `min_elements_per_group`.

        Raises:
            ValueError: the wish does not divide the channels under `on_indivisible="error"`, or no
                division satisfies `min_elements_per_group`.
        """
        for name, value in (("num_channels", num_channels), ("positions", positions)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.num_groups is not None:
            groups = self._divide(num_channels, self.num_groups, "groups")
        else:
            assert self.channels_per_group is not None
            per_group = self._divide(num_channels, self.channels_per_group, "channels per group")
            groups = num_channels // per_group
        allowed = [
            g
            for g in divisors(num_channels)
            if g <= groups and num_channels // g * positions >= self.min_elements_per_group
        ]
        if not allowed:
            raise ValueError(
                f"no split of {num_channels} channels at {positions} position(s) leaves "
                f"{self.min_elements_per_group} elements per group: one group holds "
                f"{num_channels * positions}; lower min_elements_per_group to that"
            )
        return allowed[-1]

    def _divide(self, num_channels: int, wish: int, what: str) -> int:
        if num_channels % wish == 0:
            return wish
        near = nearest_divisors(num_channels, wish)
        if self.on_indivisible == "error":
            raise ValueError(
                f"{num_channels} channels do not split by {wish} {what}; the nearest that divide "
                f"are {' and '.join(map(str, near))} (or on_indivisible='nearest')"
            )
        if self.on_indivisible == "gcd":
            return math.gcd(num_channels, wish)
        larger_groups_first = near if what == "groups" else near[::-1]
        return min(larger_groups_first, key=lambda d: abs(d - wish))
