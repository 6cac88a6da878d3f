"""The C4 variant: regions pooled from the third stage's map, the last stage as their head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

_ROI_SIZE = 14  # the last stage's stride makes it 7


class C4Backbone(nn.Module):
    """Stem and the first three stages of a ResNet: images to one map at stride 16.

    Args:
        body: a ResNet without its last stage.
        out_channels: channels of the map.
    """

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, return_layers={"layer3": "0"})
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to {"0": (N, C, H / 16, W / 16)}."""
        return self.body(x)


class SharedStage(nn.Module):
    """Another module's forward without its parameters, so that a state holds them once."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self._shared = (stage,)  # in a tuple it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """The stage's."""
        return self._shared[0](x)


def c4_parts(body: nn.Module, num_classes: int, mask_channels: int) -> dict[str, Any]:
    """What torchvision's MaskRCNN is made of, on a ResNet's third stage.

    The last stage is the head of boxes and of masks, with one set of weights; torchvision's
    `RoIHeads` runs it again on the positive regions where Detectron keeps their features, with the
    same result. All norms are the backbone's.

    Args:
        body: a ResNet with the stages layer1 to layer4; layer4 is taken out of it.
        num_classes: categories and the background.
        mask_channels: channels of the mask's deconvolution.

    Source: He et al., "Mask R-CNN", 2017, figure 4 (left); Wu & He 2018, Table 4.
    """
    stage: Any = body.layer4
    del body.layer4
    block = stage[-1]
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    out, into = last.out_channels, stage[0].conv1.in_channels
    return {
        "backbone": C4Backbone(body, into),
        "box_roi_pool": MultiScaleRoIAlign(["0"], _ROI_SIZE, sampling_ratio=2),
        "box_head": nn.Sequential(stage, nn.AdaptiveAvgPool2d(1)),
        "box_predictor": FastRCNNPredictor(out, num_classes),
        "mask_roi_pool": MultiScaleRoIAlign(["0"], _ROI_SIZE, sampling_ratio=2),
        "mask_head": SharedStage(stage),
        "mask_predictor": MaskRCNNPredictor(out, mask_channels, num_classes),
    }
