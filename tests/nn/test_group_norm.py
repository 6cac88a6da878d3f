import copy
import pickle

import pytest
import torch

import batchfree


def test_is_torchs_group_norm_with_its_state():
    torch.manual_seed(0)
    theirs = torch.nn.GroupNorm(4, 8, eps=1e-3)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    ours = batchfree.GroupNorm(4, 8, 1e-3)
    assert isinstance(ours, torch.nn.GroupNorm)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_activation_and_residual():
    layer = batchfree.GroupNorm(4, 8, activation="silu")
    x, residual = torch.randn(2, 2, 8, 5, 5)
    plain = torch.nn.GroupNorm(4, 8)
    want = torch.nn.functional.silu(plain(x) + residual)
    torch.testing.assert_close(layer(x, residual), want)
    assert "activation=silu" in repr(layer)


@pytest.mark.parametrize(("affine", "bias"), [(False, True), (True, False)])
def test_affine_and_bias_options(affine, bias):
    layer = batchfree.GroupNorm(4, 8, affine=affine, bias=bias)
    assert (layer.weight is not None) == affine
    assert layer.bias is None
    assert layer(torch.randn(2, 8, 3)).shape == (2, 8, 3)


@pytest.mark.parametrize(
    ("layer", "groups"), [(batchfree.GroupNorm1(8), 1), (batchfree.InstanceNorm(8), 8)]
)
def test_layer_norm_and_instance_norm_are_its_ends(layer, groups):
    x = torch.randn(3, 8, 4, 4)
    assert layer.num_groups == groups
    torch.testing.assert_close(layer(x), torch.nn.GroupNorm(groups, 8)(x))
    dims = (1, 2, 3) if groups == 1 else (2, 3)
    torch.testing.assert_close(
        layer(x).mean(dims), torch.zeros_like(layer(x).mean(dims)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: batchfree.GroupNorm(3, 8), r"8 channels .* 3 groups.* 2 or 4"),
        (lambda: batchfree.GroupNorm(4, -8), "num_channels must be positive, got -8"),
        (lambda: batchfree.GroupNorm(2, 8, activation="swish"), "activation must be one of"),
        (lambda: batchfree.GroupNorm(2, 8)(torch.ones(1, 4, 2)), r"8 channels.*\(1, 4, 2\)"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_pickles_and_copies():
    layer = batchfree.GroupNorm(2, 8, activation="gelu")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = torch.randn(2, 8, 3)
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_training_and_inference_agree_and_never_see_the_batch(batch):
    layer = batchfree.GroupNorm(4, 8, activation="relu")
    x = torch.randn(batch, 8, 6, 6)
    with batchfree.backend("reference"):
        together, in_eval = layer.train()(x), layer.eval()(x)
        alone = torch.cat([layer(x[i : i + 1]) for i in range(batch)])
    torch.testing.assert_close(together, in_eval, rtol=0, atol=0)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
