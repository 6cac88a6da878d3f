"""Runs peers on settings, interleaved, and hands on each row as soon as it is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from batchfree.bench import allocator, device_time
from batchfree.bench.inputs import Setting, make_inputs
from batchfree.bench.peers import DEFAULT, EAGER, FLOOR, make_peer, serving_backend
from batchfree.bench.results import KernelRow
from batchfree.bench.timing import Run, Samples, interleave, ratios, reason, spread

SETTING_SECONDS = 6.0
"""Seconds after which a setting's repetitions end early."""


@dataclass(frozen=True)
class Limits:
    """How much to time.

    Attributes:
        repetitions: at most so many of each setting.
        budget: seconds for all settings; those that it does not reach are left out.
        threads: PyTorch's threads; None leaves them as they are.
        clock: `host` or `device`, as in `KernelRow`.
        cache: `warm` or `cold`, likewise.
    """

    repetitions: int = 30
    budget: float = math.inf
    threads: int | None = None
    clock: str = "host"
    cache: str = "warm"


def run_kernels(
    settings: Sequence[Setting],
    record: Callable[[list[KernelRow]], None],
    *,
    peers: Sequence[str] = DEFAULT,
    limits: Limits,
) -> int:
    """Times every peer on every setting.

    Args:
        settings: what to run, in order.
        record: takes the rows of a setting when it is done.
        peers: names of peers.
        limits: repetitions, seconds and threads.

    Returns:
        The number of settings that the budget left out.
    """
    end = time.perf_counter() + limits.budget
    with threads(limits.threads):
        for rank, setting in enumerate(settings):
            left = end - time.perf_counter()
            if left <= 0:
                return len(settings) - rank
            seconds = min(SETTING_SECONDS, left / (len(settings) - rank))
            record(run_setting(setting, peers, limits, seconds))
    return 0


def run_setting(
    setting: Setting, peers: Sequence[str], limits: Limits, seconds: float = SETTING_SECONDS
) -> list[KernelRow]:
    """A row for each peer on one setting."""
    on_device = limits.clock == "device"
    try:
        sets = device_time.input_sets(setting.floor_bytes, limits.cache) if on_device else 1
        inputs = [make_inputs(setting) for _ in range(sets)]
    except (RuntimeError, MemoryError) as error:
        failed = Samples(failure=reason(error))
        return [_row(setting, peer, None, {peer: failed}, limits) for peer in peers]
    functions: dict[str, Run] = {}
    failed_peers: dict[str, Samples] = {}
    backends: dict[str, str | None] = {}
    for peer in peers:
        try:
            function = make_peer(peer, setting)
            runs = [function(several) for several in inputs]
            functions[peer] = device_time.Graphed(runs) if on_device else runs[0]
            backends[peer] = serving_backend(peer, inputs[0])
        except Exception as error:
            functions.pop(peer, None)
            failed_peers[peer] = Samples(failure=reason(error))
    samples = interleave(
        functions, repetitions=limits.repetitions, seconds=seconds, device=setting.device
    )
    samples = {name: device_time.per_call(s, functions[name]) for name, s in samples.items()}
    samples |= failed_peers
    return [_row(setting, peer, backends.get(peer), samples, limits) for peer in peers]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads of PyTorch inside of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(samples: Samples, baseline: Samples | None, device: str) -> dict[str, object]:
    """The fields that every row has."""
    ok = samples.failure is None and samples.times
    own = spread(samples.times) if ok else None
    against = ratios(baseline, samples) if baseline is not None else None
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "allocator": allocator.current(),
        "repetitions": len(samples.times) if ok else 0,
        "calls": samples.calls,
        "median_us": own and own.median,
        "p10_us": own and own.p10,
        "p90_us": own and own.p90,
        "ratio": against and against.median,
        "ratio_p10": against and against.p10,
        "ratio_p90": against and against.p90,
        "failure": samples.failure,
    }


def _row(
    setting: Setting,
    peer: str,
    backend: str | None,
    samples: dict[str, Samples],
    limits: Limits,
) -> KernelRow:
    case, own = setting.case, samples[peer]
    floors = ratios(own, samples[FLOOR]) if FLOOR in samples else None
    return KernelRow(
        **timed(own, samples.get(EAGER), setting.device),  # type: ignore[arg-type]
        suite=setting.suite,
        case=case.name,
        shape=case.shape,
        groups=case.groups,
        activation=case.activation,
        residual=case.residual,
        count=case.count,
        dtype=setting.dtype,
        layout=setting.layout,
        mode=setting.mode,
        parameters=setting.parameters,
        bytes=setting.bytes,
        floor_bytes=setting.floor_bytes,
        peer=peer,
        backend=backend,
        floors=None if floors is None else floors.median,
        clock=limits.clock,
        cache=limits.cache,
    )
