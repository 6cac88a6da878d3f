"""What a module is: the kinds that can mix samples or carry batch state, and what to do about them.

By class, without running anything. Wrapped and derived classes count as what they derive from; the
frozen BatchNorms of other libraries share no class with ours, so they go by their name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from batchfree.audit.report import Layer
from batchfree.nn import FrozenBatchNorm, Groups

# Of torchvision, detectron2, timm and others.
_FROZEN = ("FrozenBatchNorm",)

KINDS = {
    "BatchNorm": "batch statistics in training, running ones in eval",
    "BatchNorm without running statistics": "batch statistics in training and in eval",
    "BatchNorm in eval": "stands in eval mode inside a model in training",
    "SyncBatchNorm": "statistics of all workers' batches in training",
    "FrozenBatchNorm": "an affine map of stored statistics",
    "InstanceNorm with running statistics": "per sample in training, running statistics in eval",
    "InstanceNorm": "per sample and channel",
    "GroupNorm": "per sample and group",
    "LayerNorm": "per sample",
    "RMSNorm": "per sample",
    "LocalResponseNorm": "per sample and position",
}
"""Every kind with what it takes its statistics from."""

BATCH_KINDS = tuple(kind for kind in KINDS if "Batch" in kind)


@dataclass(frozen=True)
class Known:
    """A module whose class says what it does."""

    name: str
    module: nn.Module
    kind: str


def kind_of(module: nn.Module, model_trains: bool) -> str | None:
    """The kind of a module, or None where its class says nothing."""
    name = type(module).__name__
    if isinstance(module, FrozenBatchNorm) or name.startswith(_FROZEN):
        return "FrozenBatchNorm"
    if isinstance(module, _InstanceNorm):
        return "InstanceNorm" + " with running statistics" * module.track_running_stats
    if isinstance(module, (_BatchNorm, _LazyNormBase)):
        if isinstance(module, nn.SyncBatchNorm):
            return "SyncBatchNorm"
        if not module.track_running_stats:
            return "BatchNorm without running statistics"
        return "BatchNorm in eval" if model_trains and not module.training else "BatchNorm"
    for kind, classes in (
        ("GroupNorm", nn.GroupNorm),
        ("LayerNorm", nn.LayerNorm),
        ("RMSNorm", nn.RMSNorm),
        ("LocalResponseNorm", nn.LocalResponseNorm),
    ):
        if isinstance(module, classes):
            return kind
    return None


def known_modules(model: nn.Module) -> Iterator[Known]:
    """The modules of a known kind, each once, in the order of `named_modules`."""
    for name, module in model.named_modules():
        kind = kind_of(module, model.training)
        if kind is not None:
            yield Known(name, module, kind)


def layer_of(known: Known, policy: Groups) -> Layer:
    """The row of the layer table, as far as the class tells."""
    module = known.module
    channels = _channels(module)
    groups = getattr(module, "num_groups", None)
    if groups is None and channels and known.kind in BATCH_KINDS:
        groups = policy.resolve(channels)
    return Layer(
        module=known.name,
        type=type(module).__name__,
        kind=known.kind,
        channels=channels,
        affine=getattr(module, "weight", None) is not None,
        training=module.training,
        groups=groups,
    )


def _channels(module: nn.Module) -> int | None:
    for name in ("num_features", "num_channels"):
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 0:
            return value
    running = getattr(module, "running_mean", None)
    return None if running is None else int(running.shape[0])


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of x, (N, C, *), in float64: what a BatchNorm takes."""
    variance, mean = torch.var_mean(x.detach().transpose(0, 1).flatten(1).double(), 1, correction=0)
    return mean, variance


def advice_for(kind: str | None, groups: int | None) -> tuple[str, str]:
    """What to do about coupling that enters at a module of this kind, and why."""
    if kind in ("BatchNorm", "BatchNorm without running statistics", "BatchNorm in eval"):
        return (
            f"convert to GroupNorm with {groups} groups; or freeze it where it was trained before "
            "and the task is near; or, to study it, set its normalization_batch"
            if groups
            else "convert to GroupNorm, or freeze it",
            "BatchNorm's error rises as its batch shrinks (Wu & He 2018, section 4.1, figure 5)",
        )
    if kind == "SyncBatchNorm":
        return (
            f"keep it where the workers' batches together stay large, else convert to GroupNorm "
            f"with {groups} groups",
            "synchronising moves the problem from one worker's batch to all workers' (Wu & He "
            "2018, section 2)",
        )
    if kind is not None:
        return ("look at how the module is called", "this kind normalises each sample alone")
    return (
        "take the statistic over a sample's own channels and positions, or, where the loss needs "
        "other samples, keep it out of the network's forward",
        "the module's own code mixes samples",
    )
