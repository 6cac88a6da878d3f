"""Time on the GPU alone: calls in a CUDA graph, on as many input sets as a cold cache takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from batchfree.bench.timing import Run, Samples

CACHES = ("warm", "cold")
_REPLAY_US, _MOST_CALLS = 1000.0, 40
_MOST_SETS = 20


def input_sets(bytes_of_call: int, cache: str) -> int:
    """How many sets of tensors exceed the L2 cache twice; one where it may be warm."""
    if cache == "warm":
        return 1
    room = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(2, min(_MOST_SETS, -(-room // max(bytes_of_call, 1))))


class Graphed:
    """Runs of a captured graph of calls, one after the other over the input sets.

    Attributes:
        calls: within one replay.
    """

    def __init__(self, runs: list[Run]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # PyTorch's advice: warm up on a side stream
            for run in runs[:2]:
                run(2)
            rounds = _REPLAY_US / max(_elapsed_us(runs[0]), 1.0) / len(runs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.calls = len(runs) * max(1, min(math.ceil(rounds), _MOST_CALLS // len(runs)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for i in range(self.calls):
                runs[i % len(runs)](1)

    def __call__(self, times: int) -> None:
        """Replays so many times."""
        for _ in range(times):
            self._graph.replay()


def _elapsed_us(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run(1)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def per_call(samples: Samples, function: Run | Callable[[int], None]) -> Samples:
    """Samples of replays as samples of calls."""
    if isinstance(function, Graphed):
        samples.times = [t / function.calls for t in samples.times]
        samples.calls *= function.calls
    return samples
