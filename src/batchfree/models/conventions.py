"""What a file of weights holds, and what it says of how they were trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from batchfree._errors import DataError
from batchfree._weights import read_weights


@dataclass(frozen=True)
class Conventions:
    """What a checkpoint's weights were trained with; the defaults are torchvision's and timm's.

    Attributes:
        mean: subtracted from RGB images in [0, 1].
        std: divided by.
        channel_order: of the images: `"rgb"`, or `"bgr"` as in Caffe's and Detectron's weights.
        stride: where a bottleneck has its stride: the `"3x3"` convolution, or the first `"1x1"`.
        eps: of the norms.
        norm: the kind of norm, where it is known.
        num_groups: groups of each norm by its name, for Group Norm.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    stride: Literal["3x3", "1x1"] = "3x3"
    eps: float = 1e-5
    norm: str | None = None
    num_groups: dict[str, int] | None = None


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file, without wrappers' prefixes, and what the file says of itself.

    Raises:
        DataError: a file that is missing, damaged, or holds code or other things than tensors.
    """
    state, told = read_weights(path)
    if not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds no state_dict: names and tensors were expected")
    return {_plain(name): value for name, value in state.items()}, told


def _plain(name: str) -> str:
    for prefix in ("module.", "network.", "model."):
        name = name.removeprefix(prefix)
    return name


def read_conventions(told: dict[str, Any], path: Path) -> Conventions | None:
    """The conventions in what `read_network` found, or in timm's `config.json` beside the file.

    Raises:
        DataError: conventions that this version does not know, or norms of several eps.
    """
    if isinstance(told.get("conventions"), dict):
        known = told["conventions"]
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in known.items()
        }
        new = sorted(set(as_tuples) - {f.name for f in fields(Conventions)})
        if new:
            raise DataError(
                f"{path} says {', '.join(new)} of its training, which this version of batchfree "
                "does not know: it was written by another version; take that one"
            )
        return Conventions(**as_tuples)
    if is_conversion(told):
        layers = told["layers"]
        eps = {float(layer["eps"]) for layer in layers.values()}
        if len(eps) > 1:
            raise DataError(f"{path} has norms of several eps, {sorted(eps)}; one is expected")
        groups = {name: int(layer["groups"]) for name, layer in layers.items()}
        return Conventions(norm="gn", num_groups=groups, eps=eps.pop() if eps else 1e-5)
    timm = path.with_name("config.json")
    try:
        found = json.loads(timm.read_text())["pretrained_cfg"]
        return Conventions(mean=tuple(found["mean"]), std=tuple(found["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_conversion(told: dict[str, Any]) -> bool:
    """Whether the file that says this is one of `batchfree.save_converted`."""
    return isinstance(told.get("layers"), dict) and "plan" in told


def conventions_of(
    network: nn.Module, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What this package writes beside a network's weights, for `load_backbone` to compare."""
    norms = norm_modules(network)
    kinds = sorted({_kind(m) for m in norms.values()})
    groups = {n: m.num_groups for n, m in norms.items() if isinstance(m, nn.GroupNorm)}
    found = Conventions(
        mean=tuple(mean),
        std=tuple(std),
        eps=next((float(m.eps) for m in norms.values()), 1e-5),
        norm=kinds[0] if len(kinds) == 1 else None,
        num_groups=groups or None,
    )
    return vars(found).copy()


def norm_modules(network: nn.Module) -> dict[str, Any]:
    """The GroupNorms and BatchNorms of a network by name; each has an `eps`."""
    return {
        n: m
        for n, m in network.named_modules()
        if isinstance(m, nn.GroupNorm) or hasattr(m, "running_mean")
    }


def _kind(norm: nn.Module) -> str:
    return "gn" if isinstance(norm, nn.GroupNorm) else "bn"
