"""Batches by step number: what step k sees depends on the seed and k alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from batchfree.data.counted import mix


class PositionBatches(Sampler[list[int]]):
    """Batch k holds the k-th run of positions of an endless stream of samples.

    Args:
        num_batches: batches in all, counted from 0.
        batch_size: samples per batch and rank.
        start: the first batch to yield.
        rank: this process among `world_size`; each takes its own part of every run.
        world_size: the number of processes.

    Example:
        >>> list(PositionBatches(3, 2, start=1, rank=0, world_size=2))
        [[4, 5], [8, 9]]
    """

    def __init__(
        self,
        num_batches: int,
        batch_size: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_batches, self.batch_size, self.start = num_batches, batch_size, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for k in range(self.start, self.num_batches):
            first = (k * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.num_batches - self.start


class Shuffled(Dataset[Any]):
    """An endless stream over a finite dataset: one seeded permutation after another.

    Position p is sample `permutation(p // n)[p % n]`, so that any position can be reached without
    the ones before it. A dataset with a method `draw(index, seed)` is asked for its random
    augmentation by a seed of (seed, p), so that it depends on no other state.

    Args:
        dataset: a map-style dataset.
        seed: of the permutations and augmentations.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def index(self, position: int) -> int:
        """The dataset's index at a position of the stream."""
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._order = torch.randperm(len(self.dataset), generator=generator)
            self._epoch = epoch
        return int(self._order[offset])

    def __getitem__(self, position: int) -> Any:
        index = self.index(position)
        if hasattr(self.dataset, "draw"):
            return self.dataset.draw(index, mix(self.seed, position))
        return self.dataset[index]

    def batch(self, positions: Sequence[int]) -> Any:
        """A collated batch."""
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch([self.index(p) for p in positions])
        return default_collate([self[p] for p in positions])


class StepLoader:
    """The training batches of one rank, from any step on; Lightning saves and restores its place.

    Args:
        dataset: an endless stream of samples by position.
        num_batches: batches of the whole training.
        batch_size: samples per batch and rank.
        consumed: how many batches the training has used, asked when a checkpoint is written (the
            loader itself may be ahead of it).
        options: `workers`, `pin_memory`, `rank`, `world_size`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        num_batches: int,
        batch_size: int,
        *,
        consumed: Callable[[], int] = lambda: 0,
        workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.num_batches, self.batch_size = dataset, num_batches, batch_size
        self.consumed, self.workers, self.pin_memory = consumed, workers, pin_memory
        self.rank, self.world_size = rank, world_size
        self.start = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        batches = PositionBatches(
            self.num_batches,
            self.batch_size,
            start=self.start,
            rank=self.rank,
            world_size=self.world_size,
        )
        return iter(data_loader(self.dataset, batches, self.workers, self.pin_memory))

    def state_dict(self) -> dict[str, int]:
        """The number of batches used so far."""
        return {"batches": self.consumed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Starts the next iteration after the batches used."""
        self.start = state["batches"]


def validation_batches(
    num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """The validation indices of a rank, in batches: as many for every rank.

    Index `(b * batch_size + i) * world_size + rank` stands at place i of batch b; where that is
    past the end an index is repeated, which `Classifier` does not count.

    Example:
        >>> validation_batches(5, 2, rank=1, world_size=2)
        [[1, 3], [0]]
    """
    per_rank = -(-num_samples // world_size)
    indices = [(i * world_size + rank) % num_samples for i in range(per_rank)]
    return [indices[i : i + batch_size] for i in range(0, per_rank, batch_size)]


class _Fetched(Dataset[Any]):
    """A dataset whose fetched batches come collated already, where it can do that."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> Any:
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices)
        return default_collate([self.dataset[i] for i in indices])


def data_loader(
    dataset: Any, batches: Any, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """A DataLoader over given batches of indices that leaves PyTorch's global generator alone.

    A dataset with a method `batch(indices)` is asked for whole batches.
    """
    return DataLoader(
        _Fetched(dataset),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch
