"""Distillation: in half precision too, never for the worse, and a clear word where it cannot."""

import pytest
import torch
from nets import images, resnet, trained
from torch import nn

import batchfree


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return trained(resnet())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32(original, dtype):
    torch.manual_seed(0)
    model, x = trained(resnet()).to(dtype), images(100)
    before = batchfree.convert(model, x)
    after = batchfree.convert(model, x, method="distill", steps=20)
    assert {p.dtype for p in after.model.parameters()} == {dtype}
    assert all(bool(p.isfinite().all()) for p in after.model.parameters())
    assert after.report.output_error < 0.95 * before.report.output_error
    one = batchfree.convert(model, x, method="distill", steps=1)
    assert one.report.output_error < 1.05 * before.report.output_error


def test_norms_in_float32_of_a_half_model_stay_in_it():
    torch.manual_seed(0)
    model = trained(resnet(1)).bfloat16()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.float()
    result = batchfree.convert(model, images(), method="distill", steps=3)
    assert result.model[1].weight.dtype == torch.float32
    assert result.model[0].weight.dtype == torch.bfloat16


def test_what_comes_no_nearer_is_not_taken(original, monkeypatch):
    from batchfree.convert import converting
    from batchfree.convert.distill import distill

    def wild(*args, **options):
        return distill(*args, **options, rate=1000.0)

    x = images()
    wanted = batchfree.convert(original, x).model.state_dict()
    monkeypatch.setattr(converting, "distill", wild)
    result = batchfree.convert(original, x, method="distill", steps=3)
    assert all(torch.equal(v, wanted[k]) for k, v in result.model.state_dict().items())
    assert "the distillation came no nearer in 3 steps" in str(result.report.notes)


def test_a_model_without_gradients_is_told_of():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = resnet(1)

        @torch.no_grad()
        def forward(self, x):
            return self.net(x)

    model = trained(Silent())
    with pytest.raises(batchfree.ConfigError, match=r"under torch.no_grad\(\).*'calibrated'"):
        batchfree.convert(model, images(), method="distill", steps=2)


def test_a_model_that_cannot_be_trained_is_told_of():
    class Breaks(nn.Module):
        def forward(self, x):
            y = x.exp()
            return y.mul_(2)

    model = trained(nn.Sequential(nn.BatchNorm2d(3), Breaks()))
    with pytest.raises(batchfree.ConfigError, match=r"cannot be trained.*RuntimeError.*inplace"):
        batchfree.convert(model, images(), method="distill", steps=2)
