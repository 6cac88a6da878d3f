"""What one value of a detection config demands of another."""

from __future__ import annotations

from batchfree._errors import ConfigError
from batchfree.train.checks import check_groups, check_model_name
from batchfree.train.config import BaseConfig
from batchfree.train.detection_config import DetectionConfig


def check_detection(config: BaseConfig) -> None:
    """Raises unless the values of a detection config fit each other.

    Raises:
        ConfigError: naming the field, its value, and what it could be.
    """
    assert isinstance(config, DetectionConfig)
    model, data = config.model, config.data
    check_model_name("model.backbone", model.backbone)
    check_groups(model.num_groups, model.channels_per_group)
    kinds = {model.norm, model.fpn_norm, model.box_norm, model.mask_norm}
    if "gn" not in kinds and (model.num_groups or model.channels_per_group):
        raise ConfigError(
            "model.num_groups and model.channels_per_group are of norm 'gn', which no part has: "
            "set them to null"
        )
    if data.kind == "coco" and data.root is None:
        raise ConfigError(
            "data.root is missing: name the folder that holds annotations/ and the images, "
            "--data.root FOLDER"
        )
    if not 0 <= data.flip <= 1:
        raise ConfigError(f"data.flip must be a probability, 0 to 1, got {data.flip}")
    for name in ("min_size", "anchor_sizes", "aspect_ratios", "image_std"):
        values = getattr(model, name)
        if not values or min(values) <= 0:
            raise ConfigError(f"model.{name} must be positive numbers, got {values}")
    for name in ("image_mean", "image_std"):
        if len(getattr(model, name)) != 3:
            raise ConfigError(
                f"model.{name} must be three numbers, of red, green and blue, got "
                f"{getattr(model, name)}"
            )
    if config.optimizer.label_smoothing:
        raise ConfigError("optimizer.label_smoothing is of classification: set it to 0")
    if model.freeze_at > 0 and model.weights is None:
        raise ConfigError(
            f"model.freeze_at={model.freeze_at} freezes random layers, which costs 3.3 AP from "
            "scratch: name model.weights, or set it to 0"
        )
    if model.norm == "frozen_bn" and model.weights is None:
        raise ConfigError(
            "model.norm 'frozen_bn' normalises nothing without the statistics of a checkpoint: "
            "name model.weights, or take gn"
        )
