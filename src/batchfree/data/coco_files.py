"""Where a COCO data set keeps its files; one rule for the check and for training."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from batchfree._errors import DataError

_ROBOFLOW = "_annotations.coco.json"
_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_PREFIXES = ("instances_", "person_keypoints_")
# What labelme2coco, Label Studio, FiftyOne and CVAT call the file of a folder that is one set.
_WHOLE = ("annotations", "result", "labels", "instances_default")
_LISTS = ("images", "annotations", "categories")
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

        def held(folder: Path) -> int:
            return sum((folder / slashed(folder, name)).is_file() for name in first)

        return max(self.folders, key=held)


def slashed(folder: Path, name: str) -> str:
    """A file name with slashes for Windows' backslashes, unless a file has them in its name."""
    if "\\" not in name or (folder / name).is_file():
        return name
    return name.replace("\\", "/")


def split_files(
    root: str | Path | None,
    split: str,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> CocoFiles:
    """The files of one split, among those that `all_files` finds.

    A file is a split's by its name, with or without `instances_` and a year, of which 2017 comes
    first; or by its folder's, where its own says nothing, as Roboflow's `_annotations.coco.json`.
    Validation may be called `val`, `valid` or `validation`. Capitals count only where several files
    differ in nothing else.

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
        root: an annotation file; or a folder with, the first of these that there is:
            `annotations/instances_*.json`, `annotations/person_keypoints_*.json`,
            `annotations/*.json`, `_annotations.coco.json` in it or in its folders,
            `instances_*.json`, `annotations.json`, `labels.json` or `result.json` in its folders,
            `*.json`; the last two only where they have COCO's lists.
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
            f"{root / 'train' / _ROBOFLOW} where Roboflow does; {_others(root)}; name one itself, "
            "and its images by images= (data check: FILE --images FOLDER)"
        )
    return [_with_folders(root, f, None, images) for f in found]


def _in(root: Path) -> list[Path]:
    annotations = root / "annotations"
    for found in (
        annotations.glob("instances_*.json"),
        annotations.glob("person_keypoints_*.json"),
        annotations.glob("*.json"),
        [*root.glob(_ROBOFLOW), *root.glob(f"*/{_ROBOFLOW}")],
        root.glob("instances_*.json"),
        (f for f in root.glob("*/*.json") if f.stem in _WHOLE and _looks_like_coco(f)),
        filter(_looks_like_coco, root.glob("*.json")),
    ):
        if files := sorted(f for f in found if f.is_file()):
            return files
    return []


def _looks_like_coco(file: Path) -> bool:
    """Whether a file names COCO's lists, without the time and memory that parsing takes."""
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(text.find(f'"{name}"'.encode()) >= 0 for name in _LISTS)
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _others(root: Path) -> str:
    """The JSON files of a folder that are not taken for annotation files, in words."""
    there = sorted(f for depth in ("*.json", "*/*.json", "*/*/*.json") for f in root.glob(depth))
    if not there:
        return "it has no JSON files"
    shown = ", ".join(str(f.relative_to(root)) for f in there[:5])
    return f"its JSON files are {shown}{f' and {len(there) - 5} more' * (len(there) > 5)}"


def _file_of(root: Path, split: str) -> Path:
    found = _in(root)
    names = _ALIASES.get(split, (split,))
    said = {f: (_stem(root, f), _split_of(root, f)) for f in found}
    matches = [f for f in found if not set(said[f]).isdisjoint(names)]
    if not matches:
        small = {n.casefold() for n in names}
        matches = [f for f in found if any(s.casefold() in small for s in said[f])]
    newest = [f for f in matches if f.stem.endswith("2017")]
    if len(found) == 1 and _is_whole(root, found[0]):
        return found[0]
    if len(matches) > 1 and len(newest) != 1:
        raise DataError(
            f"{str(root)!r} has several annotation files for {split!r}, "
            f"{', '.join(str(f.relative_to(root)) for f in matches)}: name one (annotations=, or "
            "data.train_annotations, data.val_annotations)"
        )
    if not matches:
        there = ", ".join(str(f.relative_to(root)) for f in found[:5])
        there = f"there is {there}" if there else _others(root)
        raise DataError(
            f"{str(root)!r} has no annotation file for {split!r}; looked for "
            f"annotations/instances_{split}2017.json, annotations/{split}.json, "
            f"{split}/{_ROBOFLOW} and the like; {there}. A file of another name is given "
            "by annotations=, or data.train_annotations, data.val_annotations, its images by "
            "images=, or data.train_images, data.val_images"
        )
    return (newest or matches)[0]


def _stem(root: Path, file: Path) -> str:
    """What a file says of its split: `train2017` of `instances_train2017.json`; "" where nothing"""
    if file.name == _ROBOFLOW or (file.stem in _WHOLE and file.parent.name != "annotations"):
        return "" if file.parent == root else file.parent.name
    for prefix in _PREFIXES:
        if file.stem.startswith(prefix):
            return file.stem.removeprefix(prefix)
    return file.stem


def _split_of(root: Path, file: Path) -> str:
    return re.sub(r"_?\d{4}$", "", _stem(root, file))


def _is_whole(root: Path, file: Path) -> bool:
    """Whether a file is of no split by its name, so that its folder may be any."""
    splits = {name for names in _ALIASES.values() for name in names} | {"test"}
    in_annotations = file.parent.name == "annotations" and file.stem in _WHOLE
    said = _split_of(root, file).casefold()
    named = any(name in said for name in splits)
    return in_annotations or said == "" or (file.parent == root and not named)


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
        names += aliases if names[1].casefold() in aliases or split in aliases else ()
    if split is not None:
        names += [split, f"{split}2017"]
    there = [(p, [f.name for f in p.iterdir()]) for p in (base, base / "images") if p.is_dir()]
    folders = [p / _of_case(name, listed) for name in names if name for p, listed in there]
    folders += [folder / name for folder in (base, beside) for name in ("images", "data")]
    folders += [beside, base]
    return CocoFiles(file, tuple(dict.fromkeys(f for f in folders if f.is_dir())) or (base,))


def _of_case(name: str, listed: list[str]) -> str:
    """The name as it is listed; with other capitals where that is only once."""
    same = [n for n in listed if n.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else name


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
