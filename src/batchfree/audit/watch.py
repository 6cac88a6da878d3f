"""Watching a model's BatchNorms while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchfree.audit.static import BATCH_KINDS, channel_moments, kind_of
from batchfree.audit.tree import tensors


@dataclass(frozen=True)
class LayerRecord:
    """What one BatchNorm saw in one forward of training.

    Attributes:
        module: the layer's name.
        samples: the normalisation batch: samples that its statistics were taken over.
        elements: values that each statistic was taken over.
        mean_drift: mean over channels of |batch mean - running mean| / running standard deviation.
        variance_drift: mean over channels of |log(batch variance / running variance)|.
        gap: root mean square of the difference between its normalised output with the batch's
            statistics and with the running ones: the layer's train/eval gap on this batch.
    """

    module: str
    samples: int
    elements: int
    mean_drift: float
    variance_drift: float
    gap: float


Record = Callable[[list[LayerRecord]], Any]


@contextmanager
def watch(model: nn.Module, record: Record, every: int = 1) -> Iterator[None]:
    """Hands on what each training BatchNorm sees, once every so many forwards of the model.

    Only reads: outputs, statistics and gradients are those without it. Layers in eval mode, and
    those without running statistics, are passed over.

    Args:
        model: the network.
        record: told a `LayerRecord` for each layer after a forward.
        every: forwards from one record to the next.

    Raises:
        ValueError: `every` is not positive.

    Source: Wu & He, "Group Normalization", 2018, section 1: the inconsistency of BN between
    training and testing.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> seen = []
        >>> with watch(model, seen.extend):
        ...     _ = model(torch.randn(4, 3, 8, 8))
        >>> seen[0].module, seen[0].samples, seen[0].elements
        ('1', 4, 144)
    """
    check_every(every)
    forwards = 0

    def start(module: nn.Module, args: Any) -> None:
        watcher.take()  # of a forward that raised
        watcher.active = module.training and forwards % every == 0

    def end(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal forwards
        forwards += module.training
        watcher.active = False  # checkpointed parts run again in the backward
        found = watcher.take()
        if found:
            record(found)

    with Watcher(model) as watcher:
        # First of all: the model may itself be a BatchNorm, whose own hook looks whether to look.
        handles = [
            model.register_forward_pre_hook(start, prepend=True),
            model.register_forward_hook(end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def check_every(every: object) -> None:
    """Raises ValueError unless `every` is a positive int."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a positive number of forwards, got {every!r}")


class Watcher:
    """Looks at the BatchNorms' inputs while `active`; for those who know where a step begins.

    Args:
        model: the network; hooks are on it from `__enter__` to `__exit__`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.active = model, False
        self._found: list[LayerRecord] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Watcher:
        for name, module in self.model.named_modules():
            kind = kind_of(module, False)
            if kind in BATCH_KINDS and kind != "FrozenBatchNorm":
                hook = self._look(name)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> list[LayerRecord]:
        """What was seen since the last time."""
        found, self._found = self._found, []
        return found

    def _look(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.active and module.training and module.running_mean is not None:
                self._found.append(_record(name, module, next(tensors((args, kwargs)))))

        return hook


def _workers(module: nn.Module) -> int:
    """Processes that the statistics are taken over; of their values this process knows its own."""
    if not isinstance(module, nn.SyncBatchNorm) or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size(module.process_group)


@torch.no_grad()
def _record(name: str, module: Any, x: torch.Tensor) -> LayerRecord:
    samples = min(x.shape[0], getattr(module, "normalization_batch", None) or x.shape[0])
    workers = _workers(module)
    mean, variance = channel_moments(x[:samples])
    running_mean, running_var = module.running_mean.double(), module.running_var.double()
    scale = (running_var + module.eps).sqrt()
    drift = (mean - running_mean) / scale
    ratio = (variance + module.eps).sqrt() / scale
    # With z the normalised value: z * (1 - ratio) - drift, whose mean square this is.
    gap = ((1 - ratio).square() + drift.square()).mean().sqrt()
    return LayerRecord(
        module=name,
        samples=samples * workers,
        elements=samples * workers * x[0, 0].numel(),
        mean_drift=drift.abs().mean().item(),
        variance_drift=(2 * ratio.log()).abs().mean().item(),
        gap=gap.item(),
    )
