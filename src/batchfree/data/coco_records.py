"""The checks of single records of an annotation file. Needs `batchfree[detect]`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from batchfree._errors import DataError
from batchfree.data import masks as mask_tools
from batchfree.data.coco_report import Tally
from batchfree.data.detection import Categories
from batchfree.data.image_files import examine

ImageCheck = Literal["exist", "size", "decode"]
Progress = Callable[[int, int], None]

# COCO's own boxes are rounded to hundredths of a pixel; less than that is no mistake.
_TOLERANCE = 0.5
_FARTHEST = 1e9  # neither infinite nor NaN, and exact enough to clip
_CHUNK = 256  # images between two reports of progress


def whole(value: Any) -> int | None:
    """A whole number, also one that a program wrote as 7.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with(record: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
    """The record with whole numbers for those written otherwise; itself where none is."""
    return record if all(type(record[k]) is int for k in numbers) else record | numbers


def check_categories(records: list[Any], tally: Tally) -> Categories:
    """The usable categories."""
    names: dict[int, str] = {}
    for k, record in enumerate(records):
        id = whole(record.get("id")) if isinstance(record, dict) else None
        if id is None or not isinstance(record.get("name"), str):
            tally.add("bad_category", f"category {k} of the list: {_short(record)}")
        elif id in names:
            tally.add("duplicate_category", f"category {id}: {record['name']!r}")
        else:
            names[id] = record["name"]
    ids = tuple(sorted(names))
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = ", ".join(str(i) for i in ids if names[i] == name)
            tally.add("duplicate_name", f"categories {same}: {name!r}")
    return Categories(ids, tuple(names[i] for i in ids))


def check_images(
    records: list[Any],
    folder: Path,
    image_check: ImageCheck,
    tally: Tally,
    progress: Progress | None = None,
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The usable image records by id, and every id that is listed."""
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    usable: dict[int, dict[str, Any]] = {}
    listed: set[int] = set()
    for k, record in enumerate(records):
        id = whole(record.get("id")) if isinstance(record, dict) else None
        if id is None:
            tally.add(
                "bad_image", f"image {k} of the list has no whole number as id: {_short(record)}"
            )
            continue
        name = record.get("file_name")
        if id in listed:
            tally.add("duplicate_image", f"image {id}: {name!r}")
            continue
        listed.add(id)
        sides = {side: whole(record.get(side)) for side in ("height", "width")}
        wrong = [side for side, pixels in sides.items() if pixels is None or pixels < 1]
        if not isinstance(name, str) or not name:
            tally.add("bad_image", f"image {id}: file_name {_short(name)} names no file")
        elif wrong:
            said = ", ".join(f"{side} {_short(record.get(side))}" for side in wrong)
            tally.add("bad_image", f"image {id}: {said} is no positive whole number of pixels")
        elif Path(name).is_absolute() or ".." in Path(name).parts:
            tally.add("unsafe_path", f"image {id}: {name!r}")
        elif name not in present and not (folder / name).is_file():
            tally.add("missing_image", f"image {id}: {folder / name}")
        else:
            usable[id] = _with(record, {"id": id, **sides})
    if image_check != "exist":
        _look_into(usable, folder, image_check == "decode", tally, progress)
    return usable, listed


def _look_into(
    usable: dict[int, dict[str, Any]],
    folder: Path,
    decode: bool,
    tally: Tally,
    progress: Progress | None,
) -> None:
    """Takes out the images whose files are damaged or of another size."""

    def fault(record: dict[str, Any]) -> tuple[str, str] | None:
        path, height, width = folder / record["file_name"], record["height"], record["width"]
        try:
            fit, (across, down) = examine(path, height, width, decode)
        except DataError as e:
            return "corrupt_image", str(e)
        if fit == "neither":
            return "image_size", (
                f"{path} is {across} x {down} pixels, the annotation file says {width} x {height}"
            )
        if fit == "either":
            return "orientation", (
                f"{path} is to be turned by its EXIF orientation, and {width} x {height} pixels "
                "either way; it is taken as stored: remove the tag, or turn the pixels by it"
            )
        return None

    records = list(usable.values())
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # decoders leave the GIL
        for start in range(0, len(records), _CHUNK):
            part = records[start : start + _CHUNK]
            for record, found in zip(part, pool.map(fault, part), strict=True):
                if found is None:
                    continue
                tally.add(found[0], f"image {record['id']}: {found[1]}")
                if found[0] != "orientation":
                    del usable[record["id"]]
            if progress is not None:
                progress(start + len(part), len(records))


def check_annotations(
    records: list[Any],
    images: dict[int, dict[str, Any]],
    listed: set[int],
    category_ids: set[int],
    segmentations: bool,
    tally: Tally,
) -> tuple[dict[int, list[dict[str, Any]]], set[int]]:
    """The usable annotations by image id, and the ids of those of which nothing can be seen."""
    kept: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    unseen: set[int] = set()
    for k, record in enumerate(records):
        id = whole(record.get("id")) if isinstance(record, dict) else None
        if id is None:
            tally.add(
                "bad_annotation",
                f"annotation {k} of the list has no whole number as id: {_short(record)}",
            )
            continue
        ids = {key: whole(record.get(key)) for key in ("image_id", "category_id")}
        image_id = ids["image_id"]
        where = f"annotation {id} of image {image_id}"
        if id in seen:
            tally.add("duplicate_annotation", where)
            continue
        seen.add(id)
        wrong = [key for key, value in ids.items() if value is None]
        if wrong or image_id is None:
            said = ", ".join(f"{key} {_short(record.get(key))}" for key in wrong)
            tally.add("bad_annotation", f"annotation {id}: {said} is no whole number")
        elif record.get("iscrowd", 0) not in (0, 1):
            tally.add("bad_annotation", f"{where}: iscrowd {record['iscrowd']!r} is not 0 or 1")
        elif image_id not in listed:
            tally.add("unknown_image", where)
        elif ids["category_id"] not in category_ids:
            tally.add("unknown_category", f"{where}: category {ids['category_id']}")
        elif image_id in images:  # the image's own fault has been counted
            image = images[image_id]
            if _usable(record, where, image["height"], image["width"], segmentations, tally):
                if _box_is_empty(record["bbox"], image["height"], image["width"]):
                    unseen.add(id)
                kept.setdefault(image_id, []).append(_with(record, {"id": id, **ids}))
                if segmentations and not mask_tools.has_pixel(
                    record["segmentation"], image["height"], image["width"]
                ):
                    unseen.add(id)
                    tally.add("empty_mask", where)
    return kept, unseen


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
    shape = record.get("segmentation")
    if segmentations:
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
    elif segmentations:
        around = mask_tools.extent(shape, height, width)
        if _apart((left, top, left + across, top + down), around):
            other = [round(around[0], 1), round(around[1], 1)]
            other += [round(around[2] - around[0], 1), round(around[3] - around[1], 1)]
            tally.add("box_off_mask", f"{where}: box {box}, but its mask is in {other}")
    return True


def _box_is_empty(box: list[float], height: int, width: int) -> bool:
    """Whether nothing is left of a box that is clipped to its image."""
    left, top, across, down = box
    return min(left + across, width) <= max(left, 0) or min(top + down, height) <= max(top, 0)


def _apart(box: tuple[float, ...], around: tuple[float, ...]) -> bool:
    """Whether a box and the one around its mask, both left, top, right, bottom, do not fit.

    They share less than half of what they cover, and not for a pixel or two of rounding.
    """
    if around[2] <= around[0] or around[3] <= around[1]:
        return False  # a mask without a pixel is another finding
    across = min(box[2], around[2]) - max(box[0], around[0])
    down = min(box[3], around[3]) - max(box[1], around[1])
    both = max(0.0, across) * max(0.0, down)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, around))
    farthest = max(abs(a - b) for a, b in zip(box, around, strict=True))
    return farthest > 2 and both < 0.5 * (areas - both)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
