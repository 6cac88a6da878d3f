"""Model code that reaches around its layers: what it needs of them is named, or left and said."""

import pytest
import torch
import torch.nn.functional as F
from nets import images, resnet, trained
from torch import nn

import batchfree
from batchfree import ConfigError


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)

    def forward(self, x):
        y, bn = self.conv(x), self.bn
        scale = 1 if self.training else (bn.running_var + bn.eps).rsqrt().mean()
        return bn(y) * scale


def test_code_that_reads_statistics_is_told_which_layer_to_keep():
    model = trained(Reads())
    result = batchfree.convert(model).model.eval()
    with pytest.raises(AttributeError, match=r"reads 'running_var' of a BatchNorm.*keep="):
        result(images())
    assert not hasattr(result.bn, "running_mean")
    with pytest.raises(AttributeError, match="has no attribute 'weights'"):
        result.bn.weights  # noqa: B018
    for anchor in (2.0, None):
        for method in ("calibrated", "distill"):
            with pytest.raises(ConfigError, match=r"'running_var' of layer 'bn'.*keep='bn'"):
                batchfree.convert(model, images(), anchor=anchor, method=method)


def test_code_that_reads_the_number_of_channels_runs():
    class Counts(Reads):
        def forward(self, x):
            return self.bn(self.conv(x)) / self.bn.num_features

    result = batchfree.convert(trained(Counts()), images())
    assert result.report.output_error < 0.5


def test_a_quantisation_aware_convolution_and_norm_is_named():
    import torch.ao.nn.intrinsic.qat as qat
    from torch.ao.quantization import get_default_qat_qconfig

    layer = qat.ConvBn2d(3, 32, 3, qconfig=get_default_qat_qconfig("fbgemm"))
    model = trained(nn.Sequential(layer, nn.ReLU()))
    with pytest.raises(ConfigError, match=r"of layer '0.bn'.*keep='0.bn'"):
        batchfree.convert(model, images())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("variance", torch.ones(32))
        self.other = nn.InstanceNorm2d(32)

    def forward(self, x):
        y = self.other(self.bn(self.conv(x)))
        y = F.batch_norm(y, self.mean, self.variance, training=self.training)
        return F.instance_norm(torch.batch_norm(y, None, None, None, None, True, 0.1, 1e-5, False))


def test_batch_norm_as_a_function_is_said_to_stay():
    result = batchfree.convert(trained(Functional()), images(), chunk=10)
    notes = [n for n in result.report.notes if "batch_norm" in n]
    assert notes == [
        "2 calls of batch_norm a forward by model code, and not by a layer of the model, are left "
        "as they are"
    ]
    assert not any(
        "calls of" in n for n in batchfree.convert(trained(resnet()), images()).plan.notes
    )


def test_kept_and_compiled_layers_are_no_model_code():
    torch.compiler.reset()
    inner = trained(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)))
    model = nn.Sequential(torch.compile(inner, backend="eager"), nn.BatchNorm2d(32)).eval()
    report = batchfree.convert(model, images(), keep="1").report
    assert not any("batch_norm" in n for n in report.notes)
    assert [x.path for x in report.left] == ["1"]


def test_scripted_parts_are_said_to_stay():
    inner = trained(resnet(1))
    with pytest.warns(FutureWarning, match="torch.jit.script"):
        model = nn.Sequential(torch.jit.script(inner[:3]), inner[3:]).eval()
    with pytest.warns(batchfree.ConversionWarning, match=r"1 BatchNorms \('0.1' first\) are ins"):
        result = batchfree.convert(model, images())
    assert len(result.report.converted) == 2
    assert "inside torch.jit modules" in str(result.report.notes)


def test_a_state_that_no_file_can_hold_is_told_of():
    class Stateful(nn.Sequential):
        def get_extra_state(self):
            return {"version": 1}

    model = trained(Stateful(*resnet(1)))
    assert "more than tensors ('_extra_state')" in str(batchfree.convert(model).report.notes)


class Ignores(nn.Module):
    """Calls its activation for what it does in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.bn(self.conv(x))
        self.act(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize("method", ["calibrated", "copy", "distill"])
def test_activations_whose_return_is_ignored_stay_in_place(method):
    model, x = trained(Ignores()), images()
    drawn = torch.get_rng_state()
    result = batchfree.convert(model, x, method=method, steps=2)
    assert torch.equal(drawn, torch.get_rng_state())
    assert result.model.act.inplace
    assert float(result.model.eval()(x).min()) == 0
    assert "ignores what activations in place return" in str(result.report.notes)
    kept = batchfree.convert(model, inplace=True).model.eval()
    assert float(kept(x).min()) == 0


def test_activations_whose_return_is_used_do_not():
    model = trained(resnet(1))
    result = batchfree.convert(model, images())
    assert not any(m.inplace for m in result.model.modules() if isinstance(m, nn.ReLU))
    assert all(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))
    assert result.report.notes == ()
