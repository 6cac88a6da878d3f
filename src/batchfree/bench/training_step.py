"""A ResNet-50 training step with fused GN, eager GN and BN, and what each keeps for its backward.

Needs `batchfree[train]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from batchfree.bench.results import StepRow
from batchfree.bench.runner import threads, timed
from batchfree.bench.timing import Run, Samples, interleave, reason
from batchfree.models import build_model
from batchfree.nn import norm_layer

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101")
MODELS = FUSED, EAGER, BATCH_NORM = ("fused GN", "eager GN", "BN")
GROUPS = 32


def run_training_step(
    record: Callable[[list[StepRow]], None],
    *,
    network: str = "resnet50",
    batch: int = 4,
    size: int = 224,
    layouts: Sequence[str] = ("contiguous",),
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
        repetitions: steps of each network.
        budget: seconds, shared by the layouts; at least a few repetitions are made.
        device: `cpu` or `cuda`.
        thread_count: PyTorch's threads; None leaves them as they are.
    """
    with threads(thread_count):
        for layout in layouts:
            functions, kept = {}, {}
            failed: dict[str, Samples] = {}
            for name in MODELS:
                try:
                    torch.manual_seed(0)
                    step = _Step(_build(name, network), batch, size, layout, device)
                    kept[name] = step.saved_bytes()
                    functions[name] = step.run
                except (RuntimeError, ValueError) as error:  # BN of a single value, for one
                    failed[name] = Samples(failure=reason(error))
            samples = interleave(
                functions,
                repetitions=repetitions,
                seconds=budget / len(layouts),
                device=device,
            )
            samples = {**samples, **failed}
            record(
                [
                    StepRow(
                        **timed(samples[name], samples.get(EAGER), device),  # type: ignore[arg-type]
                        model=name,
                        network=network,
                        batch=batch,
                        size=size,
                        layout=layout,
                        saved_bytes=kept.get(name),
                    )
                    for name in MODELS
                ]
            )


def _build(name: str, network: str) -> nn.Module:
    """Ours with fused norms, or torchvision's, whose ReLU works in place."""
    if name == FUSED:
        return build_model(network, norm=norm_layer("gn", groups=GROUPS))
    build = getattr(torchvision.models, network)
    if name == BATCH_NORM:
        return build()
    return build(norm_layer=lambda channels: nn.GroupNorm(GROUPS, channels))


class _Step:
    """A network with its optimizer and one batch of random images."""

    def __init__(self, model: nn.Module, batch: int, size: int, layout: str, device: str) -> None:
        memory_format = (
            torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        self.model = model.to(device).to(memory_format=memory_format).train()
        images = torch.randn(batch, 3, size, size, device=device)
        self.images = images.contiguous(memory_format=memory_format)
        self.labels = torch.randint(1000, (batch,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.run: Run = self._run

    def _run(self, times: int) -> None:
        for _ in range(times):
            self.optimizer.zero_grad(set_to_none=True)
            self._loss().backward()
            self.optimizer.step()

    def _loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.images), self.labels)

    def saved_bytes(self) -> int:
        """Bytes of the distinct storages that a forward keeps for the backward."""
        with _kept_storages(self.model) as kept:
            loss = self._loss()
            found = sum(kept.values())
        del loss
        return found


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
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
