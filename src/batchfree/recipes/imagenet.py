"""Recipes of Wu & He 2018, section 4.1: ImageNet classification."""

from __future__ import annotations

from batchfree.train import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from batchfree.train.config import NormKind

# Workers of the paper, each of which takes BN's statistics over its own images.
_GPUS = 8


def imagenet(model: str = "resnet50", norm: NormKind = "gn", images_per_gpu: int = 32) -> Config:
    """The paper's ImageNet training, for 8 GPUs of `images_per_gpu` images.

    The SGD batch is 8 * images_per_gpu and BN's normalisation batch is images_per_gpu, also where
    fewer devices or accumulated passes train it: a device's share of the batch is cut into chunks.
    SGD with momentum 0.9, weight decay 1e-4 on all parameters; 100 epochs, learning rate 0.1 *
    images_per_gpu / 32, divided by 10 at 30, 60 and 90, 5 epochs of warm-up where it is above 0.1.
    The reported error is the median of the last 5 epochs.

    Args:
        model: a ResNet of `batchfree.models.MODELS`.
        norm: the kind of norm.
        images_per_gpu: the paper's batch size: 32, 16, 8, 4 or 2.

    Source: Wu & He, "Group Normalization", 2018, section 4.1.

    Example:
        >>> config = imagenet(norm="bn", images_per_gpu=2)
        >>> config.batch_size, config.model.normalization_batch, config.learning_rate()
        (16, 2, 0.00625)
    """
    return Config(
        name=f"imagenet_{model.replace('resnet', 'r')}_{norm}",
        batch_size=_GPUS * images_per_gpu,
        model=ModelConfig(
            name=model,
            norm=norm,
            num_groups=32 if norm == "gn" else None,
            normalization_batch=images_per_gpu if norm == "bn" else None,
        ),
        data=DataConfig(kind="image_folder", size=224, eval_batch_size=64, workers=8),
        optimizer=OptimizerConfig(base_lr=0.1, base_batch_size=256, weight_decay=1e-4),
        schedule=ScheduleConfig(
            kind="step",
            unit="epochs",
            milestones=[30, 60, 90],
            warmup=5,
            warmup_above_lr=0.1,
        ),
        trainer=TrainerConfig(max_steps=None, max_epochs=100, channels_last=True),
    )


def imagenet_r50_bn() -> Config:
    """ResNet-50 with BatchNorm: 23.6% validation error (Wu & He 2018, Tables 1 and 2, BN, 32).

    The other columns of Table 2 are 23.7, 24.8, 27.3 and 34.7% at 16, 8, 4 and 2 images per GPU;
    for 2: `--batch_size 16 --model.normalization_batch 2`. Hardware: 8 GPUs (the paper's); hours:
    not measured here.

        batchfree train imagenet_r50_bn --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet50", "bn")


def imagenet_r50_gn() -> Config:
    """ResNet-50 with GroupNorm: 24.1% validation error (Wu & He 2018, Tables 1 and 2, GN, 32).

    The other columns of Table 2 are 24.2, 24.0, 24.2 and 24.1% at 16, 8, 4 and 2 images per GPU;
    for 2: `--batch_size 16`. Hardware: 8 GPUs (the paper's); hours: not measured here.

        batchfree train imagenet_r50_gn --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet50", "gn")


def imagenet_r50_ln() -> Config:
    """ResNet-50 with LayerNorm: 25.3% validation error (Wu & He 2018, Table 1, LN).

    Hardware: 8 GPUs (the paper's); hours: not measured here.

        batchfree train imagenet_r50_ln --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet50", "ln")


def imagenet_r50_in() -> Config:
    """ResNet-50 with InstanceNorm: 28.4% validation error (Wu & He 2018, Table 1, IN).

    Hardware: 8 GPUs (the paper's); hours: not measured here.

        batchfree train imagenet_r50_in --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet50", "in")


def imagenet_r101_bn() -> Config:
    """ResNet-101 with BatchNorm: 22.0% validation error (Wu & He 2018, section 4.1, 32 per GPU).

    31.9% at 2 images per GPU: `--batch_size 16 --model.normalization_batch 2`. Hardware: 8 GPUs
    (the paper's); hours: not measured here.

        batchfree train imagenet_r101_bn --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet101", "bn")


def imagenet_r101_gn() -> Config:
    """ResNet-101 with GroupNorm: 22.4% validation error (Wu & He 2018, section 4.1, 32 per GPU).

    23.0% at 2 images per GPU: `--batch_size 16`. Hardware: 8 GPUs (the paper's); hours: not
    measured here.

        batchfree train imagenet_r101_gn --data.root /data/imagenet --trainer.devices 8
    """
    return imagenet("resnet101", "gn")


def imagenet_r50_converted() -> Config:
    """Fine-tunes a ResNet-50 that was converted from BN's 23.6% validation error (Wu & He 2018).

    Tables 1 and 2 there have BN at 23.6% and GN, trained from scratch, at 24.1%; what a converted
    model reaches is not published and not measured here. A tenth of the epochs at a tenth of the
    rate, along a cosine. Hardware: 8 GPUs; hours: not measured here.

        batchfree convert torchvision:resnet50 --weights resnet50.pth \\
            --calibration /data/imagenet/train --output runs/r50_converted.safetensors
        batchfree train imagenet_r50_converted --data.root /data/imagenet --trainer.devices 8
    """
    config = imagenet("resnet50", "gn")
    return config.replace(
        name="imagenet_r50_converted",
        model={"converted": "runs/r50_converted.safetensors"},
        optimizer={"base_lr": 0.01},
        schedule={"kind": "cosine", "unit": "fraction", "milestones": [], "warmup": 0.05},
        trainer={"max_epochs": 10},
    )
