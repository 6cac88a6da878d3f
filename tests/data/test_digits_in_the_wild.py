import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from batchfree import Groups, norm_layer
from batchfree.data import DigitsInTheWild
from batchfree.data.counted import uniform
from batchfree.data.digits_in_the_wild import split_indices
from batchfree.models import SmallResNet


@pytest.mark.parametrize("difficulty", ["plain", "standard", "hard"])
@pytest.mark.parametrize("size", [16, 24, 64])
def test_images_are_of_the_stated_shape_scale_and_type(difficulty, size):
    data = DigitsInTheWild("train", size=size, difficulty=difficulty)
    images, labels = data.batch(range(64))
    assert images.shape == (64, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= -0.45 / 0.25 - 1e-5
    assert images.max() <= 0.55 / 0.25 + 1e-5
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) <= set(range(10))


def test_a_sample_depends_on_seed_split_and_index_alone():
    data = DigitsInTheWild("train", seed=3)
    images, labels = data.batch([5, 70, 12])
    again = DigitsInTheWild("train", seed=3, num_samples=100)
    for k, i in enumerate([5, 70, 12]):
        image, label = again[i]
        assert label == labels[k]
        torch.testing.assert_close(image, images[k], rtol=0, atol=0)
    for other in (DigitsInTheWild("train", seed=4), DigitsInTheWild("test", seed=3)):
        assert not torch.equal(other.batch([5, 70, 12])[0], images)


def test_no_test_digit_is_in_training():
    train, test = split_indices("train"), split_indices("test")
    assert len(train) == 1200
    assert len(test) == 597
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(range(1797))


def test_every_test_digit_comes_equally_often():
    data = DigitsInTheWild("test")
    assert len(data) == 5 * 597
    labels = data.batch(range(len(data)))[1].view(5, 597)
    assert all(torch.equal(row, labels[0]) for row in labels)


def test_every_digit_class_is_trained_on():
    labels = DigitsInTheWild("train").batch(range(5000))[1]
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


def test_draws_are_uniform_and_independent():
    u = uniform(np.arange(20000, dtype=np.uint64), draws=9, stream=0)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(0), 1 / 12, atol=0.003)
    correlation = np.corrcoef(u.T) - np.eye(9)
    assert abs(correlation).max() < 0.03
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.03


def test_hard_is_busier_than_standard_and_plain_has_no_colour():
    def roughness(difficulty):
        images, _ = DigitsInTheWild("test", difficulty=difficulty).batch(range(597))
        return (images[..., 1:] - images[..., :-1]).abs().mean().item()

    assert roughness("hard") > 1.05 * roughness("standard")
    flat, _ = DigitsInTheWild("test", difficulty="plain").batch(range(10))
    assert torch.equal(flat[:, 0], flat[:, 1])


def test_a_data_loader_takes_it_with_workers_and_without():
    data = DigitsInTheWild("train", num_samples=20)
    plain = list(DataLoader(data, batch_size=8))
    assert [len(labels) for _, labels in plain] == [8, 8, 4]
    parallel = list(DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context="fork"))
    for (a, la), (b, lb) in zip(plain, parallel, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert torch.equal(la, lb)


def test_making_a_batch_costs_under_a_tenth_of_a_training_step():
    data = DigitsInTheWild("train", size=16)
    net = SmallResNet(norm_layer("gn", Groups(8)), width=16)
    ratios = []
    for step in range(12):
        start = time.perf_counter()
        images, labels = data.batch(range(step * 32, step * 32 + 32))
        middle = time.perf_counter()
        F.cross_entropy(net(images), labels).backward()
        ratios.append((middle - start) / (time.perf_counter() - start))
    assert sorted(ratios)[len(ratios) // 2] < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(split="valid"), "'train', 'test', got 'valid'"),
        (dict(difficulty="easy"), "difficulty must be one of"),
        (dict(size=8), "16 to 64 pixels, got 8"),
        (dict(size=128), "got 128"),
        (dict(num_samples=0), "positive, got 0"),
    ],
)
def test_errors(options, words):
    with pytest.raises(ValueError, match=words):
        DigitsInTheWild(**options)


def test_an_index_out_of_range_ends_iteration():
    data = DigitsInTheWild("train", num_samples=3)
    assert len(list(iter(data))) == 3
