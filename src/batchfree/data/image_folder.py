"""Folders of images in ImageNet's layout, with the paper's augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree.data.image_files import load_image

FolderSplit = Literal["train", "val"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Eigenvalues and eigenvectors of ImageNet's RGB covariance (Krizhevsky et al. 2012, as published
# with fb.resnet.torch).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class Lighting(torch.nn.Module):
    """Adds a random multiple of each principal colour of ImageNet: "PCA lighting".

    Args:
        std: standard deviation of the multiples.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
    2012, section 4.1.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = std

    def forward(self, image: Tensor) -> Tensor:
        """Image (3, H, W), float in [0, 1], to the same shape; it may leave [0, 1]."""
        alpha = torch.randn(3) * self.std
        shift = torch.tensor(_EIGENVECTORS) @ (alpha * torch.tensor(_EIGENVALUES))
        return image + shift.view(3, 1, 1)


def train_transform(size: int = 224) -> v2.Compose:
    """GoogLeNet-style random crop, flip, colour jitter, PCA lighting (Wu & He 2018, section 4.1).

    Args:
        size: height and width of the result, pixels.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            Lighting(),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )


def eval_transform(size: int = 224) -> v2.Compose:
    """The shorter side to size * 256 / 224, then the centre crop.

    Args:
        size: height and width of the result, pixels.
    """
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224)),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images under root/SPLIT/CLASS/, classes numbered in alphabetical order.

    Args:
        root: the folder that holds `train` and `val`.
        split: which of them.
        size: height and width of the images returned, pixels.
        classes: the classes expected, those of the training split; by default the folders found.

    Raises:
        DataError: a folder that is missing or holds no images, or other classes than expected. On
            reading: an image that cannot be decoded.

    Example:
        >>> ImageFolder("/data/imagenet", "train")[0]  # doctest: +SKIP
        (tensor of shape (3, 224, 224), 0)
    """

    def __init__(
        self,
        root: str | Path,
        split: FolderSplit = "train",
        *,
        size: int = 224,
        classes: Sequence[str] | None = None,
    ) -> None:
        check_choice(split, get_args(FolderSplit), "split")
        self.folder = _split_folder(Path(root), split)
        found = sorted(d.name for d in self.folder.iterdir() if d.is_dir())
        if not found:
            raise DataError(
                f"{str(self.folder)!r} has no class folders; images belong in "
                f"{self.folder / 'CLASS' / 'NAME.jpg'}"
            )
        if classes is not None:
            _check_classes(self.folder, found, classes)
        self.classes = found
        self.samples = [
            (path, label)
            for label, name in enumerate(found)
            for path in _images(self.folder / name)
        ]
        self.transform = train_transform(size) if split == "train" else eval_transform(size)
        self._random = split == "train"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (3, size, size), float32, normalised by ImageNet's mean and std; its class."""
        path, label = self.samples[index]
        return self.transform(load_image(path)), label

    def draw(self, index: int, seed: int) -> tuple[Tensor, int]:
        """The sample under the random augmentation that `seed` gives, and no other state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self[index]


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise DataError(
            f"the data folder {str(root)!r} does not exist; give one that holds train/ and val/"
        )
    folder = root / split
    if not folder.is_dir():
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:5]) or "nothing"
        raise DataError(
            f"the data folder {str(root)!r} has no {split}/: it holds {inside}; images belong in "
            f"{folder / 'CLASS' / 'NAME.jpg'}"
        )
    return folder


def _images(folder: Path) -> list[Path]:
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if not images:
        raise DataError(
            f"the class folder {str(folder)!r} holds no images; put some there "
            f"({', '.join(IMG_EXTENSIONS)}) or remove it"
        )
    return images


def _check_classes(folder: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    missing = [c for c in expected if c not in set(found)]
    extra = [c for c in found if c not in set(expected)]
    if missing or extra:
        what = f"lacks {_few(missing)}" if missing else f"has {_few(extra)} besides"
        raise DataError(
            f"{str(folder)!r} {what}: train/ and val/ need the same class folders; "
            f"train/ has {len(expected)}, it has {len(found)}"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(n) for n in names[:3]) + more
