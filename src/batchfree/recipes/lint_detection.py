"""Mistakes in a detection recipe, found before the training starts."""

from __future__ import annotations

from collections.abc import Iterator

from batchfree.recipes.findings import Lint
from batchfree.train import DetectionConfig
from batchfree.train.config import BaseConfig

_COCO = "Wu & He 2018, section 4.2"
PER_DEVICE = 2
"""Images on a device that Detectron, and with it the paper's rows on COCO, has."""
HEAD_RULE = "bn-in-roi-head"


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
    yield from _batch(config)


def _batch(config: DetectionConfig) -> Iterator[Lint]:
    """BatchNorm over few images, over regions, and over others than the row that is named."""
    model = config.model
    images, known = images_per_pass(config)
    how = f"{images} image{'s' * (images != 1)}"
    if not known:
        how += f" (trainer.devices is {config.trainer.devices!r}: as {PER_DEVICE} on a device)"
    shared = config.batch_size // config.trainer.accumulate
    norms = {"model.norm": model.norm}
    if model.neck == "fpn":
        norms["model.fpn_norm"] = model.fpn_norm
    for field, norm in norms.items():
        part = "the backbone" if field == "model.norm" else "the FPN"
        seen = shared if norm == "sync_bn" else images
        if norm in ("bn", "sync_bn") and seen < 16:
            over = how if norm == "bn" else f"{seen} images, of all devices,"
            yield Lint(
                "small-batch",
                field,
                f"BatchNorm takes its statistics over {over} in {part}",
                "take gn, or frozen_bn from a checkpoint",
                f"{_COCO}: BN at 2 images per GPU loses about 6 points of AP",
            )
    heads = {"model.box_norm": model.box_norm, "model.mask_norm": model.mask_norm}
    if model.neck == "c4":
        heads = {"model.norm": model.norm}  # the last stage is the head
    elif model.box_head == "2fc":
        del heads["model.box_norm"]
    for field, norm in heads.items():
        if norm in ("bn", "sync_bn"):
            over = how if norm == "bn" else f"{shared} images, of all devices"
            yield Lint(
                HEAD_RULE,
                field,
                f"BatchNorm in a head takes its statistics over up to {model.rois_per_image} "
                f"regions of each of {over}, which are not i.i.d.",
                "take gn in the head, or none",
                f"{_COCO}: BN in the box head loses 9 points of AP",
            )
    yield from _row(config, "bn" in (*norms.values(), *heads.values()))


def _row(config: DetectionConfig, has_bn: bool) -> Iterator[Lint]:
    """BatchNorm's batch is a device's share: the rows on COCO are of 2 images on each."""
    images, known = images_per_pass(config)
    if config.data.kind != "coco" or not has_bn or (known and images == PER_DEVICE):
        return
    devices, accumulate = config.batch_size // PER_DEVICE, config.trainer.accumulate
    if known:
        message = f"BatchNorm's batch is {images} images, where the paper's rows have {PER_DEVICE}"
    else:
        message = (
            f"what the machine has decides BatchNorm's batch: on one device it is "
            f"{config.batch_size // accumulate} images, where the paper's rows have {PER_DEVICE}"
        )
    yield Lint(
        "other-experiment",
        "trainer.devices",
        message,
        f"set trainer.devices {devices}, or trainer.accumulate {devices} on one device"
        if devices > 1
        else f"take a batch_size of {PER_DEVICE} times the devices",
        f"{_COCO}: BN unfrozen at 2 images per GPU",
    )


def images_per_pass(config: DetectionConfig) -> tuple[int, bool]:
    """Images that a device holds in a pass, and whether the config says so.

    Where the number of devices is left to the machine they are the two that a device is meant for.
    """
    trainer = config.trainer
    share = config.batch_size // trainer.accumulate
    if not isinstance(trainer.devices, int):
        return max(1, min(PER_DEVICE, share)), False
    return max(1, share // (trainer.devices * trainer.num_nodes)), True


def lint_changed_batch(config: BaseConfig, recipe: BaseConfig) -> Iterator[Lint]:
    """A batch other than the recipe's whose schedule, in steps, is still the recipe's."""
    was, steps = recipe.trainer.max_steps, config.trainer.max_steps
    if config.batch_size == recipe.batch_size or was is None or steps is None:
        return
    factor = recipe.batch_size / config.batch_size
    falls = recipe.schedule.milestones if config.schedule.unit == "steps" else []
    kept = {"trainer.max_steps": steps == was}
    kept["schedule.milestones"] = bool(falls) and config.schedule.milestones == falls
    wanted = {
        "trainer.max_steps": round(was * factor),
        "schedule.milestones": [round(m * factor) for m in falls],
    }
    fields = [name for name, same in kept.items() if same]
    if fields:
        yield Lint(
            "schedule",
            fields[0],
            f"{' and '.join(fields)} are the recipe's, of {recipe.batch_size} images a step: with "
            f"{config.batch_size} they come after {1 / factor:g} times the images",
            "set " + ", ".join(f"{name} {wanted[name]}" for name in fields),
            "Goyal et al. 2017: the learning rate is linear in the batch, the epochs stay",
        )
