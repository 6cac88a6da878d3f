"""Recipes of Wu & He 2018, section 4.2: which part has which norm, and what fails."""

from __future__ import annotations

from batchfree.recipes.coco import coco
from batchfree.train import DetectionConfig


def coco_r50_frozen_bn_head_gn_2x() -> DetectionConfig:
    """Heads only: R50-FPN, BN* backbone, GN heads: 39.5 box AP, 34.4 mask AP (Wu & He 2018).

    Table 5, row BN* and GN; beside it stand BN* with plain heads, 38.6 and 34.2
    (`coco_r50_frozen_bn_2x`), and GN everywhere, 40.0 and 34.8 (`coco_r50_gn_2x`). Hardware: 8 GPUs
    of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_frozen_bn_head_gn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "frozen_bn", "gn", "2x")


def coco_r50_frozen_bn_head_bn_2x() -> DetectionConfig:
    """BN in the heads: R50-FPN, BN* backbone: about 9 below 38.6 box AP (Wu & He 2018).

    Section 4.2: the regions of an image are not i.i.d., so that their statistics mislead. Mask AP:
    not given. Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_frozen_bn_head_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "frozen_bn", "bn", "2x")


def coco_r50_bn_2x() -> DetectionConfig:
    """BN, not frozen, over 2 images: R50-FPN: about 6 below 38.6 box AP (Wu & He 2018).

    Section 4.2: fine-tuning the backbone's BN at 2 images per GPU; the heads have no norm, as
    beside BN*. Mask AP: not given. Hardware: 8 GPUs of 2 images (the paper's); hours: not measured
    here.

        batchfree train coco_r50_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "bn", "none", "2x", name="coco_r50_bn_2x")


def coco_r50_sync_bn_2x() -> DetectionConfig:
    """SyncBN over 16 images: R50-FPN with SyncBN everywhere; no row in Wu & He 2018: box AP to see.

    For comparison: statistics over the images of all 8 GPUs (MegDet; "Rethinking ImageNet
    Pre-training", 2018, finds it level with GN). Mask AP: not given. Hardware: 8 GPUs of 2 images;
    hours: not measured here.

        batchfree train coco_r50_sync_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "sync_bn", times="2x")


def coco_r50_ln_2x() -> DetectionConfig:
    """LN everywhere: R50-FPN: 1.9 below GN's 40.3 box AP (Wu & He 2018, section 4.2).

    The weights are those of `imagenet_r50_ln`. Mask AP: not given. Hardware: 8 GPUs of 2 images
    (the paper's); hours: not measured here.

        batchfree train coco_r50_ln_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_ln/model.safetensors --trainer.devices 8
    """
    return coco("resnet50", "ln", times="2x")


def coco_r50_c4_frozen_bn_2x() -> DetectionConfig:
    """R50-C4 with BN*: 37.7 box AP, 32.8 mask AP (Wu & He 2018, Table 4, R50-C4 BN*).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_c4_frozen_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    config = coco("resnet50", "frozen_bn", times="2x", name="coco_r50_c4_frozen_bn_2x")
    return config.replace(model={"neck": "c4"})


def coco_r50_c4_gn_2x() -> DetectionConfig:
    """R50-C4 with GN: 38.8 box AP, 33.6 mask AP (Wu & He 2018, Table 4, R50-C4 GN).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_c4_gn_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_gn/model.safetensors --trainer.devices 8
    """
    config = coco("resnet50", "gn", times="2x", name="coco_r50_c4_gn_2x")
    return config.replace(model={"neck": "c4"})
