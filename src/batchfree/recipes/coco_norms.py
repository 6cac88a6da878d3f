"""Recipes of Wu & He 2018, section 4.2: which part has which norm, and what fails."""

from __future__ import annotations

from batchfree.recipes.coco import coco
from batchfree.train import DetectionConfig


def coco_r50_frozen_bn_4conv1fc_2x() -> DetectionConfig:
    """Heads only, plain: R50-FPN, BN*, 4conv1fc box head: 38.6 box AP, 34.2 mask AP (Wu & He 2018).

    Table 5, first row: no norm in FPN and heads. Detectron's release of the paper's code gives the
    same network 38.8 box AP, 34.4 mask AP (its `projects/GN`). With the 2fc head it is
    `coco_r50_frozen_bn_2x`. Hardware: 8 GPUs of 2 images; hours: not measured here.

        batchfree train coco_r50_frozen_bn_4conv1fc_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    name = "coco_r50_frozen_bn_4conv1fc_2x"
    return coco("resnet50", "frozen_bn", times="2x", box_head="4conv1fc", name=name)


def coco_r50_frozen_bn_head_gn_2x() -> DetectionConfig:
    """Heads only: R50-FPN, BN* backbone, GN box head: 39.5 box AP, 34.4 mask AP (Wu & He 2018).

    Table 5, second row: GN in the convolutions of the 4conv1fc box head, no norm in FPN and mask
    head. Beside it stand the plain head, 38.6 and 34.2 (`coco_r50_frozen_bn_4conv1fc_2x`), and GN
    in the backbone too, 40.0 and 34.8 (`coco_r50_gn_head_gn_2x`). Hardware: 8 GPUs of 2 images;
    hours: not measured here.

        batchfree train coco_r50_frozen_bn_head_gn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return _box_head_only(coco("resnet50", "frozen_bn", "gn", "2x"))


def coco_r50_gn_head_gn_2x() -> DetectionConfig:
    """Heads only, GN backbone: R50-FPN, GN box head: 40.0 box AP, 34.8 mask AP (Wu & He 2018).

    Table 5, third row: `coco_r50_frozen_bn_head_gn_2x` with the GN backbone, no norm in FPN and
    mask head; GN there too is `coco_r50_gn_2x`, 40.3 and 35.7. Hardware: 8 GPUs of 2 images; hours:
    not measured here.

        batchfree train coco_r50_gn_head_gn_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_gn/model.safetensors --trainer.devices 8
    """
    return _box_head_only(coco("resnet50", "gn", "gn", "2x", name="coco_r50_gn_head_gn_2x"))


def coco_r50_frozen_bn_head_bn_2x() -> DetectionConfig:
    """BN in the box head: R50-FPN, BN* backbone: about 9 below 38.6 box AP (Wu & He 2018).

    Section 4.2: the 512 regions of an image are not i.i.d., so that their statistics mislead. BN,
    not frozen, in the convolutions of the 4conv1fc box head, no norm in FPN and mask head; what it
    is compared with is `coco_r50_frozen_bn_4conv1fc_2x`. Mask AP: not given. Hardware: 8 GPUs of 2
    images; hours: not measured here.

        batchfree train coco_r50_frozen_bn_head_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return _box_head_only(coco("resnet50", "frozen_bn", "bn", "2x"))


def _box_head_only(config: DetectionConfig) -> DetectionConfig:
    """Without a norm in FPN and mask head."""
    return config.replace(model={"fpn_norm": "none", "mask_norm": "none"})


def coco_r50_bn_2x() -> DetectionConfig:
    """BN, not frozen, over 2 images: R50-FPN: about 6 below 38.6 box AP (Wu & He 2018).

    Section 4.2: fine-tuning the backbone's BN at 2 images per GPU; on which network it does not
    say. Here it is Detectron's baseline, `coco_r50_frozen_bn_2x`, with BN that is not frozen, in
    stem and first stage neither, so that these train too: 2fc box head, no norm in FPN and heads.
    Mask AP: not given. BN's batch is what a GPU holds: 8 GPUs
    make it 2 images, one GPU 16, which is another experiment. Hardware: 8 GPUs of 2 images; hours:
    not measured here.

        batchfree train coco_r50_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "bn", "none", "2x", name="coco_r50_bn_2x")


def coco_r50_sync_bn_2x() -> DetectionConfig:
    """SyncBN over 16 images: R50-FPN with SyncBN everywhere; no row in Wu & He 2018: box AP to see.

    For comparison: statistics over the images of all 8 GPUs, no stage frozen (MegDet; "Rethinking
    ImageNet Pre-training", 2018, finds it level with GN). Mask AP: not given. Hardware: 8 GPUs of 2
    images; hours: not measured here.

        batchfree train coco_r50_sync_bn_2x --data.root /data/coco \\
          --model.weights resnet50.pth --trainer.devices 8
    """
    return coco("resnet50", "sync_bn", times="2x")


def coco_r50_ln_2x() -> DetectionConfig:
    """LN everywhere: R50-FPN; no such row in Wu & He 2018, whose LN is of C4: 1.9 box AP below GN.

    The paper's own is `coco_r50_c4_ln_2x`; GN here is `coco_r50_gn_2x`: 40.3 box AP, 35.7 mask
    AP. The weights are those of `imagenet_r50_ln`. Mask AP: not given. Hardware: 8 GPUs of 2
    images; hours: not measured here.

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


def coco_r50_c4_ln_2x() -> DetectionConfig:
    """R50-C4 with LN: 36.9 box AP, 1.9 below GN's and 0.8 below BN*'s (Wu & He 2018, section 4.2).

    The weights are those of `imagenet_r50_ln`. Mask AP: not given. Hardware: 8 GPUs of 2 images;
    hours: not measured here.

        batchfree train coco_r50_c4_ln_2x --data.root /data/coco \\
          --model.weights runs/imagenet_r50_ln/model.safetensors --trainer.devices 8
    """
    config = coco("resnet50", "ln", times="2x", name="coco_r50_c4_ln_2x")
    return config.replace(model={"neck": "c4"})
