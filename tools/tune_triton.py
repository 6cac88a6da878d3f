"""Times the Triton kernels under other limits (ops/triton/plan.py), each result checked.

usage: tune_triton.py <output.jsonl> [--shapes I,J,...] [--compile-only] [--variants NAME,...]

Device time is that of a CUDA graph over input sets that together exceed the L2 cache.
"""

# ruff: noqa: D101, D102, D103
import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batchfree.ops.activations import add_and_activate
from batchfree.ops.fused import CODES, backward_op, forward_op
from batchfree.ops.triton import backward, forward, launch, plan

# (shape, groups, activation, residual, layout)
SHAPES = [
    ((1, 128, 20, 256, 256), 32, "silu", False, "contiguous"),
    ((1, 128, 20, 256, 256), 32, "silu", False, "channels_last"),
    ((32, 256, 56, 56), 32, "relu", False, "contiguous"),
    ((32, 256, 56, 56), 32, "relu", True, "channels_last"),
    ((32, 64, 112, 112), 32, "relu", False, "channels_last"),
    ((32, 1024, 14, 14), 32, "relu", True, "channels_last"),
    ((32, 512, 7, 7), 32, "relu", False, "channels_last"),
    ((8, 128, 28, 28), 32, "relu", False, "channels_last"),
    ((2, 320, 64, 64), 32, "silu", False, "contiguous"),
    ((2, 1280, 16, 16), 32, "silu", False, "contiguous"),
    ((1, 128, 512, 512), 32, "silu", False, "contiguous"),
    ((2, 64, 400, 672), 32, "relu", False, "channels_last"),
    ((1024, 256, 7, 7), 32, "relu", False, "contiguous"),
    ((2, 256, 100, 168), 32, None, False, "channels_last"),
    ((32, 1024, 14, 14), 32, "relu", True, "contiguous"),
    ((2, 320, 64, 64), 32, "silu", False, "channels_last"),
    ((32, 256, 56, 56), 32, "relu", True, "contiguous"),
]
BIG = 1 << 60
APART = dict(resident_forward=0, resident_backward=0, cache=BIG)
LAGGING = dict(APART, cache=0, lagging=BIG)


def tile(tile: int, warps: int, steps: int, stages: int, **more: int) -> dict[str, int]:
    more |= dict(steps_forward=steps, steps_backward=steps)
    return dict(tile=tile, warps=warps, stages=stages, **more)


VARIANTS = {
    "default": {},
    "pieces": APART,
    "pieces of 16": dict(APART, pieces=16),
    "pieces of 64": dict(APART, pieces=64),
    "pieces of 128": dict(APART, pieces=128),
    "pieces of 256": dict(APART, pieces=256),
    "pieces of 512": dict(APART, pieces=512),
    "resident from 256": dict(resident_least=256),
    "resident from 1024": dict(resident_least=1024),
    "resident from 2048": dict(resident_least=2048),
    "resident of 16 a lane": dict(lane_forward=16, lane_backward=16),
    "resident of 32 a lane": dict(lane_forward=32, lane_backward=32),
    "resident of 64 a lane": dict(lane_forward=64, lane_backward=64),
    "resident in rows of 64": dict(resident_row=64),
    "pieces 2048/4x16 3": APART | tile(2048, 4, 16, 3),
    "pieces 4096/8x8 3": APART | tile(4096, 8, 8, 3),
    "pieces 64B": dict(APART, row=64),
    "lagging 128": dict(LAGGING, in_flight=128),
    "lagging 256": dict(LAGGING, in_flight=256),
    "lagging 512": dict(LAGGING, in_flight=512),
    "lagging 1024": dict(LAGGING, in_flight=1024),
    "lagging 2048/4x8 3 512": LAGGING | tile(2048, 4, 8, 3, in_flight=512),
    "lagging 2048/4x8 4 1024": LAGGING | tile(2048, 4, 8, 4, in_flight=1024),
    "lagging 4096/8x8 3 256": LAGGING | tile(4096, 8, 8, 3, in_flight=256),
}


def limits(changes: dict[str, int]) -> None:
    plan.LIMITS = plan.Limits(**changes)
    forward._plan_forward.cache_clear()
    backward._plan_backward.cache_clear()


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return t
    last = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
    return t.contiguous(memory_format=last)


def device_us(calls: list[Callable[[], object]], repetitions: int = 12) -> float:
    """Median microseconds of one of the calls, captured in a graph together."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repetitions + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


class Case:
    def __init__(
        self,
        shape: tuple[int, ...],
        groups: int,
        activation: str | None,
        residual: bool,
        layout: str,
    ) -> None:
        self.name = f"{shape} {activation} {'+r ' * residual}{layout}"
        numel = torch.Size(shape).numel()
        sets = max(2, min(40, -(-240_000_000 // (numel * 6))))
        self.groups, self.code, self.activation = groups, CODES[activation], activation

        def normal() -> Tensor:
            return laid_out(torch.randn(shape, device="cuda").bfloat16(), layout)

        self.x = [normal() for _ in range(sets)]
        self.dy = [normal() for _ in range(sets)]
        self.r = [normal() if residual else None for _ in range(sets)]
        self.w = torch.randn(shape[1], device="cuda") + 1
        self.b = torch.randn(shape[1], device="cuda")
        self.floor = dict(
            forward=(2 + residual) * numel * 2,
            backward=(5 if residual and activation else 3) * numel * 2,
        )

    def forward(self, i: int) -> tuple[Tensor, Tensor]:
        return forward_op(self.x[i], self.w, self.b, self.r[i], self.groups, 1e-5, self.code)

    def backward(self, i: int, y: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
        sign = self.activation == "relu" and self.r[i] is not None
        return backward_op(
            self.dy[i],
            self.x[i],
            self.w,
            self.b,
            None if sign else self.r[i],
            y if sign else None,
            statistics,
            self.groups,
            self.code,
            0,
            13 | (2 if self.r[i] is not None else 0),
        )

    def errors(self) -> dict[str, float]:
        y, statistics = self.forward(0)
        got = (y, *self.backward(0, y, statistics))
        leaves = [t.double().requires_grad_() for t in (self.x[0], self.w, self.b)]
        z = F.group_norm(leaves[0].contiguous(), self.groups, leaves[1], leaves[2])
        r = None if self.r[0] is None else self.r[0].double()
        want = add_and_activate(z, r, self.activation)
        dx, dw, db = torch.autograd.grad(want, leaves, self.dy[0].double())
        pairs = dict(y=(got[0], want), dx=(got[1], dx), dw=(got[3], dw), db=(got[4], db))
        return {k: ((a.double() - b).norm() / b.norm()).item() for k, (a, b) in pairs.items()}

    def time(self) -> dict[str, float]:
        kept = [self.forward(i) for i in range(len(self.x))]
        several = range(len(self.x))
        return dict(
            forward=device_us([partial(self.forward, i) for i in several]),
            backward=device_us([partial(self.backward, i, *kept[i]) for i in several]),
        )

    def parts(self) -> dict[str, float]:
        """Microseconds of each launch of a forward in pieces, and of a backward."""
        found: dict[str, float] = {}
        step: Any = launch.Step.__call__

        def timed(own: Any, device: Any, *args: Any) -> Any:
            if own._kernel.__name__ == "interleaved":  # its counters serve once
                return step(own, device, *args)
            again = [lambda: step(own, device, *args)] * 4
            found[own._kernel.fn.__qualname__ + own._kernel.fn.__module__[-16:-8]] = round(
                device_us(again), 1
            )

        y, statistics = self.forward(0)
        self.backward(0, y, statistics)
        launch.Step.__call__ = timed  # type: ignore[method-assign, assignment]
        self.backward(0, *self.forward(0))
        launch.Step.__call__ = step  # type: ignore[method-assign]
        return found

    def eager(self) -> float:
        def call(i: int) -> Tensor:
            w, b = self.w.bfloat16(), self.b.bfloat16()
            y = F.group_norm(self.x[i].contiguous(), self.groups, w, b)
            return add_and_activate(y, self.r[i], self.activation)

        return device_us([partial(call, i) for i in range(len(self.x))])

    def copy(self) -> float:
        out = torch.empty_like(self.x[0])
        return device_us([partial(out.copy_, t) for t in self.x])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--shapes")
    parser.add_argument("--variants")
    parser.add_argument("--parts", default="")
    parser.add_argument("--compile-only", action="store_true")
    options = parser.parse_args()
    chosen = list(range(len(SHAPES)))
    if options.shapes:
        chosen = [int(i) for i in options.shapes.split(",")]
    names = options.variants.split(",") if options.variants else list(VARIANTS)
    for index in chosen:
        case = Case(*SHAPES[index])
        if not options.compile_only:
            copy, eager = case.copy(), case.eager()
            print(f"\n{index} {case.name}: copy {copy:.1f} us, eager forward {eager:.1f} us")
        for name in names:
            limits(VARIANTS[name])
            try:
                errors = case.errors()
                if options.compile_only:
                    continue
                times = case.time()
            except Exception as error:  # report it, time the others
                print(f"  {name:28} {type(error).__name__} {str(error)[:100]}")
                continue
            rates = {k: case.floor[k] / t / 1e6 for k, t in times.items()}
            bad = {k: v for k, v in errors.items() if not v < 4e-3}
            row = dict(shape=index, variant=name, errors=errors, copy=copy, eager=eager, **times)
            with options.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"  {name:24} fwd {times['forward']:7.1f} us {rates['forward']:5.2f} TB/s"
                f"  bwd {times['backward']:7.1f} us {rates['backward']:5.2f} TB/s"
                f"{'  WRONG ' + str(bad) if bad else ''}"
                f"{case.parts() if name in options.parts.split(',') else ''}",
                flush=True,
            )
        del case
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
