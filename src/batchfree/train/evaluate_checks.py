"""Whether a config's network and categories are those of a checkpoint.

Weights load wherever their shapes fit, and shapes say nothing of groups, of Group or Layer Norm, of
the images' mean, their size or the anchors: figures come out, and they are wrong. The file says
what it was trained as, so it is compared here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from batchfree._errors import ConfigError, DataError
from batchfree.models.conventions import conventions_of, read_conventions
from batchfree.train.config import BaseConfig

TEST_FIELDS = (
    "model.min_size",
    "model.max_size",
    "model.test_proposals",
    "model.detections_per_image",
)
"""What a detector can be evaluated with otherwise than it was trained, where that is asked for."""

# What shapes training alone.
_TRAINING = {
    *("weights", "adopt_conventions", "freeze_at", "initialization", "zero_init_residual"),
    *("anchors_per_image", "rois_per_image", "train_proposals"),
    *("normalization_batch", "running_statistics", "blend_until"),
}
_SHOWN = 5


def check_model(
    config: BaseConfig, told: dict[str, Any], path: Path, overrides: Collection[str] = ()
) -> list[str]:
    """Raises where a config's network is another than that of the checkpoint.

    Args:
        config: the run.
        told: what the checkpoint says of itself, from `read_network`.
        path: the checkpoint.
        overrides: of `TEST_FIELDS`, those that are meant to differ.

    Returns:
        Remarks: what was presumed, and what differs as meant.

    Raises:
        ConfigError: naming each field that differs, with both values.
    """
    for name in overrides:
        if name not in TEST_FIELDS:
            raise ConfigError(
                f"{name} cannot be another than the checkpoint's; what can: "
                f"{', '.join(TEST_FIELDS)}"
            )
    saved = told.get("config")
    if not isinstance(saved, dict):
        return [
            f"{path.name} does not say which network its weights are of: the config's is presumed, "
            "whose groups, eps, image mean and std and anchors the weights do not show"
        ]
    task, wanted = (c.get("task", "classification") for c in (saved, config.to_dict()))
    if task != wanted:
        raise ConfigError(f"{path} is a checkpoint of {task}, the config is one of {wanted}")
    try:
        theirs = _fields(type(config).from_dict(saved))
    except (ConfigError, TypeError) as e:
        raise ConfigError(f"{path} was written by another version of batchfree: {e}") from e
    ours = _fields(config)
    theirs = {name: value for name, value in theirs.items() if name in ours}
    different = {name for name in theirs if theirs[name] != ours[name]}
    wrong = [
        f"{name} is {theirs[name]!r} there and {ours[name]!r} here"
        for name in theirs
        if name in different and name not in overrides
    ]
    if wrong:
        raise ConfigError(
            f"{path} holds another network than the config: {'; '.join(wrong)}. Give the fields "
            "that it was trained with, or its run's own config.yaml (--config RUN/config.yaml)"
            + _can_differ(different)
        )
    return [
        f"{name} is {ours[name]!r}, as asked for; {path.name} was trained with {theirs[name]!r}"
        for name in theirs
        if name in different
    ]


def check_conventions(
    network: nn.Module,
    mean: Collection[float],
    std: Collection[float],
    told: dict[str, Any],
    path: Path,
) -> None:
    """Raises where a network's norms or its images' mean are others than a checkpoint says.

    Raises:
        ConfigError: naming what differs, with both values.
    """
    if not isinstance(told.get("conventions"), dict):
        return
    theirs = read_conventions(told, path)
    ours = read_conventions({"conventions": conventions_of(network, tuple(mean), tuple(std))}, path)
    assert theirs is not None
    assert ours is not None
    wrong = []
    for name in ("mean", "std"):
        there, here = getattr(theirs, name), getattr(ours, name)
        if any(abs(a - b) > 1e-3 for a, b in zip(there, here, strict=True)):
            wrong.append(f"the {name} of its images is {there} there and {here} here")
    if theirs.eps != ours.eps:
        wrong.append(f"the eps of its norms is {theirs.eps:g} there and {ours.eps:g} here")
    groups = ours.num_groups or {}
    for name, number in (theirs.num_groups or {}).items():
        if groups.get(name, number) != number:
            wrong.append(f"{name} has {number} groups there and {groups[name]} here")
            break
    if wrong:
        raise ConfigError(
            f"{path} was trained by other conventions than the config's: {'; '.join(wrong)}"
        )


def check_categories(
    told: dict[str, Any], ids: Collection[int], names: Collection[str], path: Path
) -> None:
    """Raises where the images to evaluate on have other categories than a checkpoint.

    Args:
        told: what the checkpoint says of itself.
        ids: of the images' categories.
        names: of each.
        path: the checkpoint.

    Raises:
        DataError: naming the categories that differ.
    """
    trained = told.get("categories")
    if not isinstance(trained, dict):
        return
    there = list(zip(trained["ids"], trained["names"], strict=True))
    here = list(zip(ids, names, strict=True))
    if there == here:
        return
    missing, extra = [c for c in there if c not in here], [c for c in here if c not in there]
    parts = [f"it lacks {_some(missing)}"] * bool(missing)
    parts += [f"it has {_some(extra)} besides"] * bool(extra)
    raise DataError(
        f"the validation set has other categories than {path} was trained on: "
        f"{' and '.join(parts) or 'their order differs'}; labels would be taken for others. "
        "Evaluate on a set with the same ids and names"
    )


def _fields(config: BaseConfig) -> dict[str, Any]:
    """The model's fields that shape what is evaluated, by their dotted names."""
    model: dict[str, Any] = config.to_dict()["model"]
    if model.get("converted") is not None:  # the network is the file's, wherever that lies
        return {"model.converted": True}
    fields = {name: value for name, value in model.items() if name not in _TRAINING}
    kinds = {v for k, v in model.items() if k == "norm" or k.endswith("_norm")}
    if "gn" in kinds and model["num_groups"] is None and model["channels_per_group"] is None:
        fields["num_groups"] = 32
    if "min_size" in fields:
        fields["min_size"] = fields["min_size"][-1:]  # evaluation takes the last
    if "converted" in fields:
        fields["converted"] = False
    return {f"model.{name}": value for name, value in fields.items()}


def _can_differ(different: set[str]) -> str:
    asked = sorted(different & set(TEST_FIELDS))
    if not asked:
        return ""
    return (
        f". To evaluate otherwise than trained, write {', '.join(asked)} on the command line (in "
        "Python: overrides=)"
    )


def _some(categories: list[tuple[int, str]]) -> str:
    shown = ", ".join(f"{i} {n!r}" for i, n in categories[:_SHOWN])
    more = len(categories) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
