import pytest
import torch
from torch import nn

import batchfree
from batchfree.convert import collapse, set_alpha


def test_layers_that_are_annealed_are_to_be_collapsed_first():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    model(torch.randn(8, 3, 8, 8))
    blend = batchfree.convert(model.eval(), method="blend", anchor=None).model
    with pytest.raises(batchfree.ConfigError, match="nothing to fuse; collapse its blended layers"):
        batchfree.fuse(blend)
    set_alpha(blend, 0.0)
    x = torch.randn(2, 3, 8, 8)
    wanted = blend(x)
    fused = batchfree.fuse(collapse(blend))
    assert fused[1].activation == "relu"
    assert torch.allclose(fused(x), wanted, atol=1e-6)
