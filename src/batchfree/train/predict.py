"""`predict`: a detector's findings in image files, drawn and as COCO results."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Sequence
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
from batchfree.data.image_files import frames, load_upright, no_word_of_size
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
        drawn: the picture with its boxes and masks; None where the image failed.
        detections: how many are drawn.
        frames: how many pictures the file holds, of which the first is taken.
        error: why it could not be read, or what the network failed at.
    """

    path: Path
    drawn: Path | None
    detections: int = 0
    frames: int = 1
    error: str | None = None


def find_images(paths: Sequence[Path], output: Path | None = None) -> list[tuple[Path, Path]]:
    """Image files and, of each, what its results are called: its path from the folder named.

    A link to nothing that has an image's name is among them, so that reading it names it.

    Args:
        paths: files, and folders to search with their sub-folders.
        output: the folder of the results, whose files are left out where it lies in one of the
            folders, so that what is predicted once is not predicted on.

    Raises:
        DataError: a path that is not there, or no image in any.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            found |= {p: p.relative_to(path) for p in _files(path, output) if _is_image(p)}
        elif path.exists():
            found[path] = Path(path.name)
        else:
            link = f", a link to {str(path.readlink())!r}" if path.is_symlink() else ""
            raise DataError(f"there is no image or folder at {str(path)!r}{link}")
    if not found:
        names = ", ".join(str(p) for p in paths)
        raise DataError(f"there are no images ({', '.join(SUFFIXES)}) in {names}")
    return list(found.items())


def passed_over(paths: Sequence[Path], output: Path | None = None) -> dict[str, int]:
    """How many files in these folders are not among the images, by suffix; hidden ones apart.

    Args:
        paths: as `find_images` takes them.
        output: likewise.
    """
    files = [p for path in paths if path.is_dir() for p in _files(path, output)]
    shown = [p for p in files if not _is_image(p) and not p.name.startswith(".")]
    return dict(sorted(Counter(p.suffix.lower() for p in shown).items()))


def _files(folder: Path, output: Path | None) -> list[Path]:
    """The files in a folder, but those in the output where that is within."""
    files = sorted(p for p in folder.rglob("*") if p.is_symlink() or p.is_file())
    outer, inner = folder.resolve(), None if output is None else output.resolve()
    if inner is None or outer not in inner.parents:
        return files
    return [p for p in files if not (outer / p.relative_to(folder)).is_relative_to(inner)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read_image(path: Path) -> Tensor:
    """The image as RGB, upright, uint8 (3, H, W).

    Raises:
        DataError: it cannot be decoded.
    """
    with no_word_of_size():
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
) -> Generator[Found, None, None]:
    """Detects, draws and records image by image; one that fails is reported and passed over.

    At the end `predictions.json` holds every detection in COCO's results format and `images.json`
    the ids, names and sizes of the images and the categories, so that together with annotations
    they can be evaluated. They hold what is done where an error or Ctrl-C ends it sooner, or the
    iterator is closed; where nothing is done they are not written.

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
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise NotADirectoryError(
            f"the output {str(output)!r} is a file, and a folder is needed: name another"
        ) from e
    model = model.to(device)
    results: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    taken: set[Path] = set()
    try:
        for number, (path, name) in enumerate(images, start=1):
            try:
                image = read_image(path)
                seen = _see(model, image, device)
                strong = seen["scores"] >= threshold
                masks = seen["masks"][:, 0] > _MASK
                found = _results(number, seen, masks, categories)
                picture = _png(_draw(image, seen, masks, strong, categories))
            except DataError as e:
                yield Found(path, None, error=str(e))
                continue
            except Exception as e:  # whatever torch raises on an image that it cannot take
                yield Found(path, None, error=_failure(path, image, e))
                continue
            drawn = output / _unused(name.with_suffix(".png"), taken)
            drawn.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(drawn, picture)
            height, width = image.shape[1:]
            records.append({"id": number, "file_name": str(name), "height": height, "width": width})
            results += found
            yield Found(path, drawn, int(strong.sum()), frames(path))
    finally:
        if records:
            _write(output, records, results, categories)


def _see(model: MaskRCNN, image: Tensor, device: str) -> dict[str, Tensor]:
    with torch.inference_mode():
        (seen,) = model([(image / 255).to(device)])
    return {k: v.cpu() for k, v in seen.items()}


def _failure(path: Path, image: Tensor, error: Exception) -> str:
    height, width = image.shape[1:]
    said = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{path}: the network fails at its {width} x {height} pixels ({said}); where the memory "
        "does not do, scale the image down"
    )


def _write(
    output: Path,
    records: list[dict[str, Any]],
    results: list[dict[str, Any]],
    categories: Categories,
) -> None:
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
