"""The two customs of initialising a detector's FPN and heads."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models.detection import MaskRCNN

Initialization = Literal["detectron", "torchvision"]


def initialize(model: MaskRCNN, custom: Initialization) -> None:
    """Sets the weights of box and mask heads by a custom; both agree on the rest.

    In both, FPN convolutions are Xavier-uniform by fan-in (`kaiming_uniform_` with a=1), the RPN
    is normal with standard deviation 0.01, and convolutions of the heads are He-normal by fan-out.
    They differ in the last layers: torchvision leaves the fully connected ones at PyTorch's default
    and starts mask logits He-normal; Detectron fills fully connected layers Xavier-uniform, scores
    from normal 0.01, box deltas and mask logits from normal 0.001, biases 0, so that training
    starts at small outputs.

    Args:
        model: a Mask R-CNN, built with torchvision's initialisation.
        custom: whose.

    Source: Detectron's `fast_rcnn_heads.py` and `mask_rcnn_heads.py`; detectron2's `fast_rcnn.py`.
    """
    if custom == "torchvision":
        return
    heads = model.roi_heads
    for name, layer in heads.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if name.endswith("cls_score"):
            nn.init.normal_(layer.weight, std=0.01)
        elif name.endswith("bbox_pred"):
            nn.init.normal_(layer.weight, std=0.001)
        else:
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    logits = heads.mask_predictor.mask_fcn_logits
    nn.init.normal_(logits.weight, std=0.001)
    nn.init.zeros_(logits.bias)
