import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import batchfree
from batchfree import Groups, norm_layer

KINDS = {
    "bn": batchfree.BatchNorm2d,
    "gn": batchfree.GroupNorm,
    "ln": batchfree.GroupNorm1,
    "in": batchfree.InstanceNorm,
    "frozen_bn": batchfree.FrozenBatchNorm,
    "sync_bn": batchfree.SyncBatchNorm,
    "none": batchfree.NoNorm,
}


@pytest.mark.parametrize(("kind", "cls"), KINDS.items())
def test_every_kind_builds_pickles_copies_and_compares(kind, cls):
    factory = norm_layer(kind)
    assert factory.kind == kind
    for twin in (factory, pickle.loads(pickle.dumps(factory)), copy.deepcopy(factory)):
        layer = twin(64, activation="relu")
        assert type(layer) is cls
        assert layer.activation == "relu"
        assert twin == factory
        assert hash(twin) == hash(factory)
    assert norm_layer("gn", Groups(8)) != norm_layer("gn")


def test_options_reach_the_layers():
    assert norm_layer("gn", Groups(channels_per_group=16))(64).num_groups == 4
    assert norm_layer("gn", eps=1e-3)(64).eps == 1e-3
    assert norm_layer("bn", normalization_batch=2)(64).normalization_batch == 2
    assert isinstance(norm_layer("bn", dim=3)(64), batchfree.BatchNorm3d)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: norm_layer("gm"), "did you mean 'gn'"),
        (lambda: norm_layer("bn", groups=Groups(2)), "option of 'gn' only"),
        (lambda: norm_layer("gn", normalization_batch=2), "no option 'normalization_batch'"),
        (lambda: norm_layer("bn", normalisation_batch=2), "did you mean 'normalization_batch'"),
        (lambda: norm_layer("gn", activation="rellu"), "did you mean 'relu'"),
        (lambda: norm_layer("bn", dim=4), "dim must be one of 1, 2, 3, got 4"),
        (lambda: norm_layer("bn", normalization_batch=0), "normalization_batch .* got 0"),
        (lambda: norm_layer("bn", running_statistics="mean"), "'rank0', 'average'"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_groups_may_be_a_number_and_nothing_else():
    assert norm_layer("gn", 8) == norm_layer("gn", Groups(8))
    with pytest.raises(TypeError, match=r"Groups\(\.\.\.\) or a number of groups, got '8'"):
        norm_layer("gn", "8")


def norms(model):
    return [m for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_accepts_it(name):
    model = torchvision.models.get_model(name, norm_layer=norm_layer("gn", Groups(8)))
    assert norms(model)
    assert all(type(m) is batchfree.GroupNorm for m in norms(model))
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_builds_a_torchvision_and_a_timm_model(kind):
    for model in (
        torchvision.models.resnet18(norm_layer=norm_layer(kind)),
        timm.create_model("resnet18", norm_layer=norm_layer(kind)),
    ):
        assert sum(type(m) is KINDS[kind] for m in model.modules()) == 20
        assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "resnetv2_50"])
def test_timm_models_that_want_norm_and_activation_in_one_refuse_a_factory_without(name):
    with pytest.raises(AssertionError, match="norm_layer_without_activation"):
        timm.create_model(name, norm_layer=norm_layer("gn"))


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_50"])
def test_timm_models_that_want_norm_and_activation_in_one_activate(name):
    with torch.device("meta"):
        model = timm.create_model(name, norm_layer=norm_layer("gn", Groups(8), activation="relu"))
    assert {m.activation for m in norms(model)} == {"relu"}


def test_timm_says_which_norms_of_a_block_activate():
    norm = norm_layer("gn", Groups(8), activation="silu")
    model = timm.create_model("efficientnet_b0", norm_layer=norm)
    # In an inverted residual the expansion and depthwise norms activate, the projection does not.
    block = model.blocks[1][0]
    assert [m.activation for m in (block.bn1, block.bn2, block.bn3)] == ["silu", "silu", None]
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
