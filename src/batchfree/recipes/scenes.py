"""Detection on digit scenes, the embedded twins of the COCO recipes: minutes to hours, no download.

One small Mask R-CNN, one budget and one set of hyper-parameters for every norm; only norms, weights
and what is frozen differ.
"""

from __future__ import annotations

from batchfree.data.digits_in_the_wild import MEAN, STD
from batchfree.train import (
    Config,
    DataConfig,
    DetectionConfig,
    DetectionDataConfig,
    DetectorConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from batchfree.train.config import NormKind

_WIDTH, _CHANNELS_PER_GROUP = 32, 8


def scenes(
    norm: NormKind = "gn",
    head_norm: NormKind | None = None,
    *,
    fpn_norm: NormKind | None = None,
    batch_size: int = 2,
    images: int = 12_000,
    weights: str | None = None,
    freeze_at: int = 0,
    seed: int = 0,
    name: str | None = None,
) -> DetectionConfig:
    """A small Mask R-CNN (2.6 million parameters) on scenes of 128 pixels.

    The paper's rules at a small scale: SGD with momentum 0.9, weight decay 1e-4 and none on gamma
    and beta, a warm-up from 1/3, the learning rate linear in the batch and divided by 10 after 2/3
    and 8/9 of the training, as in the 2x schedule. A training is counted in images, so that a batch
    of 1 takes twice the steps of a batch of 2.

    Args:
        norm: of the backbone.
        head_norm: of box and mask head; the backbone's by default.
        fpn_norm: of the FPN; that of the heads by default.
        batch_size: images per step, which are BatchNorm's batch in the backbone.
        images: images of the training, over all steps.
        weights: a checkpoint of `scenes_backbone` to start from.
        freeze_at: stages that do not train.
        seed: of weights, scenes and sampling.
        name: what the run is called; made of the rest by default.

    Example:
        >>> scenes("bn", batch_size=1).trainer.max_steps
        12000
    """
    head = head_norm or ("none" if norm == "frozen_bn" else norm)
    fpn = fpn_norm or head
    steps = images // batch_size
    tuned = "_finetuned" if weights else ""
    return DetectionConfig(
        name=name or f"scenes_{norm}{'' if head == norm else f'_head_{head}'}{tuned}",
        seed=seed,
        batch_size=batch_size,
        model=DetectorConfig(
            backbone="resnet_small",
            norm=norm,
            fpn_norm=fpn,
            box_norm=head,
            mask_norm=head,
            channels_per_group=_CHANNELS_PER_GROUP if "gn" in (norm, head, fpn) else None,
            weights=weights,
            freeze_at=freeze_at,
            width=_WIDTH,
            blocks_per_stage=1,
            stem="7x7",
            fpn_channels=64,
            head_channels=64,
            fc_channels=256,
            min_size=[128],
            max_size=128,
            image_mean=[MEAN] * 3,
            image_std=[STD] * 3,
            anchor_sizes=[12, 20, 32, 48, 64],
            aspect_ratios=[0.7, 1.0, 1.4],
            anchors_per_image=128,
            rois_per_image=64,
            train_proposals=200,
            test_proposals=200,
        ),
        data=DetectionDataConfig(kind="scenes", size=128, train_samples=20_000, val_samples=400),
        optimizer=OptimizerConfig(base_lr=0.02, base_batch_size=2, decay_norm_parameters=False),
        schedule=ScheduleConfig(
            kind="step",
            unit="steps",
            milestones=[round(steps * 2 / 3), round(steps * 8 / 9)],
            warmup=min(500, steps // 10),
            warmup_factor=1 / 3,
        ),
        trainer=TrainerConfig(
            max_steps=steps,
            evaluate_every=max(1, steps // 6),
            checkpoint_every=max(1, min(500, steps // 6)),
            accelerator="auto",
            devices=1,
        ),
    )


def scenes_backbone(norm: NormKind = "gn", *, steps: int = 3000, seed: int = 0) -> Config:
    """The classifier whose weights the fine-tuned detectors start from: single digits, 64 pixels.

    Its network is the detectors' backbone, its images are `DigitsInTheWild` of the training split.
    BatchNorm takes its statistics over 32 images here, as in the pre-training of the paper.

    Args:
        norm: the kind of norm; a detector with `frozen_bn` starts from `bn`.
        steps: optimizer steps of 32 images.
        seed: of weights and images.
    """
    return Config(
        name=f"scenes_backbone_{norm}",
        seed=seed,
        batch_size=32,
        model=ModelConfig(
            name="resnet_small",
            norm=norm,
            channels_per_group=_CHANNELS_PER_GROUP if norm == "gn" else None,
            width=_WIDTH,
            blocks_per_stage=1,
            stem="7x7",
            zero_init_residual=False,
        ),
        data=DataConfig(kind="digits_in_the_wild", size=64, eval_batch_size=199, val_samples=995),
        optimizer=OptimizerConfig(base_lr=0.1, base_batch_size=32, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="cosine", warmup=0.05),
        trainer=TrainerConfig(max_steps=steps, accelerator="auto", devices=1),
    )


def scenes_backbone_gn() -> Config:
    """GroupNorm classifier of digits at 64 pixels: the start of `scenes_gn_finetuned`.

    Stands for the pre-trained R-50-GN of Wu & He 2018, section 4.2. Minutes on one CPU core.

        batchfree train scenes_backbone_gn --output runs/backbone-gn
    """
    return scenes_backbone("gn")


def scenes_backbone_bn() -> Config:
    """BatchNorm classifier of digits at 64 pixels: the start of the BN and BN* detectors.

    Stands for the pre-trained R-50 of Wu & He 2018, section 4.2. Minutes on one CPU core.

        batchfree train scenes_backbone_bn --output runs/backbone-bn
    """
    return scenes_backbone("bn")


def scenes_gn() -> DetectionConfig:
    """GroupNorm in backbone, FPN and heads, from scratch, on digit scenes.

    Stands for "from scratch" of Wu & He 2018 (COCO, R50-FPN 39.5 box AP, 35.2 mask AP), whose
    numbers it does not reach for: other data, another network. About an hour on one CPU core.

        batchfree train scenes_gn
    """
    return scenes("gn")


def scenes_bn() -> DetectionConfig:
    """BatchNorm, not frozen, in backbone, FPN and heads, from scratch, on digit scenes: batch 2.

    Stands for what Wu & He 2018, section 4.2, say fails: BN over the images of one GPU in the
    backbone and over the regions of these images in the heads (about 6 and 9 AP on COCO,
    fine-tuned). About an hour on one CPU core.

        batchfree train scenes_bn
    """
    return scenes("bn")


def scenes_bn_batch1() -> DetectionConfig:
    """BatchNorm, not frozen, everywhere, from scratch, on digit scenes: one image a step.

    The regime of `scenes_bn` at its worst: every statistic is of one image. The learning rate is
    halved and the steps doubled. About an hour on one CPU core.

        batchfree train scenes_bn_batch1
    """
    return scenes("bn", batch_size=1, name="scenes_bn_batch1")


def scenes_gn_batch1() -> DetectionConfig:
    """GroupNorm everywhere, from scratch, on digit scenes: one image a step.

    What `scenes_bn_batch1` is compared with. About an hour on one CPU core.

        batchfree train scenes_gn_batch1
    """
    return scenes("gn", batch_size=1, name="scenes_gn_batch1")


def scenes_ln() -> DetectionConfig:
    """LayerNorm (one group) everywhere, from scratch, on digit scenes.

    Stands for LN of Wu & He 2018, section 4.2 (1.9 box AP below GN on COCO, R50-C4, fine-tuned).
    About an hour on one CPU core.

        batchfree train scenes_ln
    """
    return scenes("ln")


def scenes_gn_finetuned() -> DetectionConfig:
    """GroupNorm everywhere, fine-tuned from a classifier of digits, on digit scenes.

    Stands for GN of Wu & He 2018 (COCO, R50-FPN 40.3 box AP, 35.7 mask AP). About an hour on one
    CPU core.

        batchfree train scenes_gn_finetuned --model.weights runs/backbone-gn/model.safetensors
    """
    return scenes("gn", name="scenes_gn_finetuned")


def scenes_frozen_bn_finetuned() -> DetectionConfig:
    """BN*: a BatchNorm backbone with frozen statistics and affine, plain heads, fine-tuned.

    Stands for BN* of Wu & He 2018 with the 4conv1fc box head, which it has (COCO, R50-FPN 38.6 box
    AP, 34.2 mask AP). About an hour on one CPU core.

        batchfree train scenes_frozen_bn_finetuned \\
          --model.weights runs/backbone-bn/model.safetensors
    """
    return scenes("frozen_bn", name="scenes_frozen_bn_finetuned")


def scenes_frozen_bn_head_gn_finetuned() -> DetectionConfig:
    """BN* in the backbone, GroupNorm in FPN and heads, fine-tuned, on digit scenes.

    Stands for the heads-only ablation of Wu & He 2018, whose norm is in the box head alone (COCO,
    R50-FPN 39.5 box AP, 34.4 mask AP, against 38.6 and 34.2 without). About an hour on one CPU
    core.

        batchfree train scenes_frozen_bn_head_gn_finetuned \\
          --model.weights runs/backbone-bn/model.safetensors
    """
    return scenes("frozen_bn", "gn", name="scenes_frozen_bn_head_gn_finetuned")


def scenes_frozen_bn_head_bn_finetuned() -> DetectionConfig:
    """BN* in the backbone, BatchNorm (not frozen) in FPN and heads, fine-tuned, on digit scenes.

    Stands for BN in the box head of Wu & He 2018, section 4.2 (about 9 box AP lost on COCO), and
    has it in FPN and mask head too. About an hour on one CPU core.

        batchfree train scenes_frozen_bn_head_bn_finetuned \\
          --model.weights runs/backbone-bn/model.safetensors
    """
    return scenes("frozen_bn", "bn", name="scenes_frozen_bn_head_bn_finetuned")


def scenes_bn_finetuned() -> DetectionConfig:
    """BatchNorm, not frozen, everywhere, fine-tuned from a classifier, on digit scenes: batch 2.

    Stands for fine-tuning with BN of Wu & He 2018, section 4.2 (about 6 box AP lost on COCO). About
    an hour on one CPU core.

        batchfree train scenes_bn_finetuned --model.weights runs/backbone-bn/model.safetensors
    """
    return scenes("bn", name="scenes_bn_finetuned")
