"""Opacus takes what comes out: its validator accepts it and a DP-SGD step runs."""

import copy

import pytest
import timm.layers
import torch
from nets import images, resnet, trained
from torch import nn

import batchfree
from batchfree._naming import load_model
from batchfree.fuse import out_of_place

opacus = pytest.importorskip("opacus")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def with_timms_activation():
    """An activation in place inside the norm layer."""
    norm = timm.layers.BatchNormAct2d(32, act_layer=nn.ReLU, inplace=True)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


@pytest.mark.parametrize("anchor", [None, 2.0])
@pytest.mark.parametrize("make", [resnet, with_timms_activation])
def test_the_validator_accepts_and_a_private_step_runs(make, anchor):
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    original = trained(make())
    if make is resnet:  # a subclass passes the validator and couples the samples
        assert ModuleValidator.validate(original.train(), strict=False)
    model = batchfree.convert(original, images(), anchor=anchor).model.train()
    assert ModuleValidator.validate(model, strict=False) == []
    twin = copy.deepcopy(model)
    x, y = images(12), torch.arange(12) % 10
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    before = {k: v.clone() for k, v in model.named_parameters()}
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=sgd,
        data_loader=data,
        noise_multiplier=0.5,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    images_of_step, labels = next(iter(loader))
    optimizer.zero_grad()
    nn.functional.cross_entropy(private(images_of_step), labels).backward()
    alone = []
    for i in range(6):  # per-sample gradients are those of each sample by itself
        loss = nn.functional.cross_entropy(twin(images_of_step[i : i + 1]), labels[i : i + 1])
        alone.append(torch.autograd.grad(loss, twin[1].weight)[0])
    torch.testing.assert_close(
        model[1].weight.grad_sample, torch.stack(alone), atol=1e-5, rtol=1e-3
    )
    optimizer.step()
    moved = [k for k, v in model.named_parameters() if not torch.equal(v, before[k])]
    assert set(moved) == {k for k in before if not k.endswith(("scale", "shift"))}


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_a_private_step_of_a_library_s_resnet(name):
    """Their `out += identity` has to go first."""
    from opacus import GradSampleModule

    original = trained(load_model(name), [torch.randn(4, 3, 64, 64)], steps=2)
    model = out_of_place(batchfree.convert(original).model.train())
    twin = copy.deepcopy(model)
    x, y = torch.randn(3, 3, 64, 64), torch.arange(3)
    nn.functional.cross_entropy(GradSampleModule(model)(x), y).backward()
    path = next(n for n, m in twin.named_modules() if isinstance(m, nn.GroupNorm))
    alone = []
    for i in range(3):
        loss = nn.functional.cross_entropy(twin(x[i : i + 1]), y[i : i + 1])
        alone.append(torch.autograd.grad(loss, twin.get_submodule(path).weight)[0])
    found = model.get_submodule(path).weight.grad_sample
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-3)


def test_a_residual_inside_the_norm_is_refused():
    """Opacus would take the gradients of relu(GN(x)) for those of relu(GN(x) + residual)."""
    from opacus import GradSampleModule

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = batchfree.GroupNorm(2, 4, activation="relu")

        def forward(self, x):
            return self.norm(x, x)

    x = torch.randn(2, 4, 3, 3)
    net = Net()
    net(x)
    with pytest.raises(batchfree.ConfigError, match="first input alone"):
        GradSampleModule(net)(x)
