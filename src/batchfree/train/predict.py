"""`predict`: a detector's findings in image files, drawn and as COCO results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from batchfree._errors import DataError
from batchfree._files import write_atomically
from batchfree.data.detection import Categories
from batchfree.data.image_files import load_upright
from batchfree.data.masks import encode

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
# Tableau's ten colours, which are told apart by most readers.
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"),
)
_MASK = 0.5  # of a pixel's probability


@dataclass(frozen=True)
class Found:
    """What became of an image.

    Attributes:
        path: the image.
        drawn: the picture with its boxes and masks; None where the image could not be read.
        detections: how many are drawn.
        error: why it could not be read.
    """

    path: Path
    drawn: Path | None
    detections: int = 0
    error: str | None = None


def find_images(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Image files and, of each, what its results are called: its path from the folder named.

    Args:
        paths: files, and folders to search with their sub-folders.

    Raises:
        DataError: a path that is not there, or no image in any.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found |= {p: p.relative_to(path) for p in inside if p.is_file()}
        elif path.exists():
            found[path] = Path(path.name)
        else:
            raise DataError(f"there is no image or folder at {str(path)!r}")
    if not found:
        names = ", ".join(str(p) for p in paths)
        raise DataError(f"there are no images ({', '.join(SUFFIXES)}) in {names}")
    return list(found.items())


def read_image(path: Path) -> Tensor:
    """The image as RGB, upright, uint8 (3, H, W).

    Raises:
        DataError: it cannot be decoded.
    """
    pixels = np.array(load_upright(path))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def predict(
    model: MaskRCNN,
    categories: Categories,
    images: Sequence[tuple[Path, Path]],
    output: Path,
    *,
    threshold: float = 0.5,
    device: str = "cpu",
) -> Iterator[Found]:
    """Detects, draws and records image by image; a broken image is reported and passed over.

    At the end `predictions.json` holds every detection in COCO's results format and `images.json`
    the ids, names and sizes of the images and the categories, so that together with annotations
    they can be evaluated.

    Args:
        model: in evaluation mode, as `load_detector` gives it.
        categories: of its labels.
        images: of `find_images`.
        output: the folder of the results.
        threshold: the lowest score that is drawn; the JSON holds all.
        device: where it runs.

    Raises:
        OSError: the output cannot be written.
    """
    model = model.to(device)
    results: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    taken: set[Path] = set()
    output.mkdir(parents=True, exist_ok=True)
    for number, (path, name) in enumerate(images, start=1):
        try:
            image = read_image(path)
        except DataError as e:
            yield Found(path, None, error=str(e))
            continue
        with torch.inference_mode():
            (seen,) = model([(image / 255).to(device)])
        seen = {k: v.cpu() for k, v in seen.items()}
        masks = seen["masks"][:, 0] > _MASK
        height, width = image.shape[1:]
        records.append({"id": number, "file_name": str(name), "height": height, "width": width})
        results += _results(number, seen, masks, categories)
        strong = seen["scores"] >= threshold
        drawn = output / _unused(name.with_suffix(".png"), taken)
        drawn.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(drawn, _png(_draw(image, seen, masks, strong, categories)))
        yield Found(path, drawn, int(strong.sum()))
    names = [{"id": i, "name": n} for i, n in zip(categories.ids, categories.names, strict=True)]
    content = {"images": records, "categories": names}
    write_atomically(output / "images.json", json.dumps(content, indent=1).encode())
    write_atomically(output / "predictions.json", json.dumps(results).encode())


def _results(
    image_id: int, seen: dict[str, Tensor], masks: Tensor, categories: Categories
) -> list[dict[str, Any]]:
    boxes = seen["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": categories.id(label),
            "bbox": [round(v, 3) for v in box],
            "segmentation": code,
            "score": score,
        }
        for label, box, code, score in zip(
            seen["labels"].tolist(),
            boxes.tolist(),
            encode(masks),
            seen["scores"].tolist(),
            strict=True,
        )
    ]


def _draw(
    image: Tensor, seen: dict[str, Tensor], masks: Tensor, strong: Tensor, categories: Categories
) -> Tensor:
    labels = seen["labels"][strong].tolist()
    if not labels:
        return image
    colours = [_COLOURS[(label - 1) % len(_COLOURS)] for label in labels]
    picture = draw_segmentation_masks(image, masks[strong], alpha=0.5, colors=colours)
    scores = seen["scores"][strong].tolist()
    texts = [f"{categories.name(c)} {s:.2f}" for c, s in zip(labels, scores, strict=True)]
    return draw_bounding_boxes(
        picture, seen["boxes"][strong], texts, colours, width=1 + max(image.shape[1:]) // 500
    )


def _png(picture: Tensor) -> bytes:
    file = BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "png")
    return file.getvalue()


def _unused(name: Path, taken: set[Path]) -> Path:
    """The name, numbered where images of the same name come from several folders."""
    stem, number = name.stem, 1
    while name in taken:
        number += 1
        name = name.with_name(f"{stem}-{number}{name.suffix}")
    taken.add(name)
    return Path(os.path.normpath(name))
