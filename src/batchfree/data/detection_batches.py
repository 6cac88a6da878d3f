"""Batches of images of like shape, by their number alone. Needs `batchfree[detect]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from batchfree.data.counted import mix
from batchfree.data.detection import DetectionSet, Item, detection_collate


@dataclass(frozen=True)
class Draw:
    """An image to load: its index in the set, and the seed of its random transforms."""

    index: int
    seed: int


class AspectRatioBatches(Sampler[list[Draw]]):
    """Batches of landscape images or of portrait ones, so that little of a batch is padding.

    Batch k of the training is a function of (sizes, batch_size, seed, world_size, k) alone: a run
    that goes on from batch k sees what an uninterrupted one would have seen. An epoch holds every
    image at least once; the few that fill up its last batches, and its last batch for every rank,
    come twice. The seed of an image's transforms depends on (seed, epoch, index).

    Args:
        sizes: (height, width) of every image, as in `DetectionSet.sizes`.
        batch_size: images per batch and rank.
        num_batches: batches of the whole training on this rank; by default one epoch's.
        start: the first batch to yield: those before it have been used.
        seed: of the order and the transforms.
        rank: this process among `world_size`.
        world_size: the number of processes; every one gets as many batches.

    Raises:
        ValueError: no images, or a number out of range.

    Example:
        >>> sizes = [(40, 60), (60, 40), (40, 60), (60, 40), (30, 60)]
        >>> batches = AspectRatioBatches(sizes, 2)
        >>> [sorted(draw.index for draw in batch) for batch in batches]
        [[0, 4], [1, 3], [0, 2]]
        >>> batches.per_epoch
        3
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        *,
        num_batches: int | None = None,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(sizes):
            raise ValueError("there are no images to batch")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "batch_size must be positive and rank below world_size, got batch_size "
                f"{batch_size}, rank {rank}, world_size {world_size}"
            )
        self.batch_size, self.seed, self.start = batch_size, seed, start
        self.rank, self.world_size = rank, world_size
        self._landscape = [width >= height for height, width in sizes]
        groups = (sum(self._landscape), len(sizes) - sum(self._landscape))
        batches = sum(-(-n // batch_size) for n in groups)
        self.per_epoch = -(-batches // world_size)
        """Batches of an epoch on each rank."""
        self.num_batches = self.per_epoch if num_batches is None else num_batches
        self._epoch = -1
        self._batches: list[list[Draw]] = []

    def __len__(self) -> int:
        return max(0, self.num_batches - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        for k in range(self.start, self.num_batches):
            yield self.batch(k)

    def batch(self, k: int) -> list[Draw]:
        """This rank's batch k of the training, counted from 0 over all epochs."""
        epoch, offset = divmod(k, self.per_epoch)
        if epoch != self._epoch:
            self._batches = self._shuffled(epoch)
            self._epoch = epoch
        return self._batches[offset * self.world_size + self.rank]

    def seek(self, epoch: int, drawn: int = 0) -> None:
        """Starts the next iteration in an epoch, after `drawn` of its batches on this rank."""
        if epoch < 0 or not 0 <= drawn <= self.per_epoch:
            raise ValueError(
                f"an epoch has {self.per_epoch} batches, got {drawn} drawn of epoch {epoch}"
            )
        self.start = epoch * self.per_epoch + drawn

    def _shuffled(self, epoch: int) -> list[list[Draw]]:
        """The batches of all ranks in an epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(len(self._landscape), generator=generator).tolist()
        draws = mix(self.seed, epoch)
        waiting: dict[bool, list[int]] = {True: [], False: []}
        groups: dict[bool, list[int]] = {True: [], False: []}
        batches = []
        for index in order:
            shape = self._landscape[index]
            groups[shape].append(index)
            waiting[shape].append(index)
            if len(waiting[shape]) == self.batch_size:
                batches.append(waiting[shape])
                waiting[shape] = []
        for shape, rest in waiting.items():
            if rest:
                group = groups[shape]
                batches.append([*rest, *(group[i % len(group)] for i in range(self.batch_size))])
                del batches[-1][self.batch_size :]
        total = self.per_epoch * self.world_size
        batches += [batches[i % len(batches)] for i in range(total - len(batches))]
        return [[Draw(index, mix(draws, index)) for index in batch] for batch in batches]


def evaluation_batches(
    num_images: int, batch_size: int = 1, *, rank: int = 0, world_size: int = 1
) -> list[list[Draw]]:
    """A rank's batches for evaluation: every image, and as many batches for every rank.

    Where the images do not go round, some ranks see one again, which `CocoEvaluator` counts once.

    Example:
        >>> [[d.index for d in b] for b in evaluation_batches(5, 2, rank=1, world_size=2)]
        [[1, 3], [0]]
    """
    per_rank = -(-num_images // world_size)
    draws = [Draw((i * world_size + rank) % num_images, 0) for i in range(per_rank)]
    return [draws[i : i + batch_size] for i in range(0, per_rank, batch_size)]


class _Drawn(Dataset[Item]):
    """A detection set asked by draws."""

    def __init__(self, data: DetectionSet) -> None:
        self.data = data

    def __getitem__(self, draw: Draw) -> Item:
        return self.data.draw(draw.index, draw.seed)


def detection_loader(
    data: DetectionSet, batches: Any, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """A DataLoader of `(images, targets)`, two lists, over batches of draws.

    It leaves PyTorch's global generator alone, and what it gives does not depend on the number of
    workers.

    Args:
        data: the set.
        batches: `AspectRatioBatches` or `evaluation_batches`.
        workers: loading processes.
        pin_memory: whether tensors come in pinned memory.
    """
    return DataLoader(
        _Drawn(data),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        collate_fn=detection_collate,
        generator=torch.Generator(),
    )
