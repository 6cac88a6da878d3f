"""The networks whose training step is timed, each with fused GN, eager GN and BN.

Needs `batchfree[train]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

from batchfree.models import build_model
from batchfree.nn import GroupNorm, norm_layer

MODELS = FUSED, EAGER, BATCH_NORM = ("fused GN", "eager GN", "BN")
NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "unet", "maskrcnn")
GROUPS = 32

Loss = Callable[..., Tensor]


def build(network: str, model: str, batch: int, size: int) -> tuple[nn.Module, list[Any], Loss]:
    """A network, inputs for it, and the loss of the network on them.

    Args:
        network: of `NETWORKS`: a ResNet, the blocks of Stable Diffusion's UNet, or Mask R-CNN of
            ResNet-50 and FPN.
        model: of `MODELS`, whose norms it has.
        batch: images.
        size: pixels of a side; the UNet's blocks work at an eighth of it, and an image of Mask
            R-CNN is 5/3 as wide as high.
    """
    if network == "unet":
        return _Blocks(model), _latents(batch, size // 8), _mean_square
    if network == "maskrcnn":
        return _mask_rcnn(model, size), _annotated(batch, size), _sum_of_losses
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    return _resnet(network, model), [images, labels], _classification


def _resnet(network: str, model: str) -> nn.Module:
    """Ours with fused norms, or torchvision's, whose ReLU works in place."""
    if model == FUSED:
        return build_model(network, norm=norm_layer("gn", groups=GROUPS))
    build = getattr(torchvision.models, network)
    if model == BATCH_NORM:
        return build()
    return build(norm_layer=lambda channels: nn.GroupNorm(GROUPS, channels))


def _classification(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def _norm_and_silu(model: str, channels: int) -> nn.Module:
    if model == FUSED:
        return GroupNorm(GROUPS, channels, activation="silu")
    norm = nn.BatchNorm2d(channels) if model == BATCH_NORM else nn.GroupNorm(GROUPS, channels)
    return nn.Sequential(norm, nn.SiLU(inplace=True))


class _Block(nn.Module):
    """A residual block of Stable Diffusion's UNet, less its time embedding."""

    def __init__(self, model: str, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm_and_silu(model, channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm_and_silu(model, channels),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Blocks(nn.Module):
    """Two such blocks at each of the UNet's four resolutions."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_Block(model, channels), _Block(model, channels))
            for channels in (320, 640, 1280, 1280)
        )

    def forward(self, *latents: Tensor) -> list[Tensor]:
        return [level(x) for level, x in zip(self.levels, latents, strict=True)]


def _latents(batch: int, side: int) -> list[Tensor]:
    widths = (320, 640, 1280, 1280)
    return [torch.randn(batch, c, side >> i, side >> i) for i, c in enumerate(widths)]


def _mean_square(model: nn.Module, *latents: Tensor) -> Tensor:
    return torch.stack([y.float().square().mean() for y in model(*latents)]).sum()


def _mask_rcnn(model: str, height: int) -> nn.Module:
    backbone = _resnet_fpn_extractor(_resnet("resnet50", model), trainable_layers=5)
    # Images come in their size, which the scaling of a step leaves as it is.
    return MaskRCNN(backbone, num_classes=91, min_size=height, max_size=1 << 20)


def _annotated(batch: int, height: int) -> list[Any]:
    width = height * 5 // 3
    corners = torch.rand(batch, 8, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corners, corners + torch.tensor([width / 4, height / 4])], 2)
    masks = torch.zeros(batch, 8, height, width, dtype=torch.uint8)
    masks[:, :, height // 4 : height // 2, width // 4 : width // 2] = 1
    images = [torch.rand(3, height, width) for _ in range(batch)]
    targets = [
        {"boxes": b, "labels": torch.randint(1, 91, (8,)), "masks": m}
        for b, m in zip(boxes, masks, strict=True)
    ]
    return [images, targets]


def _sum_of_losses(model: nn.Module, images: list[Tensor], targets: list[Any]) -> Tensor:
    return torch.stack(list(model(images, targets).values())).sum()
