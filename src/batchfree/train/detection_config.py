"""The settings of a detection run; what it shares with classification is of `train.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from batchfree.train.config import (
    BaseConfig,
    NormKind,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)


@dataclass
class DetectorConfig:
    """Mask R-CNN and the norms of its parts.

    Attributes:
        backbone: a model of `batchfree.models.MODELS`.
        norm: the backbone's norm, as `batchfree.norm_layer` names it.
        fpn_norm: the FPN's; `none` is a convolution with a bias.
        box_norm: the box head's.
        mask_norm: the mask head's.
        num_groups: groups per layer, for `gn`; give this or `channels_per_group`. With neither, 32.
        channels_per_group: channels per group, for `gn`.
        weights: a classification checkpoint that the backbone starts from; None starts from random
            weights.
        adopt_conventions: take mean, standard deviation and eps from these weights where they
            differ, instead of refusing them.
        freeze_at: stages of the backbone that do not train: 0 none, 1 the stem, 2 the first too.
        neck: `fpn`, or `c4` for regions of the fourth stage's input.
        box_head: `4conv1fc`, or the older `2fc`.
        cascade: three box heads at IoU 0.5, 0.6 and 0.7.
        initialization: of FPN and heads, `detectron`'s or `torchvision`'s.
        zero_init_residual: start the last gamma of every residual block at zero.
        width: channels of the first stage, for `resnet_small`.
        blocks_per_stage: residual blocks in each stage, for `resnet_small`.
        stem: of `resnet_small`: `7x7` with a stride of 4 in all, or `3x3` with none.
        fpn_channels: channels of the FPN.
        head_channels: channels of the heads' convolutions.
        fc_channels: channels of the fully connected layers.
        min_size: what the shorter side of an image is scaled to, pixels; of several, training draws
            one for each image and evaluation takes the last.
        max_size: what the longer side may come to, pixels.
        image_mean: subtracted from RGB images in [0, 1].
        image_std: divided by.
        anchor_sizes: sides of the anchors, pixels: one for each level of the FPN.
        aspect_ratios: height over width of the anchors.
        anchors_per_image: anchors that the RPN trains on in an image.
        rois_per_image: regions that the heads train on in an image: their batch.
        train_proposals: proposals kept in training, before and after suppression.
        test_proposals: likewise in evaluation.
        detections_per_image: detections kept in an image.
    """

    backbone: str = "resnet50"
    norm: NormKind = "gn"
    fpn_norm: NormKind = "gn"
    box_norm: NormKind = "gn"
    mask_norm: NormKind = "gn"
    num_groups: int | None = None
    channels_per_group: int | None = None
    weights: str | None = None
    adopt_conventions: bool = False
    freeze_at: int = 0
    neck: Literal["fpn", "c4"] = "fpn"
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc"
    cascade: bool = False
    initialization: Literal["detectron", "torchvision"] = "detectron"
    zero_init_residual: bool = False
    width: int | None = None
    blocks_per_stage: int | None = None
    stem: Literal["3x3", "7x7"] | None = None
    fpn_channels: int = 256
    head_channels: int = 256
    fc_channels: int = 1024
    min_size: list[int] = field(default_factory=lambda: [800])
    max_size: int = 1333
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    aspect_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    anchors_per_image: int = 256
    rois_per_image: int = 512
    train_proposals: int = 2000
    test_proposals: int = 1000
    detections_per_image: int = 100


@dataclass
class DetectionDataConfig:
    """The images and their instances.

    Attributes:
        kind: the embedded digit `scenes`, or a set in `coco`'s format.
        root: the folder of a COCO set, such as root/annotations and root/train2017; where both
            annotation files are named below it may be None.
        train_split: the split that is trained on, by the name in its files.
        val_split: the split that is evaluated on.
        train_annotations: the annotation file of the training split where it goes by another name:
            a path, from here or in root.
        train_images: its image folder, likewise.
        val_annotations: as train_annotations, of the split that is evaluated on.
        val_images: likewise.
        size: side of the embedded scenes, pixels, 128 to 256.
        train_samples: scenes in an epoch.
        val_samples: images of an evaluation; None takes all.
        flip: probability of a horizontal flip in training.
        on_bad: what a damaged annotation or image does: `stop` the run, or `skip` it.
        image_check: how far images are checked before the training: that they `exist`, their
            `size`, or all of them to the end, `decode`: then none can stop the training later.
        eval_batch_size: images per validation step and device.
        workers: processes per device that load images; 0 loads in the training process.
    """

    kind: Literal["scenes", "coco"] = "scenes"
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    size: int = 128
    train_samples: int = 20_000
    val_samples: int | None = None
    flip: float = 0.0
    on_bad: Literal["stop", "skip"] = "stop"
    image_check: Literal["exist", "size", "decode"] = "decode"
    eval_batch_size: int = 1
    workers: int = 0


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(base_lr=0.02, base_batch_size=16, decay_norm_parameters=False)


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(kind="constant", unit="steps", warmup=500, warmup_factor=1 / 3)


@dataclass
class DetectionConfig(BaseConfig):
    """A complete detection run.

    Attributes:
        task: what tells a config file of detection from one of classification.
        name: what the run is called: its folder, its line in a report.
        seed: of the weights, the images, their order, and the sampling of anchors and regions.
        batch_size: images per optimizer step, over all devices and accumulated passes together.
            BatchNorm's batch is a device's share of one pass.
        model: Mask R-CNN and the norms of its parts.
        data: the images and their instances.
        optimizer: SGD; the learning rate is meant for 16 images and scales with the batch.
        schedule: how the learning rate moves.
        trainer: how long, how often evaluated, on what hardware.

    Example:
        >>> from batchfree.train import DetectionConfig
        >>> DetectionConfig().replace(batch_size=2).learning_rate()
        0.0025
    """

    task: Literal["detection"] = "detection"
    name: str = "detection"
    seed: int = 0
    batch_size: int = 16
    model: DetectorConfig = field(default_factory=DetectorConfig)
    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    schedule: ScheduleConfig = field(default_factory=_schedule)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
