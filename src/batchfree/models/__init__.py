"""ResNets and Mask R-CNN with a chosen norm, from torchvision's parts. Needs `batchfree[train]`."""

from batchfree.models.cascade import CascadeRoIHeads
from batchfree.models.conventions import Conventions
from batchfree.models.mask_rcnn import Norms, mask_rcnn
from batchfree.models.resnet import (
    MODELS,
    BasicBlock,
    Bottleneck,
    ResNet,
    SmallResNet,
    build_model,
)
from batchfree.models.weights import Loaded, load_backbone

__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "CascadeRoIHeads",
    "Conventions",
    "Loaded",
    "Norms",
    "ResNet",
    "SmallResNet",
    "build_model",
    "load_backbone",
    "mask_rcnn",
]
