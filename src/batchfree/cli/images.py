"""Images of a folder, given on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchfree._errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")


def images_of(folder: Path, count: int) -> list[tuple[Path, int]]:
    """The first images of each class (folder) in turn, with the number of their class.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}")
    by_class: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS:
            by_class.setdefault(str(path.parent), []).append(path)
    longest = max(map(len, by_class.values()), default=0)
    return [
        (paths[turn], label)
        for turn in range(longest)
        for label, paths in enumerate(by_class.values())
        if turn < len(paths)
    ][:count]


def evaluation_images(folder: Path, count: int, size: int) -> Any:
    """Images (N, 3, size, size) as a network is evaluated on them: resized, cropped, standardised.

    Raises:
        DataError: there is no such folder, it holds no image, or one cannot be read.
    """
    import torch

    from batchfree.data.image_files import load_image
    from batchfree.data.image_folder import eval_transform

    found = images_of(folder, count)
    if not found:
        raise DataError(f"{folder} holds no images")
    transform = eval_transform(size)
    return torch.stack([transform(load_image(path)) for path, _ in found])
