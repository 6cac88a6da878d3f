"""Checks a config's values: each error is one line with the culprit and the remedy."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.train.config import BaseConfig, Config

_Check = Callable[[Any], bool]


def _positive(value: Any) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: Any) -> bool:
    return math.isfinite(value) and value >= 0


def _fraction(value: Any) -> bool:
    return 0 <= value < 1


def _seed(value: Any) -> bool:
    return 0 <= value < 2**63


_RULES: dict[str, tuple[str, _Check]] = {
    **dict.fromkeys(
        (
            "batch_size",
            "model.num_groups",
            "model.channels_per_group",
            "model.normalization_batch",
            "model.width",
            "model.blocks_per_stage",
            "model.fpn_channels",
            "model.head_channels",
            "model.fc_channels",
            "model.max_size",
            "model.anchors_per_image",
            "model.rois_per_image",
            "model.train_proposals",
            "model.test_proposals",
            "model.detections_per_image",
            "data.size",
            "data.train_samples",
            "data.val_samples",
            "data.eval_batch_size",
            "optimizer.base_batch_size",
            "optimizer.base_lr",
            "schedule.gamma",
            "trainer.max_steps",
            "trainer.max_epochs",
            "trainer.evaluate_every",
            "trainer.checkpoint_every",
            "trainer.log_every",
            "trainer.num_nodes",
            "trainer.accumulate",
            "trainer.gradient_clip",
            "trainer.threads",
        ),
        ("a positive number", _positive),
    ),
    **dict.fromkeys(
        (
            "data.workers",
            "model.freeze_at",
            "optimizer.weight_decay",
            "schedule.warmup",
            "schedule.warmup_factor",
            "schedule.warmup_above_lr",
            "schedule.final_factor",
        ),
        ("a number, zero or above", _not_negative),
    ),
    "model.blend_until": ("a number above 0, up to 1", lambda value: 0 < value <= 1),
    "seed": ("a whole number from 0 to below 2^63", _seed),
    **dict.fromkeys(
        ("optimizer.momentum", "optimizer.label_smoothing", "optimizer.ema_decay"),
        ("a number from 0 to below 1", _fraction),
    ),
}


def validate(config: BaseConfig) -> None:
    """Checks types and values, and what one value demands of another.

    Raises:
        ConfigError: naming the field, its value, and what it could be.

    Example:
        >>> from batchfree.train import Config, validate
        >>> validate(Config().replace(model={"norm": "gm"}))
        Traceback (most recent call last):
        ...
        batchfree._errors.ConfigError: model.norm must be one of 'bn', 'gn', 'ln', 'in', \
'frozen_bn', 'sync_bn', 'none', got 'gm'; did you mean 'gn'?
    """
    _check_section(config, "")
    _check_length(config)
    if isinstance(config, Config):
        _check_classification(config)
    else:
        from batchfree.train.detection_checks import check_detection

        check_detection(config)
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise ConfigError("optimizer.nesterov needs a momentum: set optimizer.momentum above 0")


def check_batch_split(config: BaseConfig, world_size: int) -> None:
    """Raises unless the batch splits evenly over devices and accumulated passes."""
    parts = world_size * config.trainer.accumulate
    if config.batch_size % parts:
        below, above = config.batch_size // parts * parts, -(-config.batch_size // parts) * parts
        near = " or ".join(str(n) for n in (below, above) if n)
        raise ConfigError(
            f"batch_size must split evenly over {world_size} device(s) and "
            f"{config.trainer.accumulate} accumulated pass(es): {config.batch_size} does not; "
            f"take {near}"
        )


def _check_section(section: Any, prefix: str) -> None:
    hints = get_type_hints(type(section))
    for f in fields(section):
        name, value = prefix + f.name, getattr(section, f.name)
        if is_dataclass(hints[f.name]):
            if not isinstance(value, hints[f.name]):
                raise ConfigError(f"{name} must be a {hints[f.name].__name__}, got {value!r}")
            _check_section(value, name + ".")
            continue
        check_type(name, value, hints[f.name])
        if name in _RULES and value is not None:
            wanted, check = _RULES[name]
            if not check(value):
                raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raises ConfigError unless the value of field `name` has the type `hint`."""
    if _fits(value, hint):
        return
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        names = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{name} must be one of {names}, got {value!r}{suggest(value, choices)}")
    example = ""
    if get_origin(hint) is list and not isinstance(value, list) and _number(value) is not None:
        example = f"; write [{_number(value):g}] for one"
    raise ConfigError(f"{name} must be {_words(hint)}, got {value!r}{example}")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not isinstance(value, bool)


def _words(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        type(None): "null",
    }
    if get_origin(hint) is list:
        return "a list of numbers"
    return " or ".join(words[h] for h in (get_args(hint) or (hint,)))


def _check_length(config: BaseConfig) -> None:
    trainer, schedule = config.trainer, config.schedule
    if (trainer.max_steps is None) == (trainer.max_epochs is None):
        raise ConfigError(
            "the training's length is trainer.max_steps or trainer.max_epochs: set one of them and "
            "the other to null"
        )
    if schedule.kind == "step" and not schedule.milestones:
        raise ConfigError("schedule.kind 'step' needs schedule.milestones, for example [0.5, 0.75]")
    if any(m < 0 for m in schedule.milestones):
        raise ConfigError(f"schedule.milestones must not be negative, got {schedule.milestones}")
    lengths = [("warmup", schedule.warmup), *(("milestones", m) for m in schedule.milestones)]
    for name, value in lengths:
        if schedule.unit == "fraction" and value > 1:
            raise ConfigError(
                f"schedule.{name} is a fraction of the training under schedule.unit 'fraction', "
                f"0 to 1, got {value}; for epochs or steps set schedule.unit"
            )


def _check_classification(config: Config) -> None:
    model, data, schedule = config.model, config.data, config.schedule
    check_model_name("model.name", model.name)
    check_groups(model.num_groups, model.channels_per_group)
    if model.norm != "gn" and (model.num_groups or model.channels_per_group):
        raise ConfigError(
            f"model.num_groups and model.channels_per_group are of norm 'gn', not of "
            f"{model.norm!r}: set them to null"
        )
    if model.norm != "bn" and model.normalization_batch is not None:
        raise ConfigError(
            f"model.normalization_batch is of norm 'bn', not of {model.norm!r}: set it to null"
        )
    endless = data.kind == "digits_in_the_wild" and data.train_samples is None
    if endless and schedule.unit == "epochs" and (schedule.warmup or schedule.milestones):
        raise ConfigError(
            "schedule.unit 'epochs' needs an epoch: set data.train_samples, or take the unit "
            "'steps' or 'fraction'"
        )
    if data.kind == "image_folder" and data.root is None:
        raise ConfigError(
            "data.root is missing: name the folder that holds train/ and val/, --data.root FOLDER"
        )


def check_model_name(field: str, name: str) -> None:
    """Raises ConfigError unless there is a ResNet of that name."""
    from batchfree.models import MODELS

    if name not in MODELS:
        known = ", ".join(MODELS)
        raise ConfigError(f"{field} must be one of {known}, got {name!r}{suggest(name, MODELS)}")


def check_groups(num_groups: int | None, channels_per_group: int | None) -> None:
    """Raises ConfigError where both wishes of Group Norm are set."""
    if num_groups is not None and channels_per_group is not None:
        raise ConfigError(
            "model.num_groups and model.channels_per_group exclude each other: set one to null"
        )
