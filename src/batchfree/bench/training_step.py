"""A ResNet-50 training step with fused GN, eager GN and BN, and what each keeps for its backward.

Needs `batchfree[train]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.bench import device_time
from batchfree.bench.networks import EAGER, MODELS, build
from batchfree.bench.results import StepRow
from batchfree.bench.runner import threads, timed
from batchfree.bench.timing import Run, Samples, interleave, reason


def run_training_step(
    record: Callable[[list[StepRow]], None],
    *,
    network: str = "resnet50",
    batch: int = 4,
    size: int = 224,
    layouts: Sequence[str] = ("contiguous",),
    precision: str = "float32",
    clock: str = "host",
    repetitions: int = 10,
    budget: float = math.inf,
    device: str = "cpu",
    thread_count: int | None = None,
) -> None:
    """Times forward, backward and an SGD step of the three networks, interleaved.

    Args:
        record: takes the rows of a layout.
        network: one of `NETWORKS`.
        batch: images in a step.
        size: pixels of their sides.
        layouts: `contiguous`, `channels_last`.
        precision: `float32`, or `bfloat16` by autocast.
        clock: `host`; `device`, where a step is a CUDA graph, without the host's work; `both`.
        repetitions: steps of each network.
        budget: seconds, shared by layouts and clocks; at least a few repetitions are made.
        device: `cpu` or `cuda`.
        thread_count: PyTorch's threads; None leaves them as they are.
    """
    clocks = ("host", "device") if clock == "both" else (clock,)
    seconds = budget / len(layouts) / len(clocks)
    with threads(thread_count):
        for layout in layouts:
            steps: dict[str, Step] = {}
            failed: dict[str, Samples] = {}
            for name in MODELS:
                try:
                    torch.manual_seed(0)
                    steps[name] = Step(name, network, batch, size, layout, precision, device)
                except (RuntimeError, ValueError) as error:  # BN of a single value, for one
                    failed[name] = Samples(failure=reason(error))
            for each in clocks:
                samples = _timed_steps(steps, each, repetitions, seconds, device) | failed
                record(
                    [
                        StepRow(
                            **timed(samples[name], samples.get(EAGER), device),  # type: ignore[arg-type]
                            model=name,
                            network=network,
                            batch=batch,
                            size=size,
                            layout=layout,
                            saved_bytes=steps[name].saved_bytes if name in steps else None,
                            precision=precision,
                            peak_bytes=steps[name].peak_bytes if name in steps else None,
                            clock=each,
                        )
                        for name in MODELS
                    ]
                )


def _timed_steps(
    steps: dict[str, Step], clock: str, repetitions: int, seconds: float, device: str
) -> dict[str, Samples]:
    functions: dict[str, Run] = {}
    failed: dict[str, Samples] = {}
    for name, step in steps.items():
        try:
            functions[name] = device_time.Graphed([step.run]) if clock == "device" else step.run
        except Exception as error:  # a step that asks the host cannot be captured
            failed[name] = Samples(failure=reason(error))
    samples = interleave(functions, repetitions=repetitions, seconds=seconds, device=device)
    return {n: device_time.per_call(s, functions[n]) for n, s in samples.items()} | failed


class Step:
    """A network with its optimizer and one batch of random inputs.

    Attributes:
        saved_bytes: of the distinct storages that a forward keeps for the backward.
        peak_bytes: the most memory allocated in a step beyond weights and momentum; None on a CPU,
            where nobody counts it.
    """

    def __init__(
        self,
        model: str,
        network: str,
        batch: int,
        size: int,
        layout: str,
        precision: str,
        device: str,
    ) -> None:
        last = layout == "channels_last"
        memory_format = torch.channels_last if last else torch.contiguous_format
        built, self._inputs, self._lose = build(network, model, batch, size)
        self.model = built.to(device).to(memory_format=memory_format).train()
        self._inputs = _moved(self._inputs, device, memory_format)
        self._autocast = partial(
            torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16"
        )
        self._device = device
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.saved_bytes = self._count_saved()
        self.peak_bytes = self._count_peak()

    def run(self, times: int) -> None:
        """Makes so many steps."""
        for _ in range(times):
            self.optimizer.zero_grad(set_to_none=True)
            self._loss().backward()
            self.optimizer.step()

    def _loss(self) -> Tensor:
        with self._autocast():
            return self._lose(self.model, *self._inputs)

    def _count_peak(self) -> int | None:
        if self._device != "cuda":
            return None
        self.run(2)
        self.optimizer.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.run(1)
        return torch.cuda.max_memory_allocated() - before

    def _count_saved(self) -> int:
        with _kept_storages(self.model) as kept:
            loss = self._loss()
            found = sum(kept.values())
        del loss
        return found


def _moved(value: Any, device: str, memory_format: torch.memory_format) -> Any:
    """Tensors in lists, tuples and dicts, on the device; images in the memory format."""
    if isinstance(value, Tensor):
        moved = value.to(device)
        return moved.contiguous(memory_format=memory_format) if moved.dim() == 4 else moved
    if isinstance(value, dict):
        return {name: _moved(item, device, memory_format) for name, item in value.items()}
    return [_moved(item, device, memory_format) for item in value]


@contextmanager
def _kept_storages(model: nn.Module) -> Iterator[dict[int, int]]:
    """Address to bytes of each storage that autograd saves inside of the block.

    Every storage counts once, however many tensors view it; parameters and buffers, which live
    whether there is a backward or not, do not count.
    """
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that saved its own output would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
