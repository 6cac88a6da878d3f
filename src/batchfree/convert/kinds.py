"""The BatchNorms of a model: what each is, what it does after its norm, what takes its place."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree._errors import DataError
from batchfree.audit.static import kind_of
from batchfree.convert.layers import ConvertedNorm
from batchfree.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, FrozenBatchNorm, GroupNorm
from batchfree.nn import SyncBatchNorm as OurSyncBatchNorm
from batchfree.nn.batch_norm import _ChunkedBatchNorm

_PLAIN = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
_OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d, OurSyncBatchNorm, FrozenBatchNorm)


@dataclass(frozen=True)
class Source:
    """A BatchNorm that can be converted.

    Attributes:
        module: the layer.
        kind: as `batchfree.audit` names it.
        channels: how many it normalises.
        eps: added to its variances.
        activation: of this package's layers.
        then: names of the child modules that it applies after its norm, in turn.
    """

    module: nn.Module
    kind: str
    channels: int
    eps: float
    activation: str | None
    then: tuple[str, ...]

    @property
    def weight(self) -> Tensor:
        """Gamma, ones where it has none."""
        return self._vector("weight", 1.0)

    @property
    def bias(self) -> Tensor:
        """Beta, zeros where it has none."""
        return self._vector("bias", 0.0)

    @property
    def running_mean(self) -> Tensor | None:
        """(C,), None where none is kept."""
        return getattr(self.module, "running_mean", None)

    @property
    def running_var(self) -> Tensor | None:
        """(C,), None where none is kept."""
        return getattr(self.module, "running_var", None)

    @property
    def affine(self) -> bool:
        """Whether it has a gamma or beta of its own."""
        return any(getattr(self.module, n, None) is not None for n in ("weight", "bias"))

    @property
    def never_ran(self) -> bool:
        """Whether its running statistics stand as they were made: mean 0, variance 1."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None or mean.is_meta:
            return False
        return bool((mean == 0).all() and (variance == 1).all())

    def _vector(self, name: str, value: float) -> Tensor:
        found = getattr(self.module, name, None)
        if found is not None:
            return found.detach()
        like = next((t for t in (self.running_var, *self.module.parameters()) if t is not None), 0)
        options: dict[str, Any] = {}
        if isinstance(like, Tensor):
            options = {"device": like.device, "dtype": like.dtype}
        return torch.full((self.channels,), value, **options)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of any kind, frozen ones of other libraries included."""
    kind = kind_of(module, False)
    return kind is not None and "Batch" in kind


def is_uninitialised(module: nn.Module) -> bool:
    """Whether it is a lazy layer that has seen no input, so that its channels are not known."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)) for t in own)


def source_of(module: nn.Module) -> Source | str:
    """What a BatchNorm is, or the reason why it cannot be converted.

    Args:
        module: one of which `is_batch_norm` holds.
    """
    name = type(module).__name__
    if is_uninitialised(module):
        return "lazy, and it has seen no input: run the model once, or give calibration data"
    channels = getattr(module, "num_features", None)
    for vector in ("running_mean", "weight"):
        if channels is None and getattr(module, vector, None) is not None:
            channels = getattr(module, vector).shape[0]
    if not isinstance(channels, int) or channels < 1:
        return f"the channels of {name} are not known"
    then = tuple(child for child, _ in module.named_children())
    if not _computes_a_batch_norm(module, channels, then):
        return (
            f"{name} has a forward of its own that is not BatchNorm followed by its child modules; "
            "convert it by hand"
        )
    return Source(
        module=module,
        kind=str(kind_of(module, False)),
        channels=channels,
        eps=float(getattr(module, "eps", 1e-5)),
        activation=getattr(module, "activation", None) if isinstance(module, _OURS) else None,
        then=then,
    )


def _computes_a_batch_norm(module: nn.Module, channels: int, then: tuple[str, ...]) -> bool:
    forward = type(module).forward
    if forward in _PLAIN and not then:
        return True
    if forward in (_ChunkedBatchNorm.forward, OurSyncBatchNorm.forward, FrozenBatchNorm.forward):
        return not then
    children = tuple((name, repr(child)) for name, child in module.named_children())
    plain = (int, float, str, type(None))
    own = tuple((k, v) for k, v in sorted(vars(module).items()) if isinstance(v, plain))
    return _agrees(_Key(type(module), channels, (children, own), module))


class _Key:
    """A layer that stands for all of its class with the same children and plain attributes."""

    def __init__(self, cls: type, channels: int, children: Any, module: nn.Module) -> None:
        self.key, self.module, self.channels = (cls, channels, children), module, channels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@cache
def _agrees(key: _Key) -> bool:
    """Whether the layer's eval mode is BatchNorm followed by its children, tried on numbers."""
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(key.module)
    key.module = nn.Identity()  # the cache need not keep a model alive
    probe = probe.to_empty(device="cpu").float().eval()
    for t in (*probe.parameters(), *probe.buffers()):
        if t.is_floating_point():
            t.data = torch.rand(t.shape, generator=generator) + 0.5
    values = [getattr(probe, n, None) for n in ("running_mean", "running_var", "weight", "bias")]
    mean, variance, weight, bias = values
    if mean is None or variance is None:
        return False
    for rank in (4, 3, 5, 2):
        x = torch.randn(2, key.channels, *[3] * (rank - 2), generator=generator)
        try:
            with torch.no_grad():
                got = probe(x.clone())
                y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, probe.eps)  # type: ignore[arg-type]
                for _, child in probe.named_children():
                    y = child(y)
        except Exception:  # noqa: S112 - of another rank, or it wants something else
            continue
        return bool(
            torch.is_tensor(got) and got.shape == y.shape and torch.allclose(got, y, 1e-4, 1e-4)
        )
    return False


def check_finite(model: nn.Module) -> None:
    """Raises where a conversion could only give NaN.

    Raises:
        DataError: a weight or statistic that is NaN or infinite, or a negative running variance.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))
        if lazy or tensor.is_meta or not tensor.is_floating_point():
            continue
        if not bool(tensor.isfinite().all()):
            raise DataError(f"{name!r} holds NaN or infinity: the training diverged, perhaps")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise DataError(
                f"{name!r} holds negative variances: the checkpoint is damaged, perhaps"
            )


def replacement(
    source: Source,
    groups: int,
    *,
    eps: float | None = None,
    scaled: bool = False,
    bare: bool = False,
) -> GroupNorm:
    """The GroupNorm in a BatchNorm's place, on its device, in its dtype, with its gamma and beta.

    Args:
        source: the BatchNorm.
        groups: the number of groups.
        eps: added to the variances; by default the BatchNorm's.
        scaled: whether it rescales its input.
        bare: leave an affine-free layer affine-free; else gamma and beta are added, since they
            carry what the running statistics did.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    weight, bias = source.weight, source.bias
    eps = source.eps if eps is None else eps
    options: dict[str, Any] = {
        "device": weight.device,
        "dtype": weight.dtype,
        "activation": source.activation,
        "affine": source.affine or not bare,
    }
    norm: GroupNorm
    if source.then or scaled:
        then = {name: getattr(source.module, name) for name in source.then}
        norm = ConvertedNorm(groups, source.channels, eps, **options, scaled=scaled, then=then)
    else:
        norm = GroupNorm(groups, source.channels, eps, **options)
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            own = getattr(norm, name)
            if own is not None:
                own.copy_(value)
                old = getattr(source.module, name, None)
                if isinstance(old, nn.Parameter):
                    own.requires_grad_(old.requires_grad)
    return norm.train(source.module.training)
