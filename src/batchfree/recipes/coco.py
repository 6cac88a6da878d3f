"""Recipes of Wu & He 2018, section 4.2: Mask R-CNN on COCO, fine-tuned."""

from __future__ import annotations

from typing import Literal

from batchfree._checks import check_choice
from batchfree.train import (
    DetectionConfig,
    DetectionDataConfig,
    DetectorConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from batchfree.train.config import NormKind

Times = Literal["1x", "2x", "3x", "6x", "9x"]

# Iterations of 16 images: the length, and where the learning rate falls. From 3x on it falls 60k
# and 20k before the end (He et al., "Rethinking ImageNet Pre-training", 2018, section 3).
SCHEDULES: dict[str, tuple[int, tuple[int, int]]] = {
    "1x": (90_000, (60_000, 80_000)),
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
    "6x": (540_000, (480_000, 520_000)),
    "9x": (810_000, (750_000, 790_000)),
}
_IMAGES = 16
JITTER = [640, 672, 704, 736, 768, 800]


def coco(
    backbone: str = "resnet50",
    norm: NormKind = "gn",
    head_norm: NormKind | None = None,
    times: Times = "2x",
    *,
    scratch: bool = False,
    jitter: bool = False,
    cascade: bool = False,
    box_head: Literal["4conv1fc", "2fc"] | None = None,
    batch_size: int = _IMAGES,
    name: str | None = None,
) -> DetectionConfig:
    """Mask R-CNN with FPN on COCO, as the paper trains it.

    SGD with momentum 0.9 at a learning rate of 0.02 for 16 images, linear in the batch; weight
    decay 1e-4, none on gamma and beta; 500 steps of warm-up from 1/3; images of 800 pixels on the
    shorter side. Fine-tuned, stem and first stage stay frozen; from scratch nothing is, nor where
    the backbone's BatchNorm is to take statistics. With another batch the schedule keeps its
    images, so that its steps are others.

    Args:
        backbone: a ResNet of `batchfree.models.MODELS`.
        norm: of the backbone; BatchNorm's batch is the two images that each of 8 GPUs holds.
        head_norm: of FPN, box and mask head; by default the backbone's, and none beside BN*.
        times: the schedule, in multiples of 90,000 iterations of 16 images.
        scratch: from random weights.
        jitter: the shorter side is drawn from 640 to 800 pixels in training.
        cascade: Cascade R-CNN's three box heads.
        box_head: by default the paper's 4conv1fc, and where the heads have no norm 2fc, as in
            Detectron's baseline, which is the paper's BN* (Table 6).
        batch_size: images per step.
        name: what the run is called.

    Raises:
        ValueError: an unknown schedule.

    Source: Wu & He 2018, section 4.2; the schedules are Detectron's.

    Example:
        >>> config = coco("resnet101", times="3x")
        >>> config.trainer.max_steps, config.schedule.milestones, config.learning_rate()
        (270000, [210000, 250000], 0.02)
        >>> coco(batch_size=2).trainer.max_steps
        1440000
    """
    check_choice(times, SCHEDULES, "times")
    head = head_norm or ("none" if norm == "frozen_bn" else norm)
    steps, milestones = SCHEDULES[times]
    scale = _IMAGES / batch_size
    return DetectionConfig(
        name=name or _name(backbone, norm, head, times, scratch, cascade),
        batch_size=batch_size,
        model=DetectorConfig(
            backbone=backbone,
            norm=norm,
            fpn_norm=head,
            box_norm=head,
            mask_norm=head,
            num_groups=32 if "gn" in (norm, head) else None,
            freeze_at=0 if scratch or norm in ("bn", "sync_bn") else 2,
            box_head=box_head or ("2fc" if head == "none" else "4conv1fc"),
            cascade=cascade,
            min_size=list(JITTER) if jitter else [800],
            max_size=1333,
        ),
        data=DetectionDataConfig(kind="coco", flip=0.5, workers=4),
        optimizer=OptimizerConfig(base_lr=0.02, base_batch_size=16, decay_norm_parameters=False),
        schedule=ScheduleConfig(
            kind="step",
            unit="steps",
            milestones=[round(m * scale) for m in milestones],
            warmup=500,
            warmup_factor=1 / 3,
        ),
        trainer=TrainerConfig(
            max_steps=round(steps * scale),
            evaluate_every=round(steps * scale / 9),
            checkpoint_every=round(2500 * scale),
        ),
    )


def _name(backbone: str, norm: str, head: str, times: str, scratch: bool, cascade: bool) -> str:
    short = backbone.replace("resnext152_32x8d", "x152").replace("resnet", "r")
    plain = "none" if norm == "frozen_bn" else norm
    parts = ["coco", short, norm, *([] if head == plain else ["head", head])]
    parts += ["cascade"] * cascade + ["scratch"] * scratch
    return "_".join([*parts, times])


def coco_r50_frozen_bn_2x() -> DetectionConfig:
    """R50-FPN with BN*, 2x: 38.6 box AP, 34.5 mask AP (Wu & He 2018, Table 6, R50 BN*).

    Detectron's baseline: the 2fc box head and no norm in FPN and heads; with the 4conv1fc head it
    is `coco_r50_frozen_bn_4conv1fc_2x`.

    The weights are those of a BatchNorm classifier with the stride in the 3x3 convolution, such as
    torchvision's or timm's. Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_frozen_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "frozen_bn", times="2x")


def coco_r50_frozen_bn_3x() -> DetectionConfig:
    """R50-FPN with BN*, 3x; no such row in Wu & He 2018, whose 2x is 38.6 box AP, 34.5 mask AP.

    The 2fc box head, as at 2x. BN* "does not benefit from longer training", says section 4.2.
    Hardware: 8 GPUs of 2 images; hours: not measured here.

        batchfree train coco_r50_frozen_bn_3x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "frozen_bn", times="3x")


def coco_r50_gn_2x() -> DetectionConfig:
    """R50-FPN with GN, 2x: 40.3 box AP, 35.7 mask AP (Wu & He 2018, Table 6, R50 GN).

    GN in backbone, FPN, 4conv1fc box head and mask head. The weights are those of
    `imagenet_r50_gn`. Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_gn_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_gn/model.safetensors --trainer.devices 8
    """
    return coco("resnet50", "gn", times="2x")


def coco_r50_gn_3x() -> DetectionConfig:
    """R50-FPN with GN, 3x: 40.8 box AP, 36.1 mask AP (Wu & He 2018, Table 6, R50 GN, long).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_gn_3x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_gn/model.safetensors --trainer.devices 8
    """
    return coco("resnet50", "gn", times="3x")


def coco_r101_frozen_bn_2x() -> DetectionConfig:
    """R101-FPN with BN*, 2x: 40.9 box AP, 36.4 mask AP (Wu & He 2018, Table 6, R101 BN*).

    The 2fc box head, as R50's. Hardware: 8 GPUs of 2 images (the paper's); hours: not measured
    here.

        batchfree train coco_r101_frozen_bn_2x --data.root /data/coco \\
          --model.weights resnet101.pth --trainer.devices 8
    """
    return coco("resnet101", "frozen_bn", times="2x")


def coco_r101_frozen_bn_3x() -> DetectionConfig:
    """R101-FPN with BN*, 3x; no such row in Wu & He 2018, whose 2x is 40.9 box AP, 36.4 mask AP.

    The 2fc box head, as at 2x. Hardware: 8 GPUs of 2 images; hours: not measured here.

        batchfree train coco_r101_frozen_bn_3x --data.root /data/coco \\
          --model.weights resnet101.pth --trainer.devices 8
    """
    return coco("resnet101", "frozen_bn", times="3x")


def coco_r101_gn_2x() -> DetectionConfig:
    """R101-FPN with GN, 2x: 41.8 box AP, 36.8 mask AP (Wu & He 2018, Table 6, R101 GN).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r101_gn_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r101_gn/model.safetensors --trainer.devices 8
    """
    return coco("resnet101", "gn", times="2x")


def coco_r101_gn_3x() -> DetectionConfig:
    """R101-FPN with GN, 3x: 42.3 box AP, 37.2 mask AP (Wu & He 2018, Table 6, R101 GN, long).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r101_gn_3x --data.root /data/coco \\
          --model.weights runs/imagenet_r101_gn/model.safetensors --trainer.devices 8
    """
    return coco("resnet101", "gn", times="3x")
