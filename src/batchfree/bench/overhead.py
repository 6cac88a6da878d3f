"""Host overhead by itself: microseconds of a call on a tensor with hardly any work in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.bench.results import OverheadRow
from batchfree.bench.runner import threads, timed
from batchfree.bench.timing import Run, interleave
from batchfree.nn import GroupNorm
from batchfree.ops import group_norm

SHAPE, GROUPS = (1, 32, 2, 2), 8
MODES = ("forward, no_grad", "forward", "forward+backward")
SUBJECTS = (
    "eager group_norm",
    "nn.GroupNorm",
    "batchfree.group_norm",
    "batchfree.GroupNorm",
    "eager group_norm + relu",
    "batchfree.group_norm(relu)",
    "batchfree.GroupNorm(relu)",
    "eager batch_norm + relu",
)


def run_overhead(
    record: Callable[[list[OverheadRow]], None],
    *,
    repetitions: int = 50,
    budget: float = math.inf,
    device: str = "cpu",
    thread_count: int | None = None,
    modes: Sequence[str] = MODES,
) -> None:
    """Times every way to call a norm, mode by mode, interleaved.

    Args:
        record: takes the rows of a mode.
        repetitions: at most so many samples of each.
        budget: seconds, shared by the modes; at least a few repetitions are made.
        device: `cpu` or `cuda`.
        thread_count: PyTorch's threads; None leaves them as they are.
        modes: of `MODES`.
    """
    with threads(thread_count):
        for mode in modes:
            x = torch.randn(SHAPE, device=device, requires_grad=mode != MODES[0])
            calls = dict(zip(SUBJECTS, _calls(x), strict=True))
            samples = interleave(
                {name: _step(call, x, mode) for name, call in calls.items()},
                repetitions=repetitions,
                seconds=budget / len(modes),
                device=device,
                sample_us=2000,
            )
            record(
                [
                    OverheadRow(
                        **timed(own, samples[_baseline(name)], device),  # type: ignore[arg-type]
                        subject=name,
                        mode=mode,
                        shape=SHAPE,
                    )
                    for name, own in samples.items()
                ]
            )


def _baseline(name: str) -> str:
    return SUBJECTS[4 if "relu" in name else 0]


def _calls(x: Tensor) -> tuple[Callable[[], Tensor], ...]:
    """A call for each of `SUBJECTS`."""
    channels, grad = x.shape[1], x.requires_grad
    weight = torch.ones(channels, device=x.device, requires_grad=grad)
    bias = torch.zeros(channels, device=x.device, requires_grad=grad)
    mean, variance = torch.zeros(channels, device=x.device), torch.ones(channels, device=x.device)
    plain = GroupNorm(GROUPS, channels, device=x.device).requires_grad_(grad)
    fused = GroupNorm(GROUPS, channels, activation="relu", device=x.device).requires_grad_(grad)
    torch_module = nn.GroupNorm(GROUPS, channels, device=x.device).requires_grad_(grad)

    def batch_norm_relu() -> Tensor:
        y = F.batch_norm(x, mean, variance, weight, bias, training=True)
        return F.relu(y, inplace=True)

    return (
        lambda: F.group_norm(x, GROUPS, weight, bias),
        lambda: torch_module(x),
        lambda: group_norm(x, GROUPS, weight, bias),
        lambda: plain(x),
        lambda: F.relu(F.group_norm(x, GROUPS, weight, bias), inplace=True),
        lambda: group_norm(x, GROUPS, weight, bias, activation="relu"),
        lambda: fused(x),
        batch_norm_relu,
    )


def _step(call: Callable[[], Tensor], x: Tensor, mode: str) -> Run:
    dy = torch.ones_like(x)

    def forward(times: int) -> None:
        with torch.set_grad_enabled(mode != MODES[0]):
            for _ in range(times):
                call()

    def forward_backward(times: int) -> None:
        for _ in range(times):
            # Parameters' gradients too: backward() fills .grad, and is what a training calls.
            call().backward(dy)

    return forward_backward if mode == MODES[2] else forward
