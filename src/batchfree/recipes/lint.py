"""Mistakes in a recipe that users of small batches report, found before the training starts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from batchfree.audit.static import BATCH_KINDS, kind_of
from batchfree.recipes.findings import Lint
from batchfree.recipes.lint_detection import HEAD_RULE, lint_changed_batch, lint_detection
from batchfree.train import Config, DetectionConfig


def lint(
    config: Config | DetectionConfig,
    network: nn.Module | None = None,
    *,
    recipe: Config | DetectionConfig | None = None,
) -> list[Lint]:
    """The mistakes in a config and, where it is given, in the network that it builds.

    Args:
        config: the run.
        network: the network to look at, built; frozen layers and left-over norms are seen there.
        recipe: what the config was changed from; a schedule that did not follow a changed batch is
            seen by it.

    Returns:
        What was found, empty where nothing was. A finding is no proof: each names the custom that
        the config departs from.

    Example:
        >>> from batchfree.recipes import get_recipe
        >>> config = get_recipe("imagenet_r50_bn").replace(
        ...     batch_size=16, model={"normalization_batch": 2}
        ... )
        >>> [found.rule for found in lint(config)]
        ['small-batch']
    """
    changed = [] if recipe is None else [*lint_changed_batch(config, recipe)]
    if isinstance(config, DetectionConfig):
        scratch = config.model.weights is None
        found = [*lint_detection(config), *changed]
        seen = [] if network is None else [*_network(network, scratch)]
        # Of the heads' norms the config's findings say more.
        return found + [item for item in seen if item.rule != HEAD_RULE]
    found = [*_learning_rate(config), *_batch(config), *_decay(config), *_zero_init(config)]
    found += [*_frozen(config), *changed]
    return found + ([] if network is None else [*_network(network)])


_LINEAR = "Goyal et al. 2017; Wu & He 2018, section 4.1"
_SECTION = "Wu & He 2018, section 4.1"
_COCO = "Wu & He 2018, section 4.2"


def _learning_rate(config: Config) -> Iterator[Lint]:
    o = config.optimizer
    if not o.linear_scaling and config.batch_size != o.base_batch_size:
        rate = o.base_lr * config.batch_size / o.base_batch_size
        yield Lint(
            "learning-rate",
            "optimizer.linear_scaling",
            f"the learning rate stays {o.base_lr:g}, given for {o.base_batch_size} images a step, "
            f"at {config.batch_size}",
            f"turn linear_scaling on, which makes it {rate:g}",
            _LINEAR,
        )
    rate, schedule = config.learning_rate(), config.schedule
    linear = 0.1 * config.batch_size / 256
    if o.linear_scaling and config.data.kind == "image_folder" and not 0.5 <= rate / linear <= 2:
        yield Lint(
            "learning-rate",
            "optimizer.base_lr",
            f"a learning rate of {rate:g} at {config.batch_size} images a step, where the linear "
            f"rule gives {linear:g}",
            "start from 0.1 for 256 images",
            _LINEAR,
        )
    if rate > 0.1 + 1e-12 and schedule.warmup == 0:
        yield Lint(
            "warm-up",
            "schedule.warmup",
            f"a learning rate of {rate:g} without warm-up",
            "warm up for 5 epochs where it is above 0.1",
            _LINEAR,
        )


def _batch(config: Config) -> Iterator[Lint]:
    model = config.model
    if model.norm not in ("bn", "sync_bn"):
        return
    seen = model.normalization_batch
    if seen is None and isinstance(config.trainer.devices, int):
        workers = config.trainer.devices * config.trainer.num_nodes
        seen = config.batch_size // (1 if model.norm == "sync_bn" else workers)
        seen //= config.trainer.accumulate
    if seen is not None and seen < 16:
        yield Lint(
            "small-batch",
            "model.normalization_batch",
            f"BatchNorm takes its statistics over {seen} images",
            "take gn, whose error does not depend on it, or 16 images and more",
            f"{_SECTION}, table 2: 24.8% at 8, 27.3% at 4, 34.7% at 2, against 24.1% of GN",
        )


def _decay(config: Config) -> Iterator[Lint]:
    o = config.optimizer
    if config.model.norm in ("none", "frozen_bn") or o.weight_decay == 0:
        return
    if not o.decay_norm_parameters and config.data.kind == "image_folder":
        yield Lint(
            "norm-decay",
            "optimizer.decay_norm_parameters",
            "no weight decay on gamma and beta in a classification from scratch",
            "decay them too, as the paper does on ImageNet; leave them out for detection",
            f"{_SECTION} and {_COCO}",
        )


def _zero_init(config: Config) -> Iterator[Lint]:
    if config.data.kind == "image_folder" and not config.model.zero_init_residual:
        yield Lint(
            "zero-init",
            "model.zero_init_residual",
            "the last gamma of each residual block starts at 1",
            "start it at 0, as the paper does",
            f"{_SECTION}: gamma of each residual block's last norm is initialised by 0",
        )


def _frozen(config: Config) -> Iterator[Lint]:
    if config.model.norm == "frozen_bn":  # every classification recipe trains from scratch
        yield Lint(
            "frozen-from-scratch",
            "model.norm",
            "frozen BatchNorm in a training from scratch normalises nothing",
            "take gn; frozen_bn is for fine-tuning",
            f"{_COCO}",
        )


def _network(network: nn.Module, scratch: bool = True) -> Iterator[Lint]:
    kinds = {n: kind_of(m, network.training) for n, m in network.named_modules()}
    batch = [n for n, kind in kinds.items() if kind in BATCH_KINDS and kind != "FrozenBatchNorm"]
    per_sample = [n for n, kind in kinds.items() if kind in ("GroupNorm", "LayerNorm")]
    heads = [n for n in batch if _in_roi_head(n)]
    for name in heads:
        yield Lint(
            HEAD_RULE,
            name,
            "BatchNorm over the regions of a few images, which are not i.i.d.",
            "take GroupNorm in the head",
            f"{_COCO}: BN in the box head loses 9 points of AP",
        )
    left = [n for n in batch if n not in heads]
    if per_sample and left:
        yield Lint(
            "left-over-bn",
            left[0],
            f"{len(left)} BatchNorms beside {len(per_sample)} GroupNorms",
            "convert all of them, or freeze the BatchNorms",
            "mixing is a mistake more often than a choice",
        )
    frozen = [
        n
        for n, m in network.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Conv3d)) and not m.weight.requires_grad
    ]
    if frozen and scratch:
        yield Lint(
            "frozen-stem",
            frozen[0],
            f"{len(frozen)} convolutions are frozen in a training from scratch: they stay random",
            "train all layers (trainable_backbone_layers=5 in torchvision, freeze_at=0 elsewhere)",
            f"{_COCO}, training from scratch; pytorch/vision #2164, detectron2 #914",
        )


def _in_roi_head(name: str) -> bool:
    return any(word in name for word in ("roi_head", "box_head", "mask_head", "keypoint_head"))
