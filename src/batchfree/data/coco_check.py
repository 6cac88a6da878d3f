"""A check of COCO annotation files before anything trains on them. Needs `batchfree[detect]`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree.data import masks as mask_tools
from batchfree.data.coco_files import CocoFiles, all_files
from batchfree.data.coco_report import CocoReport, FileReport, Tally
from batchfree.data.detection import Categories
from batchfree.data.image_files import load_image

ImageCheck = Literal["exist", "size", "decode"]

# COCO's own boxes are rounded to hundredths of a pixel; less than that is no mistake.
_TOLERANCE = 0.5
_FARTHEST = 1e9  # neither infinite nor NaN, and exact enough to clip


@dataclass
class Inspection:
    """A checked file and what can be used of it.

    Attributes:
        report: what was found.
        categories: those that can be used.
        images: records that can be used, by id.
        annotations: annotation records that can be used, by image id; those to be cleaned too.
    """

    report: FileReport
    categories: Categories = field(default_factory=lambda: Categories((), ()))
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def check_coco(
    root: str | Path,
    *,
    images: str | Path | None = None,
    image_check: ImageCheck = "exist",
    segmentations: bool = True,
) -> CocoReport:
    """Checks the annotation files of a COCO data set and lists what is wrong in them.

    Args:
        root: the data set's folder, of which every `annotations/instances_*.json` is checked (every
            `annotations/*.json` where there is none of that name); or one annotation file.
        images: the image folder, where it is not the one that goes by the annotation file's name.
        image_check: of image files, `"exist"` whether they are there; `"size"` also whether their
            headers say the size that the annotation file says; `"decode"` also whether they can be
            read to the end, which takes as long as an epoch of loading.
        segmentations: whether every annotation needs one.

    Returns:
        Counts and examples for each file; nothing is changed.

    Raises:
        DataError: there is no such folder or file, or no annotation file in it.

    Example:
        >>> check_coco("/data/coco").clean  # doctest: +SKIP
        True
    """
    check_choice(image_check, get_args(ImageCheck), "image_check")
    files = all_files(root, images)
    return CocoReport(tuple(inspect(f, image_check, segmentations).report for f in files))


def inspect(
    files: CocoFiles, image_check: ImageCheck = "exist", segmentations: bool = True
) -> Inspection:
    """Checks one annotation file and keeps what can be used of it."""
    tally = Tally()
    content = _read(files.annotations, tally)
    if content is None:
        report = FileReport(files.annotations, files.images, 0, 0, 0, 0, 0, tally.findings())
        return Inspection(report)
    categories = _categories(content["categories"], tally)
    images, listed = _images(content["images"], files.images, image_check, tally)
    kept = _annotations(
        content["annotations"], images, listed, set(categories.ids), segmentations, tally
    )
    records = [a for a in content["annotations"] if isinstance(a, dict)]
    annotated = Counter(i for a in records if isinstance(i := a.get("image_id"), int))
    report = FileReport(
        annotation_file=files.annotations,
        image_folder=files.images,
        images=len(content["images"]),
        annotations=len(content["annotations"]),
        categories=len(content["categories"]),
        crowds=sum(a.get("iscrowd") == 1 for a in records),
        empty=sum(id not in annotated for id in listed),
        findings=tally.findings(),
    )
    return Inspection(report, categories, images, kept)


def _read(path: Path, tally: Tally) -> dict[str, list[Any]] | None:
    try:
        content = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"the annotation file {str(path)!r} cannot be read: {e}") from e
    except (ValueError, RecursionError) as e:
        tally.add("bad_json", f"{path.name}: {e}; it may be cut short: download or write it again")
        return None
    if not isinstance(content, dict):
        kind = type(content).__name__
        hint = "; a list is a results file, not one of annotations" if kind == "list" else ""
        tally.add("bad_json", f"{path.name}: holds a {kind}, not an object{hint}")
        return None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            tally.add("bad_json", f"{path.name}: has no list of {name!r}")
            return None
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_id(value) and value > 0


def _categories(records: list[Any], tally: Tally) -> Categories:
    names: dict[int, str] = {}
    for k, record in enumerate(records):
        if (
            not isinstance(record, dict)
            or not _is_id(record.get("id"))
            or not isinstance(record.get("name"), str)
        ):
            tally.add("bad_category", f"category {k} of the list: {_short(record)}")
        elif record["id"] in names:
            tally.add("duplicate_category", f"category {record['id']}: {record['name']!r}")
        else:
            names[record["id"]] = record["name"]
    ids = tuple(sorted(names))
    return Categories(ids, tuple(names[i] for i in ids))


def _images(
    records: list[Any], folder: Path, image_check: ImageCheck, tally: Tally
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The usable records by id, and every id that is listed."""
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    usable: dict[int, dict[str, Any]] = {}
    listed: set[int] = set()
    for k, record in enumerate(records):
        if not isinstance(record, dict) or not _is_id(record.get("id")):
            tally.add("bad_image", f"image {k} of the list: {_short(record)}")
            continue
        id, name = record["id"], record.get("file_name")
        if id in listed:
            tally.add("duplicate_image", f"image {id}: {name!r}")
            continue
        listed.add(id)
        sides = (record.get("height"), record.get("width"))
        if not isinstance(name, str) or not name or not all(map(_is_side, sides)):
            tally.add("bad_image", f"image {id}: {_short(record)}")
        elif Path(name).is_absolute() or ".." in Path(name).parts:
            tally.add("unsafe_path", f"image {id}: {name!r}")
        elif name not in present and not (folder / name).is_file():
            tally.add("missing_image", f"image {id}: {folder / name}")
        elif (fault := _image_fault(folder / name, sides, image_check)) is not None:
            tally.add(fault[0], f"image {id}: {fault[1]}")
        else:
            usable[id] = record
    return usable, listed


def _image_fault(path: Path, sides: Any, image_check: ImageCheck) -> tuple[str, str] | None:
    if image_check == "exist":
        return None
    try:
        width, height = _size(path) if image_check == "size" else load_image(path).size
    except DataError as e:
        return "corrupt_image", str(e)
    if (height, width) != sides:
        return "image_size", (
            f"{path} is {width} x {height} pixels, the annotation file says {sides[1]} x {sides[0]}"
        )
    return None


def _size(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as e:  # as in load_image
        raise DataError(f"the image {str(path)!r} cannot be read ({e})") from e


def _annotations(
    records: list[Any],
    images: dict[int, dict[str, Any]],
    listed: set[int],
    category_ids: set[int],
    segmentations: bool,
    tally: Tally,
) -> dict[int, list[dict[str, Any]]]:
    kept: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    for k, record in enumerate(records):
        if not isinstance(record, dict) or not _is_id(record.get("id")):
            tally.add("bad_annotation", f"annotation {k} of the list: {_short(record)}")
            continue
        id, image_id = record["id"], record.get("image_id")
        where = f"annotation {id} of image {image_id}"
        if id in seen:
            tally.add("duplicate_annotation", where)
            continue
        seen.add(id)
        if not _is_id(image_id) or not _is_id(record.get("category_id")):
            tally.add("bad_annotation", f"annotation {id}: {_short(record)}")
        elif record.get("iscrowd", 0) not in (0, 1):
            tally.add("bad_annotation", f"{where}: iscrowd {record['iscrowd']!r} is not 0 or 1")
        elif image_id not in listed:
            tally.add("unknown_image", where)
        elif record["category_id"] not in category_ids:
            tally.add("unknown_category", f"{where}: category {record['category_id']}")
        elif image_id in images:  # the image's own fault has been counted
            image = images[image_id]
            if _usable(record, where, image["height"], image["width"], segmentations, tally):
                kept.setdefault(image_id, []).append(record)
    return kept


def _usable(
    record: dict[str, Any], where: str, height: int, width: int, segmentations: bool, tally: Tally
) -> bool:
    box = record.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(v) in (int, float) and abs(v) <= _FARTHEST for v in box)
    ):
        tally.add("bad_box", f"{where}: {_short(box)}")
        return False
    if segmentations:
        shape = record.get("segmentation")
        if not shape:
            tally.add("no_segmentation", where)
            return False
        fault = mask_tools.problem(shape, height, width)
        if fault is not None:
            tally.add("bad_segmentation", f"{where}: {fault}")
            return False
    left, top, across, down = box
    area = record.get("area", 1)
    if across <= 0 or down <= 0 or not isinstance(area, (int, float)) or not area > 0:
        tally.add("zero_area", f"{where}: box {box}, area {area}")
    elif (
        min(left, top) < -_TOLERANCE
        or left + across > width + _TOLERANCE
        or top + down > height + _TOLERANCE
    ):
        tally.add("box_outside", f"{where}: box {box} in {width} x {height} pixels")
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
