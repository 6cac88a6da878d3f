"""What a config stands for: its network and its length in steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchfree._errors import ConfigError
from batchfree.convert import load_converted
from batchfree.models import build_model
from batchfree.nn import Groups, norm_layer
from batchfree.train.config import BaseConfig, ModelConfig


def build_network(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network that a config names.

    Raises:
        ConfigError: options that the model or the norm does not take; a converted model of another
            number of classes.
        DataError: the file of a converted model is missing or damaged.
    """
    if config.converted is not None:
        return _converted(config.converted, num_classes)
    norm_options: dict[str, Any] = {}
    groups = None
    if config.norm == "gn":
        wish = config.num_groups, config.channels_per_group
        groups = Groups(*wish, on_indivisible=config.on_indivisible)
    if config.norm == "bn":
        norm_options["normalization_batch"] = config.normalization_batch
        norm_options["running_statistics"] = config.running_statistics
    model_options = {
        k: v
        for k, v in {
            "width": config.width,
            "blocks_per_stage": config.blocks_per_stage,
            "stem": config.stem,
        }.items()
        if v is not None
    }
    try:
        return build_model(
            config.name,
            num_classes=num_classes,
            norm=norm_layer(config.norm, groups, **norm_options),
            weight_standardization=config.weight_standardization,
            zero_init_residual=config.zero_init_residual,
            **model_options,
        )
    except (TypeError, ValueError) as e:
        raise ConfigError(f"model: {e}") from e


def _converted(path: str, num_classes: int) -> nn.Module:
    network = load_converted(path)
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if heads and heads[-1].out_features != num_classes:
        raise ConfigError(
            f"model.converted: the network in {path} tells {heads[-1].out_features} classes apart, "
            f"the data has {num_classes}"
        )
    return network


def total_steps(config: BaseConfig, samples_per_epoch: int | None) -> int:
    """Optimizer steps of the training.

    Raises:
        ConfigError: a length in epochs where the data has none.
    """
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    assert trainer.max_epochs is not None
    if samples_per_epoch is None:
        raise ConfigError(
            "trainer.max_epochs needs an epoch: set data.train_samples, or give trainer.max_steps"
        )
    return max(1, round(trainer.max_epochs * samples_per_epoch / config.batch_size))


def evaluation_interval(config: BaseConfig, steps: int, samples_per_epoch: int | None) -> int:
    """Optimizer steps between evaluations."""
    wish = config.trainer.evaluate_every
    if wish is None:
        epoch = samples_per_epoch and round(samples_per_epoch / config.batch_size)
        wish = epoch or steps // 15
    return max(1, min(wish, steps))
