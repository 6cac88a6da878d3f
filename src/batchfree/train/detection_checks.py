"""What one value of a detection config demands of another."""

from __future__ import annotations

from batchfree._errors import ConfigError
from batchfree.train.checks import check_groups, check_model_name
from batchfree.train.config import BaseConfig
from batchfree.train.detection_config import DetectionConfig

COCO_FILES = ("train_annotations", "val_annotations", "train_images", "val_images")


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
    named = {n: getattr(data, n) for n in COCO_FILES if getattr(data, n) is not None}
    if data.kind == "coco" and data.root is None and not {*COCO_FILES[:2]} <= set(named):
        raise ConfigError(
            "data.root is missing: name the folder that holds annotations/ and the images, "
            "--data.root FOLDER, or both annotation files, --data.train_annotations FILE "
            "--data.val_annotations FILE"
        )
    if data.kind != "coco" and named:
        name, value = next(iter(named.items()))
        raise ConfigError(
            f"data.{name}={value!r} is of data.kind 'coco', this is {data.kind!r}: set it to null, "
            "or take the other kind"
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
