"""Where a COCO data set keeps its files; one rule for the check and for training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from batchfree._errors import DataError

_ROBOFLOW = "_annotations.coco.json"
_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_LOOKED_AT = 20  # images of a file, to tell which folder they are in


@dataclass(frozen=True)
class CocoFiles:
    """An annotation file and where its images may be.

    Attributes:
        annotations: the JSON file.
        folders: that its file names may be in, the likeliest first; at least one.
    """

    annotations: Path
    folders: tuple[Path, ...]

    def images(self, names: Iterable[str]) -> Path:
        """The folder that holds the most of the first images named; the likeliest of equals."""
        first = list(islice(names, _LOOKED_AT))
        return max(self.folders, key=lambda f: sum((f / name).is_file() for name in first))


def split_files(
    root: str | Path | None,
    split: str,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> CocoFiles:
    """The files of one split, among those that `all_files` finds.

    A file is a split's by its name, with or without `instances_` and a year, of which 2017 comes
    first; or by its folder's, where it is Roboflow's `_annotations.coco.json`. Validation may be
    called `val`, `valid` or `validation`.

    Args:
        root: the data set's folder; it may be None where `annotations` is given.
        split: `"train"` or `"val"`, or whatever the files are named by.
        annotations: the annotation file, where it has another name: a path, from here or in `root`.
        images: the image folder, likewise.

    Raises:
        DataError: one of them is not there, or several files go by the split's name.
    """
    base = None if root is None else _folder(root)
    if annotations is not None:
        path = _named(base, annotations)
        if not path.is_file():
            raise DataError(f"there is no annotation file at {str(path)!r}")
    else:
        if base is None:
            raise DataError(f"neither a folder nor an annotation file is given for {split!r}")
        path = _file_of(base, split)
    return _with_folders(base, path, split, images)


def all_files(root: str | Path, images: str | Path | None = None) -> list[CocoFiles]:
    """Every annotation file of a data set, or the one named; image folders may be missing.

    Args:
        root: an annotation file; or a folder with `annotations/instances_*.json`, or else
            `annotations/*.json`, or else `_annotations.coco.json` in it or in its folders, or else
            `instances_*.json`.
        images: the image folder, where it is not one that goes by the annotation file's name.

    Raises:
        DataError: there is no such folder or file, or no annotation file in it.
    """
    root = Path(root)
    if root.is_file():
        return [_with_folders(None, root, None, images)]
    found = _in(_folder(root))
    if not found:
        raise DataError(
            f"{str(root)!r} has no annotation file: "
            f"{root / 'annotations' / 'instances_train2017.json'} is where COCO keeps one, "
            f"{root / 'train' / _ROBOFLOW} where Roboflow does; or name the file itself"
        )
    return [_with_folders(root, f, None, images) for f in found]


def _in(root: Path) -> list[Path]:
    annotations = root / "annotations"
    for found in (
        annotations.glob("instances_*.json"),
        annotations.glob("*.json"),
        [*root.glob(_ROBOFLOW), *root.glob(f"*/{_ROBOFLOW}")],
        root.glob("instances_*.json"),
    ):
        if files := sorted(f for f in found if f.is_file()):
            return files
    return []


def _file_of(root: Path, split: str) -> Path:
    found = _in(root)
    names = _ALIASES.get(split, (split,))
    matches = [f for f in found if not {_stem(root, f), _split_of(root, f)}.isdisjoint(names)]
    newest = [f for f in matches if f.stem.endswith("2017")]
    if len(found) == 1 and _split_of(root, found[0]) == "":  # a folder that is one split
        return found[0]
    if len(matches) > 1 and len(newest) != 1:
        raise DataError(
            f"{str(root)!r} has several annotation files for {split!r}, "
            f"{', '.join(str(f.relative_to(root)) for f in matches)}: name one (annotations=, or "
            "data.train_annotations, data.val_annotations)"
        )
    if not matches:
        there = ", ".join(str(f.relative_to(root)) for f in found[:5]) or "none"
        raise DataError(
            f"{str(root)!r} has no annotation file for {split!r}; looked for "
            f"annotations/instances_{split}2017.json, annotations/{split}.json, "
            f"{split}/{_ROBOFLOW} and the like; there is {there}. A file of another name is given "
            "by annotations=, or data.train_annotations, data.val_annotations"
        )
    return (newest or matches)[0]


def _stem(root: Path, file: Path) -> str:
    """What a file says of its split: `train2017` of `instances_train2017.json`; "" where nothing"""
    if file.name == _ROBOFLOW:
        return "" if file.parent == root else file.parent.name
    return file.stem.removeprefix("instances_")


def _split_of(root: Path, file: Path) -> str:
    return re.sub(r"_?\d{4}$", "", _stem(root, file))


def _with_folders(
    root: Path | None, file: Path, split: str | None, images: str | Path | None
) -> CocoFiles:
    """The file with the folders that may hold its images."""
    if images is not None:
        folder = _named(root, images)
        if not folder.is_dir():
            raise DataError(f"there is no image folder at {str(folder)!r}")
        return CocoFiles(file, (folder,))
    beside = file.parent
    base = root or (beside.parent if beside.name == "annotations" else beside)
    names = [_stem(base, file), _split_of(base, file)]
    names += [f"{names[1]}2017"]
    for aliases in _ALIASES.values():
        names += aliases if names[1] in aliases or split in aliases else ()
    if split is not None:
        names += [split, f"{split}2017"]
    folders = [parent / name for name in names if name for parent in (base, base / "images")]
    folders += [base / "images", beside, base]
    there = tuple(dict.fromkeys(f for f in folders if f.is_dir()))
    return CocoFiles(file, there or (base,))


def _named(root: Path | None, path: str | Path) -> Path:
    """A path as it is, or in the root."""
    given = Path(path)
    return root / given if root is not None and not given.exists() else given


def _folder(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise DataError(
            f"the data folder {str(root)!r} does not exist; give one that holds annotations/ and "
            "the image folders"
        )
    return Path(root)
