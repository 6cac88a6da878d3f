import pytest
import torch
import torchvision
from torch import nn

import batchfree
from batchfree import Groups, norm_layer
from batchfree.models import MODELS, BasicBlock, Bottleneck, SmallResNet, build_model

IMAGES = torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_checkpoints_and_outputs_are_torchvisions(name):
    theirs = torchvision.models.get_model(name, num_classes=10)
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.1)
            nn.init.normal_(m.running_mean, 0, 0.1)
    ours = build_model(name, num_classes=10, norm=norm_layer("bn"))
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for mode in (False, True):
        torch.testing.assert_close(ours.train(mode)(IMAGES), theirs.train(mode)(IMAGES))
    assert theirs.load_state_dict(ours.state_dict()) == ([], [])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_builds_with_group_norm_and_counts_torchvisions_parameters(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        if name not in ("resnet_small", "resnext152_32x8d"):
            theirs = torchvision.models.get_model(name, num_classes=10)
            assert sum(p.numel() for p in model.parameters()) == sum(
                p.numel() for p in theirs.parameters()
            )
        assert model.eval()(torch.empty(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize("kind", ["bn", "gn", "ln", "in", "frozen_bn", "none"])
@pytest.mark.parametrize("name", ["resnet18", "resnet_small"])
def test_every_norm_trains(name, kind):
    model = build_model(name, num_classes=10, norm=norm_layer(kind))
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet_small"])
def test_initialisation_is_the_papers(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=1000)
    assert 0.009 < model.fc.weight.std() < 0.011
    assert model.fc.bias.abs().max() == 0
    for m in model.modules():
        if isinstance(m, BasicBlock | Bottleneck):
            last = m.bn3 if isinstance(m, Bottleneck) else m.bn2
            assert last.weight.abs().max() == 0
            assert m.bn1.weight.min() == 1
        elif isinstance(m, nn.Conv2d):
            fan_out = m.out_channels * m.kernel_size[0] * m.kernel_size[1] // m.groups
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_zero_init_is_an_option():
    model = build_model("resnet_small", zero_init_residual=False)
    assert model.layer1[0].bn2.weight.min() == 1


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet_small"])
def test_a_block_makes_one_call_for_norm_residual_and_activation(name, monkeypatch):
    calls = []
    original = batchfree.GroupNorm.forward

    def spy(self, x, residual=None):
        calls.append((self.activation, residual is not None))
        return original(self, x, residual)

    monkeypatch.setattr(batchfree.GroupNorm, "forward", spy)
    model = build_model(name, num_classes=10, norm=norm_layer("gn", Groups(8))).eval()
    activations = []
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda *a: activations.append(a))
    model(IMAGES)
    blocks = sum(isinstance(m, BasicBlock | Bottleneck) for m in model.modules())
    assert calls.count(("relu", True)) == blocks
    assert activations == []


def test_a_frozen_gamma_is_not_left_at_zero():
    for name in ("resnet18", "resnet_small"):
        model = build_model(name, norm=norm_layer("frozen_bn"))
        frozen = [m for m in model.modules() if isinstance(m, batchfree.FrozenBatchNorm)]
        assert frozen
        assert all(m.weight.min() == 1 for m in frozen)


def test_weight_standardization_reaches_every_convolution():
    model = build_model("resnet18", weight_standardization=True)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(type(m) is batchfree.WeightStandardizedConv2d for m in convs)


def test_a_group_norm_network_gives_each_sample_its_own_answer():
    model = build_model("resnet_small", norm=norm_layer("gn", Groups(8)), zero_init_residual=False)
    x = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        together = model.train()(x)
        torch.testing.assert_close(together, model.eval()(x), rtol=0, atol=0)
        alone = torch.cat([model(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: build_model("resnet51"), ValueError, "did you mean 'resnet50'"),
        (lambda: build_model("resnet18", norm=nn.BatchNorm2d), TypeError, "batchfree.norm_layer"),
        (lambda: SmallResNet(nn.GroupNorm), TypeError, "batchfree.norm_layer"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()
