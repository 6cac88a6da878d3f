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

    It pickles, copies and compares by what it builds. It is a `functools.partial` because timm
    takes a factory apart and binds the parts anew: where a model asks for norm and activation in
    one layer it then calls a function, and rejects a class that it does not know.
    """

    def __call__(self, num_channels: int, **options: Any) -> nn.Module:
        """The layer for `num_channels` channels; options go before those of the factory."""
        return build_norm(num_channels, **{**self.keywords, **options})

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


def norm_layer(kind: NormKind, groups: Groups | int | None = None, **options: Any) -> NormLayer:
    """A factory for the `norm_layer=` argument of torchvision's and timm's models.

    It is called with a number of channels, `factory(64)` or `factory(64, activation="relu")`.

    Args:
        kind: `"gn"` Group Norm, `"ln"` Layer Norm over (C, *), `"in"` Instance Norm, `"bn"` Batch
            Norm, `"sync_bn"`, `"frozen_bn"` (BN*), `"none"`.
        groups: the group policy of `"gn"`, or the number of groups; `Groups(32)` by default.
        options: passed to each layer: `eps`, `affine`, for `"bn"` also `normalization_batch`,
            `running_statistics`, `momentum` and `dim` (1, 2 or 3; 2 by default). `activation` is
            for models whose norm layers also activate (timm's EfficientNet, DenseNet, ResNetV2,
            which refuse a factory without it).

    Raises:
        ValueError: an unknown kind, activation or option, a value that does not fit, or `groups`
            for a norm that has none.
        TypeError: `groups` that are neither `Groups` nor an int.

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
        options["groups"] = _policy(groups)
    _check_options(kind, options)
    check_activation(options.get("activation"))
    if kind == "bn":
        check_choice(options.get("dim", 2), _BATCH_NORM, "dim")
        bn.check_normalization_batch(options.get("normalization_batch"))
        check_choice(
            options.get("running_statistics", "rank0"),
            get_args(bn.RunningStatistics),
            "running_statistics",
        )
    build = norm_layer_without_activation if options.get("activation") is None else build_norm_act
    return NormLayer(build, kind=kind, **options)


def build_norm(num_channels: int, *, kind: NormKind, **options: Any) -> nn.Module:
    """Builds the norm layer of `num_channels` channels; options as for `norm_layer`."""
    if kind == "gn":
        return GroupNorm(options.pop("groups").resolve(num_channels), num_channels, **options)
    if kind == "bn":
        return _BATCH_NORM[options.pop("dim", 2)](num_channels, **options)
    if kind == "none":
        return NoNorm(activation=options.get("activation"))
    return _LAYERS[kind](num_channels, **options)


def build_norm_act(
    num_channels: int,
    *,
    activation: Any,
    apply_act: bool = True,
    inplace: bool = False,
    act_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a norm with its activation, called as timm calls one.

    timm says whether to activate, not by what; `inplace` and `act_kwargs` are its own activation's.
    """
    return build_norm(num_channels, activation=activation if apply_act else None, **options)


class norm_layer_without_activation:
    """What timm calls where a model asks for a norm alone.

    A class, because timm lets any function pass for norm and activation in one: a network without
    activations would be built in silence. A class that it does not know it rejects, by its name.
    """

    def __new__(cls, num_channels: int, **options: Any) -> nn.Module:  # type: ignore[misc]
        """The layer itself."""
        return build_norm(num_channels, **options)


def _policy(groups: Groups | int | None) -> Groups:
    if isinstance(groups, Groups):
        return groups
    if groups is None or (isinstance(groups, int) and not isinstance(groups, bool)):
        return Groups(groups)
    raise TypeError(f"groups must be Groups(...) or a number of groups, got {groups!r}")


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
