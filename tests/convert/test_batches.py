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


SERIES = torch.randn(33, 3, 64), torch.randn(33, 1, 64)


@pytest.mark.parametrize("size", [1, 3, 8, 33])
@pytest.mark.parametrize("nested", [False, True])
def test_a_loader_of_series_holds_no_images(size, nested):
    """Batches (N, C, L) with N of 1 or 3, of the last batch alone or of all."""
    pairs = TensorDataset(*SERIES)
    pairs = [((a, b), 0) for a, b in pairs] if nested else pairs
    found = read_batches(DataLoader(pairs, size), 33, 64)
    if nested:
        assert all(type(batch) is tuple for batch in found)
        assert torch.equal(torch.cat([b for _, b in found]), SERIES[1])
        found = [a for a, _ in found]
    assert torch.equal(torch.cat(found), SERIES[0])


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("sizes", [(8, 8, 1), (4, 3, 3), (1, 1)])
def test_the_first_batch_decides_for_all(kind, sizes):
    batches = [kind([torch.randn(n, 3, 64), torch.randn(n, 1, 64)]) for n in sizes]
    assert [t.shape[0] for t in read_batches(batches, 100, 64)] == list(sizes)
    wide = [kind([torch.randn(n, 16, 64), torch.randn(n, 16, 64)]) for n in (8, 3, 1)]
    assert [t.shape for t in read_batches(wide, 100, 64)] == [(n, 16, 64) for n in (8, 3, 1)]


def test_a_list_of_short_series_is_a_loader():
    series = [torch.randn(1, 3, 40) for _ in range(5)]
    assert sizes(read_batches(series, 100, 64)) == [(1, 3, 40)] * 5
    images = [torch.rand(3, 20, 30), torch.rand(3, 24, 20)]
    (found,) = read_batches(images, 100, 64)
    assert [t.shape for t in found] == [t.shape for t in images]


def test_images_and_targets_in_lists_are_images():
    images = [torch.rand(3, 20, 30), torch.rand(3, 24, 20), torch.rand(3, 9, 9)]
    targets = [{"boxes": torch.zeros(0, 4)}] * 3
    for batch in ((images, targets), [images, targets], [tuple(images), tuple(targets)]):
        (found,) = read_batches([batch], 100, 64)
        assert [t.shape for t in found] == [t.shape for t in images]


def test_a_network_over_series_is_calibrated_from_its_loader():
    model = nn.Sequential(nn.Conv1d(3, 32, 5), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 1, 1))
    trained(model, [SERIES[0]])
    for size in (1, 3, 8):
        result = batchfree.convert(model, DataLoader(TensorDataset(*SERIES), size))
        assert (result.report.calibration, result.report.held_out) == (29, 4)
        assert result.report.output_error < 0.5


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, a, b):
        return self.norm(torch.cat([a, b], 1))


def test_two_inputs_are_nested_or_named():
    a, b = torch.randn(24, 20), torch.randn(24, 12)
    model = TwoInputs()
    for _ in range(5):
        model(a, b)
    with pytest.raises(batchfree.ConfigError, match=r"several inputs come as \(\(a, b\), labels\)"):
        batchfree.convert(model.eval(), [(a, b)], forward=lambda m, x: m(*x), groups=2)
    results = [
        batchfree.convert(model, data, forward=forward, groups=2).report.output_error
        for data, forward in (
            ([((a, b), 0)], lambda m, x: m(*x)),
            (DataLoader([((x, y), 0) for x, y in zip(a, b, strict=True)], 24), lambda m, x: m(*x)),
            ({"a": a, "b": b}, lambda m, x: m(**x)),
        )
    ]
    assert results[0] == results[1] == results[2] < 0.9
