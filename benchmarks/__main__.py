"""`make bench`: group_norm with its activation against PyTorch's own calls, and BatchNorm.

Repetitions are interleaved, so that a busy machine slows every peer alike; ratios are medians of
the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import batchfree
from batchfree.experiments.machine import commit, machine, versions

SHAPES = {
    "ResNet-50 stage 1, batch 2": (2, 64, 56, 56),
    "ResNet-50 stage 3, batch 2": (2, 256, 14, 14),
    "digits, batch 32": (32, 16, 16, 16),
    "UNet, batch 2": (2, 320, 64, 64),
}
GROUPS = 16


def peers(shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """Name to one forward and backward of norm + SiLU."""
    x = torch.randn(shape, requires_grad=True)
    dy = torch.randn(shape)
    weight = torch.ones(shape[1], requires_grad=True)
    bias = torch.zeros(shape[1], requires_grad=True)
    mean, variance = torch.zeros(shape[1]), torch.ones(shape[1])

    def step(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(forward(), (x, weight, bias), dy)

        return run

    return {
        "torch group_norm + silu": step(lambda: F.silu(F.group_norm(x, GROUPS, weight, bias))),
        "batchfree.group_norm": step(
            lambda: batchfree.group_norm(x, GROUPS, weight, bias, activation="silu")
        ),
        "torch batch_norm + silu": step(
            lambda: F.silu(F.batch_norm(x, mean, variance, weight, bias, training=True))
        ),
    }


def measure(shape: tuple[int, ...], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each peer, repetition by repetition."""
    functions = peers(shape)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: values[3:] for name, values in times.items()}


def main() -> None:
    """Prints the table; writes it with commit and machine where --json names a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, shape in SHAPES.items():
        times = measure(shape, options.repetitions)
        baseline = times["torch group_norm + silu"]
        for peer, values in times.items():
            ratio = statistics.median(b / v for b, v in zip(baseline, values, strict=True))
            deciles = statistics.quantiles(values, n=10)
            rows.append(
                {
                    "case": name,
                    "shape": shape,
                    "peer": peer,
                    "median_ms": statistics.median(values),
                    "p10_ms": deciles[0],
                    "p90_ms": deciles[-1],
                    "times_as_fast_as_torch_group_norm": ratio,
                }
            )
            print(f"{name:<28}{peer:<26}{statistics.median(values):8.3f} ms  {ratio:5.2f}x")
    if options.json:
        record = {
            "what": "forward + backward of norm + SiLU, float32, contiguous",
            "threads": options.threads,
            "repetitions": options.repetitions,
            "commit": commit(),
            "versions": versions(),
            "machine": machine(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
