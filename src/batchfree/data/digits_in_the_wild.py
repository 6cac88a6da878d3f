"""Digits in the wild: real handwritten digits on real photographs, made as they are asked for.

Each image is |photo - digit|: one of scikit-learn's 1,797 handwritten digits (UCI, 8x8 pixels),
warped by a random affine map, over a random crop of one of the two photographs that scikit-learn
ships. The blend is that of MNIST-M (Ganin et al., "Domain-Adversarial Training of Neural Networks",
2016, section 5.2.4). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from batchfree._checks import check_choice
from batchfree.data.counted import uniform

Split = Literal["train", "test"]
Difficulty = Literal["plain", "standard", "hard"]

TRAIN_DIGITS = 1200
MEAN, STD = 0.45, 0.25
_SPLIT_SEED = 2018
_POOL = 4096
# Side of a photo's crop, in multiples of the image size, before it is resized to the image size:
# larger crops are busier backgrounds.
_CROP_SCALE: dict[str, tuple[float, float]] = {"standard": (1.0, 8.0), "hard": (6.0, 24.0)}
_MAX_CROP = 420


class DigitsInTheWild(Dataset[tuple[Tensor, int]]):
    """Digits composed on photographs, as a map-style data set of any length.

    Sample i is a function of (seed, split, i) alone: the same whatever the batch, worker or order
    it is asked for in. Digits are split by source: 1,200 for training, 597 for testing, so no test
    digit, in any warp, is ever trained on.

    Args:
        split: `"train"` or `"test"`.
        size: side of the images, 16 to 64 pixels.
        num_samples: length; by default 48,000 for training and 2,985 (each test digit 5 times) for
            testing. There is no end: any length gives fresh warps and backgrounds.
        difficulty: the background: `"plain"` none, `"standard"` photo crops of 1 to 8 times the
            image's side, `"hard"` 6 to 24 times, so that the background is as busy as the digit.
        seed: of the random draws.

    Raises:
        ValueError: an unknown split or difficulty, or a size or length out of range.

    Example:
        >>> from batchfree.data import DigitsInTheWild
        >>> data = DigitsInTheWild("train", size=16, seed=0)
        >>> image, label = data[0]
        >>> image.shape, image.dtype, label in range(10)
        (torch.Size([3, 16, 16]), torch.float32, True)
    """

    num_classes = 10

    def __init__(
        self,
        split: Split = "train",
        *,
        size: int = 16,
        num_samples: int | None = None,
        difficulty: Difficulty = "standard",
        seed: int = 0,
    ) -> None:
        check_choice(split, get_args(Split), "split")
        check_choice(difficulty, get_args(Difficulty), "difficulty")
        if not 16 <= size <= 64:
            raise ValueError(f"size must be 16 to 64 pixels, got {size}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be positive, got {num_samples}")
        digits, labels = split_digits(split)
        self.split = split
        self.size = size
        self.difficulty = difficulty
        self.seed = seed
        self.num_samples = num_samples or (48_000 if split == "train" else 5 * len(labels))
        self._digits = digits
        self._labels = labels
        self._backgrounds = None if difficulty == "plain" else photo_crops(size, difficulty, _POOL)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, size, size), float32, zero mean and unit scale, and its digit."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index {index} is out of range for {self.num_samples} samples")
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """A whole batch at once, as torch's DataLoader asks for one."""
        images, labels = self.batch(indices)
        return list(zip(images.unbind(), labels.tolist(), strict=True))

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, size, size), float32, and labels (B,), int64, of the given samples."""
        at = np.asarray(indices, dtype=np.uint64)
        split = 0 if self.split == "train" else 1
        u = torch.from_numpy(uniform(at, draws=9, stream=2 * self.seed + split))
        if self.split == "test":  # each digit equally often
            which = torch.from_numpy((at % np.uint64(len(self._labels))).astype(np.int64))
        else:
            which = (u[:, 0] * len(self._labels)).long()
        shape = [len(at), 1, self.size, self.size]
        grid = F.affine_grid(_warp(u[:, 1:6]), shape, align_corners=False)
        ink = F.grid_sample(self._digits[which], grid, align_corners=False)
        if self._backgrounds is None:
            images = ink.expand(-1, 3, -1, -1)
        else:
            crop = self._backgrounds[(u[:, 6] * len(self._backgrounds)).long()]
            crop = crop.float() / 255
            mirrored = (u[:, 7] < 0.5).view(-1, 1, 1, 1)
            images = (torch.where(mirrored, crop.flip(3), crop) - ink).abs()
        return (images - MEAN) / STD, self._labels[which]


def _warp(u: Tensor) -> Tensor:
    """Random affine maps (B, 2, 3), from output to input coordinates, of draws (B, 5) in [0, 1)."""
    angle = (u[:, 0] - 0.5) * (np.pi / 4)  # 22.5 degrees either way
    scale = 1 / (0.7 + 0.4 * u[:, 1])
    shear = (u[:, 2] - 0.5) * 0.5
    shift = (u[:, 3:5] - 0.5) * 0.5
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], dim=1).view(-1, 2, 2)
    return torch.cat([rows, shift.unsqueeze(2) * scale.view(-1, 1, 1)], dim=2)


def split_indices(split: Split) -> NDArray[np.int64]:
    """Which of scikit-learn's 1,797 digits belong to a split; the same on every machine."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(1797)
    return np.sort(order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:])


@cache
def split_digits(split: Split) -> tuple[Tensor, Tensor]:
    """A split's digits (N, 1, 8, 8), float32 in [0, 1], and their labels (N,), int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    at = split_indices(split)
    images = torch.from_numpy(digits.images[at]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target[at]).long()


@cache
def photo_crops(size: int, difficulty: str, pool_size: int) -> Tensor:
    """A pool of photo crops (P, 3, size, size), uint8, cut once: cutting anew costs 10 steps."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in load_sample_images().images]
    rng = np.random.default_rng(_SPLIT_SEED)
    smallest, largest = (min(int(s * size), _MAX_CROP) for s in _CROP_SCALE[difficulty])
    pool = torch.empty(pool_size, 3, size, size, dtype=torch.uint8)
    for i in range(pool_size):
        photo = photos[i % len(photos)]
        side = round(smallest * (largest / smallest) ** rng.random())
        top, left = (int(rng.integers(0, n - side + 1)) for n in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side].unsqueeze(0).float()
        resized = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        pool[i] = resized[0].round().clamp(0, 255).to(torch.uint8)
    return pool
