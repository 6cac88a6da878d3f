"""Interleaved timing: every repetition runs each function once, in an order that rotates."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Run = Callable[[int], None]

SAMPLE_US = 200.0
"""A sample lasts at least about so long; shorter calls are repeated within it."""
LEAST_REPETITIONS = 5
_WARM_UP_SECONDS, _WARM_UP_CALLS = 0.03, 3
_MOST_CALLS = 10_000


@dataclass
class Samples:
    """Microseconds of one call, one value a repetition.

    Attributes:
        times: in order of repetitions.
        calls: calls within a sample.
        failure: why the function could not be timed to the end; None where it could.
    """

    times: list[float] = field(default_factory=list)
    calls: int = 1
    failure: str | None = None


@dataclass(frozen=True)
class Spread:
    """Median, tenth and ninetieth percentile."""

    median: float
    p10: float
    p90: float


def spread(values: list[float]) -> Spread:
    """The spread of at least one value."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low, part = math.floor(place), place % 1
        return ordered[low] + part * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

    return Spread(statistics.median(ordered), quantile(0.1), quantile(0.9))


def ratios(baseline: Samples, other: Samples) -> Spread | None:
    """baseline / other within each repetition; None where one of them failed."""
    if baseline.failure or other.failure or not other.times:
        return None
    return spread([a / b for a, b in zip(baseline.times, other.times, strict=True)])


def interleave(
    functions: Mapping[str, Run],
    *,
    repetitions: int,
    seconds: float = math.inf,
    device: str = "cpu",
    sample_us: float = SAMPLE_US,
) -> dict[str, Samples]:
    """Times functions in turns, so that a busy machine slows all of them alike.

    Args:
        functions: name to a function that makes as many calls as it is told.
        repetitions: at most so many samples of each.
        seconds: stop after so long, but not before `LEAST_REPETITIONS`.
        device: `cpu` by the wall clock, `cuda` by events on the current stream.
        sample_us: the least microseconds of a sample.

    Returns:
        Samples by name. A function that raises is reported as failed, the others go on.
    """
    if not functions:
        return {}
    clock = _cuda_clock if device == "cuda" else _wall_clock
    found = {name: _warm_up(run, clock, sample_us) for name, run in functions.items()}
    end = time.perf_counter() + seconds
    with _no_garbage_collection():
        for repetition in range(repetitions):
            if repetition >= LEAST_REPETITIONS and time.perf_counter() > end:
                break
            names = list(functions)
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                samples = found[name]
                if samples.failure is None:
                    try:
                        elapsed = clock(functions[name], samples.calls)
                    except Exception as error:
                        samples.failure = reason(error)
                    else:
                        samples.times.append(elapsed / samples.calls)
    return found


def reason(error: BaseException) -> str:
    """An error as a line of moderate length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _warm_up(run: Run, clock: Callable[[Run, int], float], sample_us: float) -> Samples:
    """Calls until caches, thread pools and compilers have settled, and sizes the samples."""
    try:
        run(1)
        end, calls, least = time.perf_counter() + _WARM_UP_SECONDS, 1, math.inf
        while calls < _WARM_UP_CALLS or (time.perf_counter() < end and calls < _MOST_CALLS):
            least = min(least, clock(run, 1))
            calls += 1
    except Exception as error:
        return Samples(failure=reason(error))
    return Samples(calls=min(max(math.ceil(sample_us / max(least, 1e-3)), 1), _MOST_CALLS))


def _wall_clock(run: Run, calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return (time.perf_counter() - start) * 1e6


def _cuda_clock(run: Run, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run(calls)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
