"""Where a COCO data set keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchfree._errors import DataError


@dataclass(frozen=True)
class CocoFiles:
    """An annotation file and the folder of its images.

    Attributes:
        annotations: the JSON file.
        images: the folder that its file names are in.
    """

    annotations: Path
    images: Path


def split_files(
    root: str | Path,
    split: str,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> CocoFiles:
    """The files of one split: COCO's own names, or the same without the year.

    Args:
        root: the folder that holds `annotations/` and the image folders.
        split: `"train"` or `"val"`, or whatever the files are named by.
        annotations: the annotation file, where it has another name.
        images: the image folder, where it has another name.

    Raises:
        DataError: one of them is not there.
    """
    root = _folder(root)
    if annotations is None:
        names = [f"instances_{split}2017.json", f"instances_{split}.json", f"{split}.json"]
        annotations = _first(
            [root / "annotations" / name for name in names],
            f"{str(root)!r} has no annotation file for {split!r}",
        )
    path = Path(annotations)
    if not path.is_file():
        raise DataError(f"there is no annotation file at {str(path)!r}")
    if images is None:
        names = [f"{split}2017", split, f"images/{split}2017", f"images/{split}"]
        images = _first(
            [root / name for name in names], f"{str(root)!r} has no image folder for {split!r}"
        )
    if not Path(images).is_dir():
        raise DataError(f"there is no image folder at {str(images)!r}")
    return CocoFiles(path, Path(images))


def all_files(root: str | Path, images: str | Path | None = None) -> list[CocoFiles]:
    """Every annotation file of a data set, or the one named; image folders may be missing.

    Raises:
        DataError: there is no such folder or file, or no annotation file in it.
    """
    root = Path(root)
    if root.is_file():
        found, base = (
            [root],
            root.parent.parent if root.parent.name == "annotations" else root.parent,
        )
    else:
        base, folder = _folder(root), root / "annotations"
        found = sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json"))
        if not found:
            raise DataError(
                f"{str(root)!r} has no annotation file: {folder / 'instances_train2017.json'} is "
                "where COCO keeps one; or name the file itself"
            )
    if images is not None and not Path(images).is_dir():
        raise DataError(f"there is no image folder at {str(images)!r}")
    return [CocoFiles(f, _image_folder(base, f) if images is None else Path(images)) for f in found]


def _image_folder(base: Path, annotations: Path) -> Path:
    """The image folder that goes by an annotation file's name."""
    split = annotations.stem.removeprefix("instances_")
    candidates = [base / split, base / f"{split}2017", base / "images" / split, base / "images"]
    return next((c for c in candidates if c.is_dir()), base)


def _folder(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise DataError(
            f"the data folder {str(root)!r} does not exist; give one that holds annotations/ and "
            "the image folders"
        )
    return Path(root)


def _first(candidates: list[Path], missing: str) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"{missing}; looked for {', '.join(map(str, candidates))}")
