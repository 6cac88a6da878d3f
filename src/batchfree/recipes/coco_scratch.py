"""Recipes of Mask R-CNN on COCO from scratch: Wu & He 2018, and "Rethinking ImageNet Pre-training".

Nothing is frozen and no gamma starts at 0. Normalisation makes the difference between these runs
and none at all: BN* has no statistics to freeze, BN over two images none to trust.
"""

from __future__ import annotations

from batchfree.recipes.coco import coco
from batchfree.train import DetectionConfig


def coco_r50_gn_scratch_3x() -> DetectionConfig:
    """R50-FPN with GN from scratch, 3x: 39.5 box AP, 35.2 mask AP (Wu & He 2018, Table 7).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r50_gn_scratch_3x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnet50", "gn", times="3x", scratch=True)


def coco_r50_gn_scratch_9x() -> DetectionConfig:
    """R50-FPN with GN from scratch, 9x, scale jitter: 43.7 box AP, 39.6 mask AP (detectron2's zoo).

    The row is detectron2's, of a recipe of 400 epochs; this is 9x, about 110, which scale jitter of
    640 to 800 pixels needs from scratch (He et al., "Rethinking ImageNet Pre-training", 2018,
    section 4). detectron2's network differs in detail too, so that the number is a neighbour's.
    Hardware: 8 GPUs of 2 images; hours: not measured here.

        batchfree train coco_r50_gn_scratch_9x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnet50", "gn", times="9x", scratch=True, jitter=True)


def coco_r101_gn_scratch_3x() -> DetectionConfig:
    """R101-FPN with GN from scratch, 3x: 41.0 box AP, 36.4 mask AP (Wu & He 2018, Table 7).

    Hardware: 8 GPUs of 2 images (the paper's); hours: not measured here.

        batchfree train coco_r101_gn_scratch_3x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnet101", "gn", times="3x", scratch=True)


def coco_r101_gn_scratch_9x() -> DetectionConfig:
    """R101-FPN with GN from scratch, 9x, scale jitter; no row to expect beyond 3x's 41.0 box AP.

    Between `coco_r101_gn_scratch_3x` (Wu & He 2018: 41.0 box AP, 36.4 mask AP) and its cascade at
    9x (`coco_r101_gn_cascade_scratch_9x`: 47.4 and 40.5). Hardware: 8 GPUs of 2 images; hours: not
    measured here.

        batchfree train coco_r101_gn_scratch_9x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnet101", "gn", times="9x", scratch=True, jitter=True)


def coco_r101_gn_cascade_scratch_9x() -> DetectionConfig:
    """R101-FPN cascade with GN from scratch, 9x: 47.4 box AP, 40.5 mask AP (He et al. 2018).

    He et al., "Rethinking ImageNet Pre-training", 2018, section 4, with training-time scale jitter;
    their augmentation has more scales than the 640 to 800 pixels here. Hardware: 8 GPUs of 2
    images; hours: not measured here.

        batchfree train coco_r101_gn_cascade_scratch_9x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnet101", "gn", times="9x", scratch=True, jitter=True, cascade=True)


def coco_x152_gn_cascade_scratch_9x() -> DetectionConfig:
    """ResNeXt-152-32x8d cascade with GN from scratch, 9x: 50.9 box AP (He et al. 2018, the talk).

    "More to come: 50.9 AP w/o pre-training", He et al., "Rethinking ImageNet Pre-training", 2018,
    section 4: with augmentation in training and in testing. Testing here is on one scale, so expect
    less. Mask AP: not given. Hardware: 8 GPUs of 80 GB; hours: not measured here.

        batchfree train coco_x152_gn_cascade_scratch_9x --data.root /data/coco --trainer.devices 8
    """
    return coco("resnext152_32x8d", "gn", times="9x", scratch=True, jitter=True, cascade=True)
