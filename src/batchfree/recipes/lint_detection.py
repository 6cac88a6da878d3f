"""Mistakes in a detection recipe, found before the training starts."""

from __future__ import annotations

from collections.abc import Iterator

from batchfree.recipes.findings import Lint
from batchfree.train import DetectionConfig

_COCO = "Wu & He 2018, section 4.2"


def lint_detection(config: DetectionConfig) -> Iterator[Lint]:
    """The findings of a detection config; those of its network are `lint`'s."""
    model, o = config.model, config.optimizer
    if not o.linear_scaling and config.batch_size != o.base_batch_size:
        rate = o.base_lr * config.batch_size / o.base_batch_size
        yield Lint(
            "learning-rate",
            "optimizer.linear_scaling",
            f"the learning rate stays {o.base_lr:g}, given for {o.base_batch_size} images a step, "
            f"at {config.batch_size}",
            f"turn linear_scaling on, which makes it {rate:g}",
            "Goyal et al. 2017",
        )
    if config.schedule.warmup == 0:
        yield Lint(
            "warm-up",
            "schedule.warmup",
            "no warm-up: the first steps of a detector are its wildest",
            "warm up for 500 steps from 1/3 of the learning rate",
            _COCO,
        )
    if o.decay_norm_parameters and o.weight_decay:
        yield Lint(
            "norm-decay",
            "optimizer.decay_norm_parameters",
            "weight decay on gamma and beta in a detector",
            "leave them out, as the paper does on COCO",
            _COCO,
        )
    if model.zero_init_residual and model.weights is None:
        yield Lint(
            "zero-init",
            "model.zero_init_residual",
            "the last gamma of each residual block starts at 0 in a detector from scratch",
            "start it at 1",
            "it helps classification and hurts detection from scratch",
        )
    if model.weights is None and (model.freeze_at > 0 or model.norm == "frozen_bn"):
        yield Lint(
            "frozen-from-scratch",
            "model.freeze_at" if model.freeze_at else "model.norm",
            "a part of the backbone is frozen and has nothing to start from",
            "name model.weights; from scratch, take gn and freeze nothing",
            f"{_COCO}: frozen random layers cost 3.3 AP (36.2 instead of 39.5)",
        )
    images = _images_per_pass(config)
    if model.norm == "bn" and images is not None and images < 16:
        yield Lint(
            "small-batch",
            "model.norm",
            f"BatchNorm takes its statistics over {images} images in the backbone",
            "take gn, or frozen_bn from a checkpoint",
            f"{_COCO}: BN at 2 images per GPU loses about 6 points of AP",
        )


def _images_per_pass(config: DetectionConfig) -> int | None:
    trainer = config.trainer
    if not isinstance(trainer.devices, int):
        return None
    return config.batch_size // (trainer.devices * trainer.num_nodes * trainer.accumulate)
