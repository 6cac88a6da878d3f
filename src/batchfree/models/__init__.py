"""ResNets with a chosen norm, built from torchvision's parts. Needs `batchfree[train]`."""

from batchfree.models.resnet import (
    MODELS,
    BasicBlock,
    Bottleneck,
    ResNet,
    SmallResNet,
    build_model,
)

__all__ = ["MODELS", "BasicBlock", "Bottleneck", "ResNet", "SmallResNet", "build_model"]
