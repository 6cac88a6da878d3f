import pytest
import torch
from torch import nn

from batchfree.bench.networks import BATCH_NORM, MODELS, build
from batchfree.bench.training_step import _kept_storages, run_training_step


def test_the_three_networks_are_timed_and_their_memory_counted():
    found = []
    run_training_step(found.append, network="resnet18", batch=2, size=32, repetitions=2)
    (rows,) = found
    assert [row.model for row in rows] == list(MODELS)
    assert all(row.failure is None and row.median_us > 0 for row in rows)
    fused, eager, bn = (row.saved_bytes for row in rows)
    assert 0 < fused <= 1.01 * eager
    assert fused <= 1.01 * bn


def test_each_storage_counts_once_and_parameters_do_not():
    layer = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    with _kept_storages(layer) as kept:
        y = layer(x)
        z = (y * y[:2].sum()).sum() + layer(x).sum()
    assert z.requires_grad
    assert sum(kept.values()) == x.nbytes + y.nbytes + 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_network_that_cannot_be_trained_so_is_reported(layout):
    """BatchNorm of one image whose last maps hold one pixel."""
    found = []
    run_training_step(
        found.append, network="resnet18", batch=1, size=32, layouts=[layout], repetitions=2
    )
    fused, eager, bn = found[0]
    assert {row.layout for row in found[0]} == {layout}
    assert fused.failure is eager.failure is None
    assert "more than 1 value per channel" in bn.failure
    assert bn.median_us is bn.saved_bytes is None


def test_mask_rcnn_sees_its_images_in_their_size():
    network, (images, targets), _ = build("maskrcnn", BATCH_NORM, batch=2, size=96)
    seen, told = network.train().transform(images, targets)
    assert seen.image_sizes == [(96, 160)] * 2
    assert told[0]["masks"].shape == (8, 96, 160)
