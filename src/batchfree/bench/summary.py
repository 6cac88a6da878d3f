"""Rows to the figures that are claimed: geometric means of ratios, the worst case, the floor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchfree.bench.results import KernelRow


@dataclass(frozen=True)
class Group:
    """One peer over the cases of a suite that differ in shape only.

    Attributes:
        suite, fusion, dtype, layout, mode, parameters, device, threads, allocator: what the cases
            share.
        peer: whose rows these are.
        cases: how many were timed.
        failed: how many could not be.
        mean: geometric mean of the ratios to eager, so that 2 is twice as fast; None without one.
        least: the lowest ratio, and `least_case`, the case that gave it.
        network: sum over the cases of count x eager's time, over the same sum of this peer's: how
            much faster all norms of the network are together.
        floors: geometric mean of the time over the floor's.
        most_floors: the largest of them.
    """

    suite: str
    fusion: str
    dtype: str
    layout: str
    mode: str
    parameters: str
    device: str
    threads: int
    allocator: str
    peer: str
    cases: int
    failed: int
    mean: float | None
    least: float | None
    least_case: str
    network: float | None
    floors: float | None
    most_floors: float | None


def summarize(rows: Iterable[KernelRow]) -> list[Group]:
    """A group for each suite, fusion, dtype, layout, mode, device and peer, in order of rows."""
    found: dict[tuple[object, ...], list[KernelRow]] = {}
    eager: dict[tuple[object, ...], float | None] = {}
    for row in rows:
        found.setdefault(_key(row), []).append(row)
        if row.peer == "eager":
            eager[row.setting] = row.median_us
    return [_group(several, eager) for several in found.values()]


def geometric_mean(values: Sequence[float]) -> float | None:
    """None without values, or where one is zero."""
    if not values or min(values) <= 0:
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


@dataclass(frozen=True)
class Layouts:
    """channels_last beside channels first: geometric mean and lowest of time ratios.

    `mean` is contiguous time over channels_last time, so that 1 or more says that channels_last is
    no slower. The two were timed one after the other, not interleaved.
    """

    suite: str
    fusion: str
    dtype: str
    mode: str
    peer: str
    cases: int
    mean: float
    least: float


def compare_layouts(rows: Iterable[KernelRow]) -> list[Layouts]:
    """For each suite, fusion, dtype, mode and peer that ran in both layouts."""
    times: dict[tuple[object, ...], dict[str, float]] = {}
    for row in rows:
        if row.median_us is not None:
            key = (*_key(row, layout=False), row.case, row.shape)
            times.setdefault(key, {})[row.layout] = row.median_us
    found: dict[tuple[object, ...], list[float]] = {}
    for key, both in times.items():
        if len(both) == 2:
            ratio = both["contiguous"] / both["channels_last"]
            found.setdefault(key[:-2], []).append(ratio)
    return [
        Layouts(
            *(str(key[rank]) for rank in (0, 1, 2, 3, -1)),  # type: ignore[misc,arg-type]
            cases=len(ratios),
            mean=geometric_mean(ratios) or 0.0,
            least=min(ratios),
        )
        for key, ratios in found.items()
    ]


def _key(row: KernelRow, layout: bool = True) -> tuple[object, ...]:
    where = (row.parameters, row.device, row.threads, row.allocator, row.peer)
    named = (row.suite, row.fusion, row.dtype)
    return (*named, *((row.layout,) if layout else ()), row.mode, *where)


def _group(rows: list[KernelRow], eager: dict[tuple[object, ...], float | None]) -> Group:
    first = rows[0]
    ratios = {row.ratio: row for row in rows if row.ratio is not None}
    floors = [row.floors for row in rows if row.floors is not None]
    least = min(ratios, default=None)
    own = baseline = 0.0
    for row in rows:
        other = eager.get(row.setting)
        if row.median_us is not None and other is not None:
            own += row.count * row.median_us
            baseline += row.count * other
    return Group(
        suite=first.suite,
        fusion=first.fusion,
        dtype=first.dtype,
        layout=first.layout,
        mode=first.mode,
        parameters=first.parameters,
        device=first.device,
        threads=first.threads,
        allocator=first.allocator,
        peer=first.peer,
        cases=sum(row.median_us is not None for row in rows),
        failed=sum(row.failure is not None for row in rows),
        mean=geometric_mean([row.ratio for row in rows if row.ratio is not None]),
        least=least,
        least_case="" if least is None else "x".join(map(str, ratios[least].shape)),
        network=baseline / own if own else None,
        floors=geometric_mean(floors),
        most_floors=max(floors, default=None),
    )
