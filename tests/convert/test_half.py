"""float16 and bfloat16: nothing overflows without a word, norms may stay in float32."""

import pytest
import torch
from nets import images, resnet, trained
from torch import nn

import batchfree
from batchfree import DataError
from batchfree.convert import collapse, set_alpha


def dead_channel():
    """Channel 0 is constant, far from zero and of no variance."""
    torch.manual_seed(0)
    model = trained(resnet())
    conv = nn.Conv2d(3, 32, 3, padding=1)
    conv.weight.data.copy_(model[0].weight)
    model[0] = conv
    with torch.no_grad():
        conv.bias.zero_()
        conv.weight[0], conv.bias[0] = 0, 300
        model[1].running_mean[0], model[1].running_var[0] = 300, 0
    return model.half()


@pytest.mark.parametrize("method", ["analytic", "calibrated", "blend", "distill"])
@pytest.mark.parametrize("anchor", [0.0, 2.0])
def test_a_dead_channel_stays_in_float16s_range(method, anchor):
    model, x = dead_channel(), images()
    data = None if method == "analytic" else x
    result = batchfree.convert(
        model, data, method=method, anchor=anchor, steps=2, held_out=images(seed=9)
    )
    assert all(bool(t.isfinite().all()) for t in result.model.state_dict().values())
    assert bool(result.model.eval()(x.half()).isfinite().all())
    # Data-free it knows the running statistics alone, and the next layer's do not fit this channel.
    assert result.report.output_error < (1 if method == "analytic" else 0.2)


def test_the_same_under_autocast_to_float16():
    model = batchfree.convert(dead_channel().float(), images()).model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert bool(model(images()).isfinite().all())


def test_parameters_out_of_range_name_the_layer():
    with pytest.raises(DataError, match=r"place of layer '1' leaves the range of float16.*float32"):
        batchfree.convert(dead_channel(), images(), anchor=None)
    assert batchfree.convert(dead_channel().float(), images(), anchor=None).report.output_error < 1


class Overflows(nn.Module):
    """To infinity wherever the norm before it is a GroupNorm."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        y = self.norm(x)
        return y * torch.inf if isinstance(self.norm, nn.GroupNorm) else y


def test_infinities_of_the_result_alone_are_told_apart_from_bad_data():
    model = trained(nn.Sequential(Overflows(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)))
    with pytest.raises(DataError, match=r"layer '1' .* in the converted model, and none in"):
        batchfree.convert(model, images())
    last = trained(nn.Sequential(nn.BatchNorm2d(3), Overflows(nn.BatchNorm2d(3))))
    for count in (4, 48):  # with and without held-out data
        with pytest.raises(DataError, match="the outputs hold NaN or infinity after the conv"):
            batchfree.convert(last, images(count))


@torch.no_grad()
@pytest.mark.parametrize("method", ["calibrated", "blend"])
def test_norms_in_float32_within_a_bfloat16_model(method):
    torch.manual_seed(0)
    model = trained(resnet(1)).bfloat16()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.float()
    x = images().bfloat16()
    result = batchfree.convert(model, x, method=method)
    assert result.report.output_error < 0.2
    if method == "blend":
        wanted = result.model.eval()(x)
        assert torch.equal(wanted, model(x))
        for alpha in (0.5, 0.0):
            set_alpha(result.model, alpha)
            y = result.model(x)
            assert y.dtype == torch.bfloat16
            assert float((y - wanted).norm() / wanted.norm()) < 0.3
        torch.testing.assert_close(collapse(result.model)(x), y, atol=0.05, rtol=0.05)
