"""A classification checkpoint as the start of a detector's backbone, or a reason why not.

Weights come without their conventions: what images they expect, where a block has its stride, which
norm and eps they were trained with. Where these differ from the model's, a network trains and ends
16 points worse, silently; so they are compared here, and a difference is an error by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from batchfree._checks import check_choice
from batchfree._errors import ConfigError, DataError
from batchfree.models.conventions import (
    Conventions,
    is_conversion,
    norm_modules,
    read_conventions,
    read_network,
)

OnMismatch = Literal["refuse", "adopt"]


@dataclass
class Loaded:
    """What became of a checkpoint.

    Attributes:
        tensors: how many were loaded.
        left_out: names in the checkpoint that a backbone has no place for, its classifier's.
        remarks: what was presumed or adopted, a line each.
    """

    tensors: int
    left_out: list[str]
    remarks: list[str] = field(default_factory=list)


def load_backbone(
    model: nn.Module,
    checkpoint: Path | str,
    *,
    conventions: Conventions | None = None,
    on_mismatch: OnMismatch = "refuse",
) -> Loaded:
    """Starts a detector's backbone from a classification checkpoint.

    Args:
        model: of `batchfree.models.mask_rcnn`.
        checkpoint: weights of a ResNet with torchvision's names, which are timm's and this
            package's: a `.safetensors` file, or a `.pth`, `.pt`, `.ckpt` or `.bin` of tensors and
            plain values.
        conventions: how they were trained. By default what the file says of itself: this package's
            checkpoints do, and timm's have a `config.json` beside them; else torchvision's.
        on_mismatch: `"refuse"` raises where they differ from the model's; `"adopt"` gives the model
            the checkpoint's mean, standard deviation and eps, and still refuses what cannot be
            adopted.

    Returns:
        What was loaded, left out, presumed and adopted.

    Raises:
        DataError: a file that is missing, damaged, holds code, or NaN or infinite weights.
        ConfigError: weights of another network, or trained by other conventions; it names them.

    Example:
        >>> import tempfile, torch, torchvision
        >>> from batchfree import norm_layer
        >>> from batchfree.models import Norms, mask_rcnn
        >>> file = tempfile.NamedTemporaryFile(suffix=".pth")
        >>> torch.save(torchvision.models.resnet18().state_dict(), file.name)
        >>> loaded = load_backbone(mask_rcnn("resnet18", 3, Norms(norm_layer("frozen_bn"))),
        ...                        file.name)
        >>> loaded.left_out
        ['fc.weight', 'fc.bias']
    """
    check_choice(on_mismatch, get_args(OnMismatch), "on_mismatch")
    path = Path(checkpoint)
    state, said = read_network(path)
    told = read_conventions(said, path)
    remarks = []
    if conventions is None:
        conventions = told or Conventions()
        if told is None:
            remarks.append(
                f"{path.name} does not say how it was trained: presumed torchvision's conventions "
                "(RGB in [0, 1], ImageNet's mean and std, stride in the 3x3, eps 1e-5)"
            )
        elif is_conversion(said):
            _check_conversion(said, path)
            remarks.append(
                f"{path.name} gives its preprocessing in words ({said.get('preprocessing')!r}): "
                "presumed RGB in [0, 1], ImageNet's mean and std, stride in the 3x3"
            )
    parts = _parts(model)
    body = {
        prefix + name: tensor
        for prefix, part in parts.items()
        for name, tensor in part.state_dict(keep_vars=True).items()
    }
    weights = {name: value for name, value in state.items() if not name.startswith("fc.")}
    _check_classifier(weights, path)
    _check_norms(body, state, conventions, path)
    _check_names(body, weights, path)
    check_finite({name: weights[name] for name in body if name in weights}, path)
    norms = {p + n: norm for p, part in parts.items() for n, norm in norm_modules(part).items()}
    remarks += _check_groups(norms, conventions, path)
    remarks += _check_conventions(model, norms, conventions, on_mismatch, path)
    for name, tensor in body.items():
        if name in weights:
            tensor.data.copy_(weights[name])
    left = [name for name in state if name.startswith("fc.")]
    return Loaded(sum(name in weights for name in body), left, remarks)


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The ResNet's parts by the prefix of their names; in C4 the last stage is the box head."""
    detector: Any = model
    body, head = detector.backbone.body, detector.roi_heads.box_head
    c4 = "layer4" not in dict(body.named_children()) and isinstance(head, nn.Sequential)
    return {"": body, "layer4.": head[0]} if c4 else {"": body}


def check_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Raises DataError, naming them, where weights are NaN or infinite."""
    bad = [n for n, v in weights.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise DataError(
            f"{path} holds NaN or infinite values in {_some(bad)}: its training diverged or the "
            "file is damaged; take another checkpoint"
        )


def _check_conversion(said: dict[str, Any], path: Path) -> None:
    layers = said["layers"].values()
    if any(layer.get("scaled") or layer.get("blend") for layer in layers):
        raise ConfigError(
            f"{path} is a conversion whose layers rescale their input or blend, for which the "
            "backbone's norms have no place. Convert the detector: start it from the BatchNorm "
            "weights with frozen_bn and call batchfree.convert on it; or convert the classifier "
            "with anchor=None"
        )


def _check_classifier(weights: dict[str, Tensor], path: Path) -> None:
    theirs = [n for n in weights if n.startswith(("backbone.", "rpn.", "roi_heads."))]
    if theirs:
        raise ConfigError(
            f"{path} holds a whole detector ({_some(theirs)}), a backbone starts from a "
            "classifier: take the classification checkpoint, or save the tensors under "
            "'backbone.body.' by the rest of their names"
        )


def _check_norms(
    body: dict[str, Tensor], state: dict[str, Tensor], told: Conventions, path: Path
) -> None:
    has = any(name.endswith("running_mean") for name in state)
    wants = any(name.endswith("running_mean") for name in body)
    if has and not wants:
        raise ConfigError(
            f"{path} was trained with BatchNorm, the backbone has another norm: its gamma and beta "
            "mean nothing there. Take frozen_bn (or bn) in the backbone, or start from a "
            "checkpoint with the backbone's own norm"
        )
    if wants and not has:
        kind = told.norm or "a norm without running statistics (Group Norm?)"
        raise ConfigError(
            f"{path} was trained with {kind}, the backbone has BatchNorm, whose running statistics "
            "the file lacks. Take gn in the backbone, or a BatchNorm checkpoint"
        )


def _check_names(body: dict[str, Tensor], weights: dict[str, Tensor], path: Path) -> None:
    weights_only = [n for n in weights if n not in body and not n.endswith("num_batches_tracked")]
    missing = [n for n in body if n not in weights and not n.endswith("num_batches_tracked")]
    if missing or weights_only:
        parts = [f"it lacks {_some(missing)}"] if missing else []
        parts += [f"it has {_some(weights_only)}"] if weights_only else []
        raise ConfigError(
            f"{path} holds another network than the backbone: {' and '.join(parts)}; name the "
            "ResNet it was trained as (deep stems, such as timm's resnet50d, are not among them)"
        )
    for name, tensor in body.items():
        if name in weights and weights[name].shape != tensor.shape:
            raise ConfigError(
                f"{path} holds another network than the backbone: {name} has shape "
                f"{tuple(weights[name].shape)}, the backbone's {tuple(tensor.shape)}; width, depth "
                "or groups differ"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _check_groups(norms: dict[str, Any], told: Conventions, path: Path) -> list[str]:
    """Raises at other groups; names what was presumed, where the file does not say them.

    Group Norm of any groups, Layer Norm and Instance Norm have weights of the same shapes.
    """
    per_sample = {n: m for n, m in norms.items() if isinstance(m, nn.GroupNorm)}
    if not per_sample:
        return []
    if told.num_groups is not None:
        for name, number in told.num_groups.items():
            groups = getattr(per_sample.get(name), "num_groups", number)
            if groups != number:
                raise ConfigError(
                    f"{path} has {number} groups in {name}, the backbone {groups}: take the group "
                    "policy it was trained with"
                )
        return []
    counts = sorted({m.num_groups for m in per_sample.values()})
    kind = "gn"
    if counts == [1]:
        kind = "ln"
    elif all(m.num_groups == m.num_channels for m in per_sample.values()):
        kind = "in"
    if told.norm in ("gn", "ln", "in") and told.norm != kind:
        raise ConfigError(
            f"{path} was trained with {told.norm}, the backbone has {kind}: the shapes fit and the "
            f"features do not; take {told.norm} in the backbone"
        )
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    groups = {"ln": "one group", "in": "a group a channel"}.get(kind, f"{span} groups")
    return [
        f"{path.name} does not say its norm and groups: presumed the backbone's, {kind} with "
        f"{groups} in each of {len(per_sample)} layers (gn of any groups, ln and in have the same "
        "shapes)"
    ]


def _check_conventions(
    model: nn.Module, norms: dict[str, Any], told: Conventions, on_mismatch: str, path: Path
) -> list[str]:
    """Raises at a difference, or adopts it and returns what was adopted."""
    if told.stride == "1x1":
        raise ConfigError(
            f"{path} has its stride in the 1x1 convolution of a block, the backbone in the 3x3: "
            "the shapes fit and the features do not (Detectron's and Caffe's weights); take "
            "weights trained with the stride in the 3x3"
        )
    if told.channel_order != "rgb":
        raise ConfigError(
            f"{path} expects BGR images, the model feeds RGB: flip conv1.weight along its second "
            'dimension and state channel_order="rgb"'
        )
    transform: Any = model.transform
    differences: list[str] = []
    for what, theirs, ours in (
        ("mean", told.mean, tuple(transform.image_mean)),
        ("std", told.std, tuple(transform.image_std)),
    ):
        if not _close(theirs, ours):
            differences.append(f"the {what} of its images is {theirs}, the model's {ours}")
            if on_mismatch == "adopt":
                setattr(transform, f"image_{what}", list(theirs))
    other = [m for m in norms.values() if float(m.eps) != told.eps]
    if other:
        differences.append(f"the eps of its norms is {told.eps:g}, the model's {other[0].eps:g}")
        if on_mismatch == "adopt":
            for norm in other:
                norm.eps = told.eps
    if differences and on_mismatch == "refuse":
        raise ConfigError(
            f"{path} was trained by other conventions: {'; '.join(differences)}. Give the model "
            'these values, or take on_mismatch="adopt"'
        )
    return [f"adopted: {d}" for d in differences]


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))
