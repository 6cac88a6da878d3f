import pytest
import torch
from torch.utils.data import TensorDataset

from batchfree.train.loaders import PositionBatches, Shuffled, StepLoader, validation_batches

NUMBERS = TensorDataset(torch.arange(10))


class Drawn:
    """A dataset whose samples are their index and the seed that they are drawn with."""

    def __len__(self):
        return 10

    def draw(self, index, seed):
        return index, seed


def test_every_epoch_is_another_permutation():
    stream = Shuffled(NUMBERS, seed=1)
    epochs = [[int(stream[p][0]) for p in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_position_does_not_depend_on_those_before_it():
    walked = Shuffled(NUMBERS, seed=1)
    assert [int(walked[p][0]) for p in range(40)][37] == int(Shuffled(NUMBERS, seed=1)[37][0])
    assert [Shuffled(NUMBERS, seed=2).index(p) for p in range(10)] != [
        walked.index(p) for p in range(10)
    ]


def test_augmentation_is_seeded_by_position_and_seed():
    seeds = {Shuffled(Drawn(), seed=s)[p][1] for s in range(3) for p in range(30)}
    assert len(seeds) == 90
    assert Shuffled(Drawn(), seed=0)[5] == Shuffled(Drawn(), seed=0)[5]


def test_ranks_share_a_step_like_one_process():
    whole = list(PositionBatches(4, 6))
    parts = [list(PositionBatches(4, 3, rank=r, world_size=2)) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_accumulated_passes_see_the_same_samples_as_one():
    whole = list(PositionBatches(4, 6))
    halves = list(PositionBatches(8, 3))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_restored_loader_goes_on_where_it_was(workers):
    def loader():
        stream = Shuffled(NUMBERS, seed=3)
        return StepLoader(stream, 8, 3, consumed=lambda: 5, workers=workers)

    all_batches = [batch[0].tolist() for batch in loader()]
    assert len(all_batches) == len(loader()) == 8
    restored = loader()
    restored.load_state_dict(loader().state_dict())
    assert [batch[0].tolist() for batch in restored] == all_batches[5:]
    assert len(restored) == 8  # Lightning counts from the training's start


def test_loaders_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    list(StepLoader(Shuffled(NUMBERS), 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 5, 12, 13])
def test_validation_covers_all_samples_in_equal_numbers_of_batches(num_samples, world_size):
    ranks = [
        validation_batches(num_samples, 2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    assert len({tuple(map(len, r)) for r in ranks}) == 1
    assert {i for r in ranks for batch in r for i in batch} == set(range(num_samples))
