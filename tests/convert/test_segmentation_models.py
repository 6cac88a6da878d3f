"""The architectures of segmentation_models_pytorch convert whole."""

import pytest
import torch
from torch import nn

import batchfree

smp = pytest.importorskip("segmentation_models_pytorch")
NAMES = ("Unet", "UnetPlusPlus", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN")
ENCODERS = ("mobilenet_v2", "timm-efficientnet-b0")


@pytest.mark.parametrize(
    ("name", "encoder"),
    [(n, "resnet18") for n in (*NAMES, "MAnet", "UPerNet", "Segformer")]
    + [("Unet", e) for e in ENCODERS],
)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_converts(name, encoder):
    model = getattr(smp, name)(encoder, encoder_weights=None, classes=2)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    result = batchfree.convert(model)
    assert len(result.report.converted) == norms
    side = 128 if name == "PAN" else 64
    x = torch.randn(2, 3, side, side)
    result.model.train()(x).square().mean().backward()
    batchfree.assert_batch_independent(result.model, x, mode="train")
