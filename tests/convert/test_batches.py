"""Loaders as people have them."""

import pytest
import torch
from nets import trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchfree
from batchfree.convert.batches import read_batches, split_batches

X = torch.randn(24, 3, 8, 8)
VECTORS = torch.randn(24, 5)


def sizes(batches):
    return [tuple(b.shape) for b in batches]


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (X, (24, 3, 8, 8)),
        (DataLoader(X, 24), (24, 3, 8, 8)),
        (DataLoader(TensorDataset(X), 24), (24, 3, 8, 8)),
        (DataLoader(TensorDataset(X, torch.arange(24)), 24), (24, 3, 8, 8)),
        (DataLoader(TensorDataset(X, X[:, :1]), 24), (24, 3, 8, 8)),  # an image and its mask
        (DataLoader(TensorDataset(VECTORS, VECTORS[:, :1]), 24), (24, 5)),  # a regression
        ([VECTORS], (24, 5)),
        ([(VECTORS, 0)], (24, 5)),
        (iter([X]), (24, 3, 8, 8)),
    ],
)
def test_inputs_are_taken(data, shape):
    assert sizes(read_batches(data, 24, 64)) == [shape]


def test_a_list_of_batches_of_vectors_is_a_loader():
    assert sizes(read_batches([VECTORS] * 3, 100, 64)) == [(24, 5)] * 3


@pytest.mark.parametrize("collate", [tuple, lambda pairs: tuple(zip(*pairs, strict=True))])
def test_images_of_several_sizes_stay_a_list(collate):
    """torchvision's detectors take lists; its references collate by tuple(zip(*batch))."""
    pairs = [(torch.rand(3, 11 + i, 9), {"boxes": torch.zeros(0, 4)}) for i in range(4)]
    batch = [image for image, _ in pairs] if collate is tuple else collate(pairs)
    (found,) = read_batches([batch], 4, 4)
    assert [t.shape for t in found] == [image.shape for image, _ in pairs]


def test_dicts_of_several_lengths_are_not_put_together():
    data = [{"x": torch.randn(2, 3, length)} for length in (5, 5, 7)]
    fitted, apart = split_batches(data, None, 4, 64)
    assert [tuple(b["x"].shape) for b in fitted] == [(4, 3, 5)]
    assert [tuple(b["x"].shape) for b in apart] == [(2, 3, 7)]


def test_a_batch_that_the_model_does_not_take_points_to_forward():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    with pytest.raises(batchfree.ConfigError, match="give forward="):
        batchfree.convert(model, [[torch.randn(2, 4, 5)] * 3])
