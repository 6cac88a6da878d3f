"""Recipes on digits in the wild, the embedded data set: minutes on a CPU, no download."""

from __future__ import annotations

from torch import nn

from batchfree.train import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from batchfree.train.config import NormKind


def digits_small(
    norm: NormKind = "gn",
    normalization_batch: int | None = None,
    *,
    weight_standardization: bool = False,
    num_groups: int | None = 32,
    channels_per_group: int | None = None,
    batch_size: int = 32,
    steps: int = 1500,
    width: int = 16,
    seed: int = 0,
    name: str | None = None,
) -> Config:
    """A small ResNet (4 stages of 1 block) on digits in the wild, the same for every norm.

    The paper's rules at a small scale: SGD with momentum 0.9, weight decay 1e-4 on all parameters,
    learning rate linear in the batch; a cosine schedule with 5% warm-up. One departure: the last
    gamma of a block starts at 1, not at 0. With so few blocks, networks that start as the identity
    sit on a plateau, GN's the longest (`docs/batch-size.md` has the numbers).

    Args:
        norm: the kind of norm.
        normalization_batch: images over which BN takes its statistics; for `bn` only.
        weight_standardization: standardise the convolutions' weights.
        num_groups: groups per layer; for `gn` only.
        channels_per_group: channels per group, instead of `num_groups`; for `gn` only.
        batch_size: images per step.
        steps: optimizer steps.
        width: channels of the first stage.
        seed: of weights and images.
        name: what the run is called; made of the rest by default.

    Example:
        >>> digits_small("bn", 2).name
        'digits_small_bn_nb2'
    """
    is_gn, is_bn = norm == "gn", norm == "bn"
    ws = "_ws" if weight_standardization else ""
    nb = f"_nb{normalization_batch}" if is_bn and normalization_batch is not None else ""
    return Config(
        name=name or f"digits_small_{norm}{ws}{nb}",
        seed=seed,
        batch_size=batch_size,
        model=ModelConfig(
            name="resnet_small",
            norm=norm,
            num_groups=num_groups if is_gn and channels_per_group is None else None,
            channels_per_group=channels_per_group if is_gn else None,
            normalization_batch=normalization_batch if is_bn else None,
            weight_standardization=weight_standardization,
            width=width,
            blocks_per_stage=1,
            zero_init_residual=False,
        ),
        data=DataConfig(kind="digits_in_the_wild", size=16, eval_batch_size=199),
        optimizer=OptimizerConfig(base_lr=0.2, base_batch_size=32, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="cosine", warmup=0.05),
        trainer=TrainerConfig(max_steps=steps, accelerator="auto", devices=1),
    )


def digits_small_bn() -> Config:
    """BatchNorm on digits in the wild.

    Stands for the BN row of Wu & He 2018, Table 2 (ImageNet, ResNet-50: 23.6% at 32 images per GPU,
    34.7% at 2), whose numbers it does not reach for: other data, another network. Minutes on one
    CPU core.

        batchfree train digits_small_bn
        batchfree train digits_small_bn --model.normalization_batch 2
    """
    return digits_small("bn")


def digits_small_gn() -> Config:
    """GroupNorm on digits in the wild, the paper's 32 groups (16 where there are 16 channels).

    Stands for the GN row of Wu & He 2018, Table 2 (ImageNet, ResNet-50: 24.1% at 32 images per GPU,
    24.1% at 2), as `digits_small_bn` does for BN's. Minutes on one CPU core.

        batchfree train digits_small_gn
    """
    return digits_small("gn")


def digits_small_gn_ws() -> Config:
    """GroupNorm with weight-standardised convolutions on digits in the wild.

    Not in Wu & He 2018; weight standardisation is of Qiao et al., "Micro-Batch Training with
    Batch-Channel Normalization and Weight Standardization", 2019. Minutes on one CPU core.

        batchfree train digits_small_gn_ws
    """
    return digits_small("gn", weight_standardization=True)


def digits_small_ln() -> Config:
    """LayerNorm (one group) on digits in the wild.

    Stands for LN in Wu & He 2018, Table 1 (ImageNet, ResNet-50: 25.3%). Minutes on one CPU core.

        batchfree train digits_small_ln
    """
    return digits_small("ln")


def digits_small_in() -> Config:
    """InstanceNorm (a group per channel) on digits in the wild.

    Stands for IN in Wu & He 2018, Table 1 (ImageNet, ResNet-50: 28.4%). Minutes on one CPU core.

        batchfree train digits_small_in
    """
    return digits_small("in")


def digits_small_bn_network() -> nn.Module:
    """The network of `digits_small_bn`, untrained: a name for `batchfree convert`.

    Example:
        >>> type(digits_small_bn_network()).__name__
        'SmallResNet'
    """
    from batchfree.train.build import build_network

    return build_network(digits_small_bn().model, num_classes=10)


def digits_converted() -> Config:
    """Fine-tunes the BatchNorm network of digits in the wild after its conversion to GroupNorm.

    A fifth of the training's steps at a tenth of its rate. Not in Wu & He 2018, who fine-tune
    models that were trained with GN. Minutes on one CPU core.

    It starts from what these made: `batchfree train digits_small_bn --output runs/digits_bn`, and

        batchfree convert batchfree.recipes.digits:digits_small_bn_network \\
            --weights runs/digits_bn/model.safetensors --calibration embedded \\
            --output runs/digits_converted.safetensors
        batchfree train digits_converted
    """
    config = digits_small("gn", steps=300, name="digits_converted")
    return config.replace(
        model={"converted": "runs/digits_converted.safetensors"},
        optimizer={"base_lr": 0.02},
    )
