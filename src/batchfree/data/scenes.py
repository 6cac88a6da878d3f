"""Digit scenes: an embedded detection set with exact masks. Needs `batchfree[detect]`.

One to six of scikit-learn's handwritten digits, each warped, at its own scale and place, over a
crop of a photograph: the digits, their split and the crops of `DigitsInTheWild` on a larger canvas.
Later digits cover earlier ones; a mask is what is seen of its digit. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from batchfree._checks import check_choice
from batchfree.data.counted import uniform
from batchfree.data.detection import Categories, DetectionSet, Scene
from batchfree.data.digits_in_the_wild import photo_crops, split_digits
from batchfree.data.masks import encode, mask_areas, tight_boxes

SceneSplit = Literal["train", "test"]
DIGITS = Categories(tuple(range(1, 11)), tuple("0123456789"))
"""Category ids and labels 1 to 10, named "0" to "9"."""

_CROPS = 512
_PLACES = 12  # tries to place a digit where it leaves at least _VISIBLE of every other in sight
_VISIBLE = 0.6
_SIDES = (0.2, 0.55)  # of a digit's 8x8 image, in canvas sides
_PER_DIGIT = 4 + 2 * _PLACES
# Ink of the smooth enlargement that is the stroke's edge, and half the width of its soft margin.
_EDGE, _SOFT = 0.4, 0.12
_MARGIN = 2  # pixels around a stroke that hide what is below

Floats = NDArray[np.float32]


class DigitScenes(DetectionSet):
    """Digits composed on photographs, with boxes and exact masks, made as they are asked for.

    Scene i is a function of (seed, split, size, instances, i) alone: the same whatever the worker
    or order it is asked for in. Digits are split by source as in `DigitsInTheWild`: no test digit,
    in any warp, is ever trained on. Of every digit at least 60% of its stroke is in sight, and it
    lies inside the canvas as a whole.

    Args:
        split: `"train"` or `"test"`.
        images: how many; by default 2,000 for training and 400 for testing. There is no end.
        size: side of the canvas, 128 to 256 pixels.
        instances: the fewest and the most digits of a scene, up to 12. A digit for which there is
            no free place is left out, so a crowded scene may hold fewer than the fewest.
        seed: of the random draws.
        transforms: of an item; by default the image is scaled to [0, 1] and nothing else.

    Raises:
        ValueError: an unknown split, or a number out of range.

    Example:
        >>> from batchfree.data.scenes import DigitScenes
        >>> image, target = DigitScenes("train", images=10)[3]
        >>> image.shape, image.dtype, target["masks"].shape[1:]
        (torch.Size([3, 128, 128]), torch.float32, torch.Size([128, 128]))
    """

    categories = DIGITS

    def __init__(
        self,
        split: SceneSplit = "train",
        images: int | None = None,
        size: int = 128,
        seed: int = 0,
        *,
        instances: tuple[int, int] = (1, 6),
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        check_choice(split, get_args(SceneSplit), "split")
        if not 128 <= size <= 256:
            raise ValueError(f"size must be 128 to 256 pixels, got {size}")
        if images is not None and images < 1:
            raise ValueError(f"images must be positive, got {images}")
        if not 0 <= instances[0] <= instances[1] <= 12:
            raise ValueError(f"instances must be the fewest and the most, 0 to 12, got {instances}")
        self.split: SceneSplit = split
        self.size, self.seed, self.instances = size, seed, instances
        self.transforms = transforms
        count = images or (2000 if split == "train" else 400)
        self.image_ids = list(range(1, count + 1))
        self.sizes = [(size, size)] * count
        self._digits, self._labels = split_digits(split)
        self._crops = photo_crops(size, "standard", _CROPS)

    def scene(self, index: int) -> Scene:
        """The scene at an index, image uint8; its id is index + 1."""
        fewest, most = self.instances
        stream = 2 * self.seed + (self.split == "test")
        u = uniform(np.array([index], dtype=np.uint64), 3 + most * _PER_DIGIT, stream)[0]
        count = fewest + int(u[0] * (most - fewest + 1))
        ink, owner, labels = self._paint(u[3:].reshape(most, _PER_DIGIT)[:count])
        crop = self._crops[int(u[1] * _CROPS)]
        photo = (crop.flip(2) if u[2] < 0.5 else crop).float()
        image = (photo - 255 * torch.from_numpy(ink)).abs().round().to(torch.uint8)
        masks = torch.from_numpy(owner == np.arange(len(labels))[:, None, None]).to(torch.uint8)
        return Scene(
            image=image,
            boxes=tight_boxes(masks),
            labels=torch.tensor(labels, dtype=torch.int64) + 1,
            masks=masks,
            iscrowd=torch.zeros(len(labels), dtype=torch.int64),
            image_id=index + 1,
        )

    def ground_truth(self) -> dict[str, Any]:
        """The set in COCO's format, masks as run-length encodings."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            scene = self.scene(index)
            images.append(image_record(scene, "png"))
            annotations += annotation_records(scene, first_id=len(annotations) + 1)
        return {"images": images, "annotations": annotations, "categories": category_records()}

    def _paint(self, draws: Floats) -> tuple[Floats, NDArray[np.int64], list[int]]:
        """Ink (size, size) in [0, 1]; whose it is, -1 nobody's; and the digits placed."""
        ink = np.zeros((self.size, self.size), np.float32)
        owner = np.full((self.size, self.size), -1)
        labels: list[int] = []
        whole = np.zeros(len(draws))  # pixels of each stroke, in sight or not
        seen = np.zeros(len(draws))
        for u in draws:
            which = int(u[0] * len(self._labels))
            digit, cover = _warped(self._digits[which], self.size, u[1:4])
            height, width = digit.shape
            for place in u[4:].reshape(-1, 2):
                top = int(place[0] * (self.size - height + 1))
                left = int(place[1] * (self.size - width + 1))
                window = (slice(top, top + height), slice(left, left + width))
                under = owner[window][cover]
                left_over = seen - np.bincount(under[under >= 0], minlength=len(seen))
                if (left_over >= _VISIBLE * whole).all():
                    break
            else:
                continue
            stroke = digit >= 0.5
            ink[window][cover] = digit[cover]
            owner[window][cover] = -1
            owner[window][stroke] = k = len(labels)
            seen = left_over
            seen[k] = whole[k] = stroke.sum()
            labels.append(int(self._labels[which]))
        return ink, owner, labels


def _warped(digit: Tensor, size: int, u: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """A digit (1, 8, 8) enlarged, turned and sheared for a canvas of `size`.

    Returns:
        Ink (h, w) in [0, 1], and what it hides (h, w): its stroke and a margin, by which one digit
        on another can be told from it. Both are cut to the latter.
    """
    smallest, largest = (s * size for s in _SIDES)
    side = smallest * (largest / smallest) ** float(u[0])
    canvas = int(1.5 * side)
    angle = (float(u[1]) - 0.5) * math.pi / 4  # 22.5 degrees either way
    shear = (float(u[2]) - 0.5) * 0.5
    at = (2 * np.arange(canvas) + 1 - canvas) / side  # pixel centres; the 8x8 image ends at 1
    x, y = at[None, :], at[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    across, down = cos * x + (shear * cos - sin) * y, sin * x + (shear * sin + cos) * y
    grid = torch.from_numpy(np.stack([across, down], axis=2).astype(np.float32))
    smooth = F.grid_sample(digit[None], grid[None], mode="bicubic", align_corners=False)
    ink = ((smooth - _EDGE + _SOFT) / (2 * _SOFT)).clamp(0, 1)
    cover = F.max_pool2d((ink >= 0.5).float(), 2 * _MARGIN + 1, stride=1, padding=_MARGIN)
    hidden = cover[0, 0].numpy() > 0
    rows, columns = (np.flatnonzero(hidden.any(axis=a)) for a in (1, 0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return ink[0, 0].numpy()[cut], hidden[cut]


def image_record(scene: Scene, ending: str) -> dict[str, Any]:
    """An entry of `images` in COCO's format."""
    height, width = scene.image.shape[-2:]
    name = f"{scene.image_id:012d}.{ending}"
    return {"id": scene.image_id, "file_name": name, "height": height, "width": width}


def annotation_records(scene: Scene, first_id: int) -> list[dict[str, Any]]:
    """Entries of `annotations` in COCO's format, ids from `first_id` on."""
    assert scene.masks is not None
    codes, areas = encode(scene.masks), mask_areas(scene.masks).tolist()
    records = []
    for k, (box, label) in enumerate(zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True)):
        left, top, right, bottom = box
        records.append(
            {
                "id": first_id + k,
                "image_id": scene.image_id,
                "category_id": DIGITS.id(label),
                "bbox": [left, top, right - left, bottom - top],
                "area": areas[k],
                "iscrowd": 0,
                "segmentation": codes[k],
            }
        )
    return records


def category_records() -> list[dict[str, Any]]:
    """`categories` in COCO's format."""
    return [
        {"id": id, "name": name, "supercategory": "digit"}
        for id, name in zip(DIGITS.ids, DIGITS.names, strict=True)
    ]
