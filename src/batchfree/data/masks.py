"""Masks, boxes and COCO's segmentations, through faster-coco-eval. Needs `batchfree[detect]`.

faster-coco-eval rather than pycocotools: the same code in C++, kept up, and it refuses a run-length
encoding that does not fit its image instead of reading past it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from torch import Tensor

# A longer edge is a mistake, and drawing it takes memory by its length.
_FARTHEST = 1e5
_RADIUS = 1.0  # pixels: a disc of more than the root of a half has a pixel's centre in it


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Masks as run-length encodings that JSON can hold.

    Args:
        masks: (N, H, W), bool or uint8 of 0 and 1.

    Returns:
        N dictionaries `{"size": [H, W], "counts": str}`.

    Example:
        >>> encode(torch.tensor([[[0, 1], [0, 1]]], dtype=torch.uint8))
        [{'size': [2, 2], 'counts': '22'}]
    """
    if not len(masks):
        return []
    columns = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).numpy())
    return [
        {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}
        for code in mask_api.encode(columns)
    ]


def decode(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """COCO's segmentations as masks (N, height, width), uint8 of 0 and 1.

    Args:
        segmentations: polygons or run-length encodings, compressed or not, that `problem` finds
            nothing wrong with.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    if not len(segmentations):
        return torch.zeros(0, height, width, dtype=torch.uint8)
    codes = [run_lengths(s, height, width) for s in segmentations]

    return torch.from_numpy(np.ascontiguousarray(mask_api.decode(codes).transpose(2, 0, 1)))


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed run-length encoding of one segmentation."""
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            code: dict[str, Any] = mask_api.frPyObjects(dict(segmentation), height, width)
            return code
        return dict(segmentation)
    parts: dict[str, Any] = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    return parts


def area(segmentation: Any, height: int, width: int) -> int:
    """The number of pixels of a segmentation."""
    return int(mask_api.area(run_lengths(segmentation, height, width)))


def problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a segmentation of an image of that size, in words; None where nothing is.

    Example:
        >>> problem([[0, 0, 4, 0]], 8, 8)
        'a polygon of 4 numbers; it takes pairs, three or more'
        >>> problem({"size": [8, 9], "counts": [72]}, 8, 8)
        'a run-length encoding of 8 x 9 pixels for an image of 8 x 8'
    """
    if isinstance(segmentation, Mapping):
        return _problem_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"a segmentation of type {type(segmentation).__name__}"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return f"a polygon of type {type(polygon).__name__}; it is a list of numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers; it takes pairs, three or more"
        if not all(type(v) in (int, float) and -_FARTHEST <= v <= _FARTHEST for v in polygon):
            return "a polygon with a coordinate that is no finite number of pixels"
    return None


def _problem_of_runs(runs: Mapping[Any, Any], height: int, width: int) -> str | None:
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, (str, list)):
        return "a run-length encoding without its size and counts"
    if size != [height, width]:
        return (
            f"a run-length encoding of {size[0]!r} x {size[1]!r} pixels for an image of "
            f"{height} x {width}"
        )
    if isinstance(counts, list):
        if not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts):
            return "a run-length encoding with a count that is no number of pixels"
        if sum(counts) != height * width:
            return f"a run-length encoding of {sum(counts)} pixels for {height * width}"
        return None
    try:
        mask_api.decode(dict(runs))
    except (ValueError, RuntimeError, UnicodeError) as e:
        return f"a run-length encoding that cannot be read ({str(e).splitlines()[0]})"
    return None


def has_pixel(segmentation: Any, height: int, width: int) -> bool:
    """Whether a segmentation that `problem` finds nothing wrong with has a pixel in its image.

    Example:
        >>> has_pixel([[1, 1, 5, 1, 5, 5]], 8, 8), has_pixel([[1, 1, 1, 1, 1, 1]], 8, 8)
        (True, False)
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return any(counts[1::2])
    elif any(_holds_disc(polygon, height, width) for polygon in segmentation):
        return True
    return area(segmentation, height, width) > 0


def _holds_disc(polygon: list[float], height: int, width: int) -> bool:
    """Whether a polygon lies in the image and is so thick that it must cover a pixel.

    A simple polygon of area A and perimeter P holds a disc of radius A / P: a tenth of the cost of
    drawing it, which is left for the thin ones.
    """
    xs, ys = polygon[0::2], polygon[1::2]
    if min(xs) < 0 or min(ys) < 0 or max(xs) > width or max(ys) > height:
        return False
    twice_area = perimeter = 0.0
    x, y = xs[-1], ys[-1]
    for next_x, next_y in zip(xs, ys, strict=True):
        twice_area += x * next_y - next_x * y
        perimeter += abs(next_x - x) + abs(next_y - y)  # at least the length
        x, y = next_x, next_y
    return abs(twice_area) > 2 * _RADIUS * perimeter


def extent(segmentation: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what a segmentation covers of its image, pixels.

    Example:
        >>> extent([[-2, 1, 5, 1, 5, 9]], 8, 8)
        (0, 1, 5, 8)
        >>> extent({"size": [2, 3], "counts": [2, 2, 2]}, 2, 3)
        (1.0, 0.0, 2.0, 2.0)
    """
    if isinstance(segmentation, Mapping):
        left, top, across, down = map(
            float, mask_api.toBbox(run_lengths(segmentation, height, width))
        )
        return left, top, left + across, top + down
    left = min(min(polygon[0::2]) for polygon in segmentation)
    top = min(min(polygon[1::2]) for polygon in segmentation)
    right = max(max(polygon[0::2]) for polygon in segmentation)
    bottom = max(max(polygon[1::2]) for polygon in segmentation)
    return (
        min(max(left, 0), width),
        min(max(top, 0), height),
        min(max(right, 0), width),
        min(max(bottom, 0), height),
    )


def mask_areas(masks: Tensor) -> Tensor:
    """Pixels of each mask, int64 (N,).

    Args:
        masks: (N, H, W), uint8 of 0 and 1; on the CPU.
    """
    # Ten times as fast as masks.sum((1, 2)), which widens every pixel to 64 bits first.
    counts = [np.count_nonzero(m) for m in masks.numpy().view(np.bool_)]
    return torch.tensor(counts, dtype=torch.int64)


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes around masks, float32 (N, 4) as left, top, right, bottom.

    Right and bottom are past the last pixel, so that a one-pixel mask's box has sides of 1, as in
    COCO; an empty mask's box is all zero.

    Args:
        masks: (N, H, W), bool or uint8.

    Example:
        >>> tight_boxes(torch.tensor([[[0, 0, 0], [0, 1, 1]]], dtype=torch.uint8))
        tensor([[1., 1., 3., 2.]])
    """
    on = masks != 0
    ends = []
    for across in (1, 2):  # columns first: x
        line = on.any(dim=across)
        length = line.shape[1]
        first = line.to(torch.uint8).argmax(dim=1)
        last = length - line.flip(1).to(torch.uint8).argmax(dim=1)
        empty = ~line.any(dim=1)
        ends.append((first.masked_fill(empty, 0), last.masked_fill(empty, 0)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], dim=1).float()
