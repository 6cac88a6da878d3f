"""`norm_layer`: a factory of norm layers by kind, as torchvision and timm take one."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal, get_args

from torch import nn

from batchfree._checks import check_choice, suggest
from batchfree.nn import batch_norm as bn
from batchfree.nn.group_norm import GroupNorm, GroupNorm1, InstanceNorm
from batchfree.nn.groups import Groups
from batchfree.nn.identity import NoNorm
from batchfree.ops.activations import check_activation

NormKind = Literal["bn", "gn", "ln", "in", "frozen_bn", "sync_bn", "none"]

_BATCH_NORM = {1: bn.BatchNorm1d, 2: bn.BatchNorm2d, 3: bn.BatchNorm3d}
_LAYERS: dict[str, type[nn.Module]] = {
    "bn": bn.BatchNorm2d,
    "gn": GroupNorm,
    "ln": GroupNorm1,
    "in": InstanceNorm,
    "frozen_bn": bn.FrozenBatchNorm,
    "sync_bn": bn.SyncBatchNorm,
    "none": NoNorm,
}
_EXTRA_OPTIONS = {"gn": {"groups"}, "bn": {"dim"}}


class NormLayer(functools.partial[nn.Module]):
    """A callable that builds the norm layer of a number of channels; made by `norm_layer`.

    It pickles, copies and compares by what it builds. It is a `functools.partial` of `build_norm`
    because timm takes the factory apart and binds the parts anew.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NormLayer) and self.keywords == other.keywords

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"norm_layer({', '.join(f'{k}={v!r}' for k, v in sorted(self.keywords.items()))})"

    @property
    def kind(self) -> NormKind:
        """Which norm it builds."""
        return self.keywords["kind"]


def norm_layer(kind: NormKind, groups: Groups | None = None, **options: Any) -> NormLayer:
    """A factory for the `norm_layer=` argument of torchvision's and timm's models.

    It is called with a number of channels, `factory(64)` or `factory(64, activation="relu")`.

    Args:
        kind: `"gn"` Group Norm, `"ln"` Layer Norm over (C, *), `"in"` Instance Norm, `"bn"` Batch
            Norm, `"sync_bn"`, `"frozen_bn"` (BN*), `"none"`.
        groups: the group policy of `"gn"`; `Groups(32)` by default.
        options: passed to each layer: `eps`, `affine`, for `"bn"` also `normalization_batch`,
            `running_statistics`, `momentum` and `dim` (1, 2 or 3; 2 by default). `activation` is
            for models whose norm layers also activate (timm's EfficientNet and DenseNet).

    Raises:
        ValueError: an unknown kind, activation or option, or `groups` for a norm that has none.

    Example:
        >>> import batchfree
        >>> norm = batchfree.norm_layer("gn", groups=batchfree.Groups(channels_per_group=16))
        >>> norm(64)
        GroupNorm(4, 64, eps=1e-05, affine=True, bias=True)

        `torchvision.models.resnet50(norm_layer=norm)` and `timm.create_model("resnet50",
        norm_layer=norm)` build with it.
    """
    check_choice(kind, get_args(NormKind), "norm kind")
    if groups is not None and kind != "gn":
        raise ValueError(f"groups is an option of 'gn' only, got groups={groups} for {kind!r}")
    if kind == "gn":
        options["groups"] = groups or Groups(32)
    _check_options(kind, options)
    check_activation(options.get("activation"))
    return NormLayer(build_norm, kind=kind, **options)


def build_norm(
    num_channels: int,
    *,
    kind: NormKind,
    activation: Any = None,
    apply_act: bool | None = None,
    inplace: bool | None = None,
    act_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Builds the norm layer of `num_channels` channels; what a `NormLayer` calls.

    `apply_act`, `inplace` and `act_kwargs` are how timm asks for norm and activation in one layer.
    It does not say which activation, so the factory has to know.

    Raises:
        ValueError: an activation is asked for and the factory was made without one.
    """
    if apply_act is None:
        apply_act = inplace is not None or act_kwargs is not None or activation is not None
    if apply_act and activation is None:
        raise ValueError(
            "this model asks for norm and activation in one layer and does not say which "
            f"activation: give it to the factory, norm_layer({kind!r}, activation='relu')"
        )
    options["activation"] = activation if apply_act else None
    if kind == "gn":
        return GroupNorm(options.pop("groups").resolve(num_channels), num_channels, **options)
    if kind == "bn":
        return _BATCH_NORM[options.pop("dim", 2)](num_channels, **options)
    if kind == "none":
        return NoNorm(activation=options["activation"])
    return _LAYERS[kind](num_channels, **options)


def _check_options(kind: str, options: dict[str, Any]) -> None:
    known = set(_EXTRA_OPTIONS.get(kind, ()))
    for cls in _LAYERS[kind].__mro__:
        if cls is nn.Module:
            break
        known |= {
            name
            for name, p in inspect.signature(cls).parameters.items()
            if p.default is not inspect.Parameter.empty
        }
    for name in options:
        if name not in known:
            raise ValueError(
                f"{kind!r} has no option {name!r}{suggest(name, known)}; its options are "
                f"{', '.join(sorted(known))}"
            )
