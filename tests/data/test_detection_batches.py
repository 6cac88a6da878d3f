import pytest
import torch

from batchfree.data.detection import detection_transform
from batchfree.data.detection_batches import (
    AspectRatioBatches,
    Draw,
    detection_loader,
    evaluation_batches,
)
from batchfree.data.scenes import DigitScenes

GENERATOR = torch.Generator().manual_seed(0)
SIZES = [(40, 60) if torch.rand(1, generator=GENERATOR) < 0.7 else (60, 40) for _ in range(53)]


def batches(**options):
    return list(AspectRatioBatches(SIZES, 4, **options))


def test_a_batch_holds_one_orientation_and_an_epoch_every_image():
    seen = []
    for batch in batches():
        assert len(batch) == 4
        assert len({SIZES[d.index] for d in batch}) == 1
        seen += [d.index for d in batch]
    assert set(seen) == set(range(53))
    assert len(seen) - 53 < 2 * 4  # only the last batch of each orientation repeats


def test_batches_follow_the_seed_and_the_epoch():
    assert batches(seed=1) == batches(seed=1)
    assert batches(seed=1) != batches(seed=2)
    stream = AspectRatioBatches(SIZES, 4, seed=1, num_batches=1000)
    n = stream.per_epoch
    first, second = [stream.batch(k) for k in range(n)], [stream.batch(n + k) for k in range(n)]
    assert first == batches(seed=1)
    assert [[d.index for d in b] for b in first] != [[d.index for d in b] for b in second]
    seeds = [{d.index: d.seed for b in e for d in b} for e in (first, second)]
    assert all(seeds[0][i] != seeds[1][i] for i in range(53))
    assert len(set(seeds[0].values())) == 53


@pytest.mark.parametrize("drawn", [0, 1, 5, 13, 14, 15, 40])
def test_going_on_gives_the_batches_of_an_uninterrupted_run(drawn):
    whole = batches(num_batches=45, seed=3)
    assert len(whole) == 45
    rest = AspectRatioBatches(SIZES, 4, num_batches=45, seed=3, start=drawn)
    assert len(rest) == 45 - drawn
    assert list(rest) == whole[drawn:]
    epoch, offset = divmod(drawn, rest.per_epoch)
    other = AspectRatioBatches(SIZES, 4, num_batches=45, seed=3)
    other.seek(epoch, offset)
    assert list(other) == whole[drawn:]
    with pytest.raises(ValueError, match="an epoch has 14 batches, got 15 drawn of epoch 0"):
        other.seek(0, 15)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_ranks_get_as_many_batches_and_share_out_the_images(world_size, batch_size):
    ranks = [
        list(AspectRatioBatches(SIZES, batch_size, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert len({len(r) for r in ranks}) == 1
    seen = [d.index for r in ranks for b in r for d in b]
    assert set(seen) == set(range(53))
    assert len(seen) - 53 <= 2 * (batch_size - 1) + (world_size - 1) * batch_size
    one = list(AspectRatioBatches(SIZES, batch_size))
    dealt = [b for step in zip(*ranks, strict=True) for b in step]
    assert dealt[: len(one)] == one  # the ranks draw from one order


def test_fewer_images_than_a_batch():
    (batch,) = AspectRatioBatches([(4, 6), (4, 6)], 5)
    assert sorted(d.index for d in batch) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    (batch,) = AspectRatioBatches([(4, 6)], 2, rank=2, world_size=3)
    assert [d.index for d in batch] == [0, 0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="no images to batch"):
        AspectRatioBatches([], 2)
    with pytest.raises(ValueError, match="batch_size must be positive and rank below world_size"):
        AspectRatioBatches(SIZES, 2, rank=2, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_shares_out_every_image(world_size):
    ranks = [evaluation_batches(10, 2, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(r) for r in ranks}) == 1
    seen = [d.index for r in ranks for b in r for d in b]
    assert set(seen) == set(range(10))
    assert len(seen) - 10 < world_size


def test_what_is_loaded_depends_on_no_worker_and_no_other_state():
    data = DigitScenes(
        "train", images=7, transforms=detection_transform(short_sides=(96, 128), flip=0.5)
    )
    before = torch.get_rng_state()
    loaded = []
    for workers in (0, 2):
        sampler = AspectRatioBatches(data.sizes, 2, num_batches=6, start=1, seed=1)
        loaded.append(list(detection_loader(data, sampler, workers)))
        assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded[0]) == 5
    for (images, targets), (others, other_targets) in zip(*loaded, strict=True):
        assert isinstance(images, list)
        for image, other in zip(images, others, strict=True):
            assert torch.equal(image, other)
        for target, other in zip(targets, other_targets, strict=True):
            assert target["image_id"] == other["image_id"]
            assert torch.equal(target["boxes"], other["boxes"])
    flips = [data.draw(0, Draw(0, s).seed)[0] for s in range(20)]
    assert len({f.numpy().tobytes() for f in flips}) == 4  # two sizes, two directions
