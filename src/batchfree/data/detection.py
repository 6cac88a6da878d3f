"""What every detection set shares: categories, the item, the transforms. Needs `batchfree[detect]`.

An item is `(image, target)` as torchvision's detectors take it: the image float32 (3, H, W) in
[0, 1], the target a dictionary of
    boxes     float32 (N, 4): left, top, right, bottom, pixels
    labels    int64 (N,): 1 to K; 0 is the background
    masks     uint8 (N, H, W): 0 and 1 (where the set is asked for masks)
    image_id  int: as in the annotation file
    area      float32 (N,): pixels of the mask, or of the box where there are no masks
    iscrowd   int64 (N,): 1 where the annotation covers a crowd
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from batchfree.data.masks import mask_areas

Target = dict[str, Any]
Item = tuple[Tensor, Target]


@dataclass(frozen=True)
class Categories:
    """A set's categories: any ids in the annotation file, labels 1 to K for the network.

    Attributes:
        ids: as in the annotation file, ascending.
        names: of each.

    Example:
        >>> categories = Categories((3, 90), ("car", "toothbrush"))
        >>> categories.label(90), categories.id(2), categories.name(2), len(categories)
        (2, 90, 'toothbrush', 2)
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unique_names(self) -> tuple[str, ...]:
        """The names, with the id behind those that several categories share: `cat (id 3)`."""
        shared = len(set(self.names)) < len(self.names)
        out = tuple(
            f"{name} (id {id})" if shared and self.names.count(name) > 1 else name
            for id, name in zip(self.ids, self.names, strict=True)
        )
        if len(set(out)) < len(out):  # a category is called `cat (id 3)`
            out = tuple(f"{n} (id {i})" for i, n in zip(self.ids, self.names, strict=True))
        return out

    def label(self, category_id: int) -> int:
        """The label, 1 to K, of a category id."""
        if category_id not in self.ids:
            raise ValueError(f"there is no category {category_id}; known: {self.ids}")
        return self.ids.index(category_id) + 1

    def id(self, label: int) -> int:
        """The category id of a label, 1 to K."""
        if not 1 <= label <= len(self.ids):
            raise ValueError(f"labels are 1 to {len(self.ids)}, got {label}")
        return self.ids[label - 1]

    def name(self, label: int) -> str:
        """The name of a label, 1 to K."""
        if not 1 <= label <= len(self.ids):
            raise ValueError(f"labels are 1 to {len(self.ids)}, got {label}")
        return self.names[label - 1]


@dataclass(frozen=True)
class Scene:
    """An image and its instances, before any transform.

    Attributes:
        image: uint8 (3, H, W).
        boxes: float32 (N, 4), left, top, right, bottom.
        labels: int64 (N,).
        masks: uint8 (N, H, W), or None.
        iscrowd: int64 (N,).
        image_id: as in the annotation file.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    iscrowd: Tensor
    image_id: int


class DetectionSet(Dataset[Item], ABC):
    """Images with boxes, labels and masks; `DigitScenes` and `CocoDataset` are such.

    Attributes:
        categories: the labels' ids and names.
        image_ids: of each image, in order.
        sizes: (height, width) of each image, pixels, before transforms.
        transforms: of an item, from torchvision's transforms v2; `None` only scales to [0, 1].
        min_size: an instance whose box has a shorter side than that many pixels after the
            transforms, or whose mask came out empty, is left out.
    """

    categories: Categories
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    transforms: Callable[..., Any] | None = None
    min_size: float = 1.0

    @abstractmethod
    def scene(self, index: int) -> Scene:
        """The image at an index and its instances, before the transforms."""

    @abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """The whole set in COCO's format: `images`, `annotations`, `categories`."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Item:
        """The item at an index; see this module."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        return item(self.scene(index), self.transforms, self.min_size)

    def draw(self, index: int, seed: int) -> Item:
        """The item under the random transforms that `seed` gives, and no other state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self[index]


def item(scene: Scene, transforms: Callable[..., Any] | None, min_size: float = 1.0) -> Item:
    """A scene transformed, cleaned and as torchvision's detectors take it.

    Boxes are clipped to the image; instances smaller than `min_size` or with an empty mask are
    left out.
    """
    height, width = scene.image.shape[-2:]
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(
            scene.boxes.reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        ),
        "labels": scene.labels,
        "image_id": scene.image_id,
        "iscrowd": scene.iscrowd,
    }
    if scene.masks is not None:
        target["masks"] = tv_tensors.Mask(scene.masks)
    transform = transforms if transforms is not None else detection_transform()
    image, target = transform(tv_tensors.Image(scene.image), target)
    return image.as_subclass(Tensor), _clean(target, image.shape[-2:], min_size)


def _clean(target: Target, size: Sequence[int], min_size: float) -> Target:
    height, width = size
    boxes = target["boxes"].as_subclass(Tensor).float()
    boxes = torch.stack(
        [boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2
    ).flatten(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides >= min_size).all(dim=1)
    masks = target.get("masks")
    area = sides.prod(dim=1)
    if masks is not None:
        masks = masks.as_subclass(Tensor)
        area = mask_areas(masks).float()
        keep &= area > 0
    out: Target = {"boxes": boxes[keep], "labels": target["labels"][keep]}
    if masks is not None:
        out["masks"] = masks if keep.all() else masks[keep]  # most of an item's bytes
    return out | {
        "image_id": target["image_id"],
        "area": area[keep],
        "iscrowd": target["iscrowd"][keep],
    }


def detection_transform(
    *, short_sides: Iterable[int] | None = None, max_size: int = 1333, flip: float = 0.0
) -> v2.Compose:
    """Scale jitter, horizontal flip, and the image as float32 in [0, 1].

    Resize here or in the network (torchvision's `GeneralizedRCNNTransform` does), not in both.

    Args:
        short_sides: the image's shorter side is one of these, drawn for each image; by default the
            image keeps its size. Detectron's for training from scratch: 640, 672, ..., 800
            (He et al., "Rethinking ImageNet Pre-training", 2018, section 3).
        max_size: the longer side is at most this, pixels.
        flip: the probability of a horizontal flip.

    Example:
        >>> transform = detection_transform(short_sides=(64, 96), max_size=128, flip=0.5)
        >>> from torchvision import tv_tensors
        >>> image = tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8))
        >>> min(transform(image).shape[1:]) in (64, 96, 85)
        True
    """
    steps: list[Any] = []
    if short_sides is not None:
        sides = [int(s) for s in short_sides]
        if not sides or min(sides) < 1:
            raise ValueError(f"short_sides must be positive numbers of pixels, got {sides}")
        steps.append(_ShortestSize(sides, max_size=max_size, antialias=True))
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability, 0 to 1, got {flip}")
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])


class _ShortestSize(v2.RandomShortestSize):
    """torchvision's, which rounds the shorter side of a very thin image down to no pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        return params | {"size": tuple(max(1, side) for side in params["size"])}


def detection_collate(batch: Sequence[Item]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets of a batch as two lists, since their sizes differ."""
    return [image for image, _ in batch], [target for _, target in batch]
