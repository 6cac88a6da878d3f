"""The checks of the annotations of an annotation file. Needs `batchfree[detect]`."""

from __future__ import annotations

from typing import Any

from batchfree.data import masks as mask_tools
from batchfree.data.coco_mend import is_area, mended_shape, problem, whole
from batchfree.data.coco_records import short, with_values
from batchfree.data.coco_report import Tally

Corners = tuple[float, float, float, float]  # left, top, right, bottom

# COCO's own boxes are rounded to hundredths of a pixel; less than that is no mistake.
_TOLERANCE = 0.5
_FARTHEST = 1e9  # neither infinite nor NaN, and exact enough to clip


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
                f"annotation {k} of the list has no whole number as id: {short(record)}",
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
            said = ", ".join(f"{key} {short(record.get(key))}" for key in wrong)
            tally.add("bad_annotation", f"annotation {id}: {said} is no whole number")
        elif record.get("iscrowd", 0) not in (0, 1):
            tally.add("bad_annotation", f"{where}: iscrowd {record['iscrowd']!r} is not 0 or 1")
        elif image_id not in listed:
            tally.add("unknown_image", where)
        elif ids["category_id"] not in category_ids:
            tally.add("unknown_category", f"{where}: category {ids['category_id']}")
        elif image_id in images:  # the image's own fault has been counted
            image = images[image_id]
            size = image["height"], image["width"]
            values = ids | {"id": id}
            shape, dropped = mended_shape(record.get("segmentation"))
            if "segmentation" in record:
                values["segmentation"] = shape
            mended = with_values(record, values)
            if not _usable(mended, where, *size, segmentations, tally):
                continue
            kept.setdefault(image_id, []).append(mended)
            if segmentations and dropped:
                tally.add("short_polygon", f"{where}: {dropped} of {dropped + len(shape)}")
            if _is_empty(_clipped(mended["bbox"], *size)):
                unseen.add(id)
            if segmentations and not mask_tools.has_pixel(shape, *size):
                unseen.add(id)
                tally.add("empty_mask", where)
    if not segmentations:
        _check_corners(kept, images, tally)
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
        tally.add("bad_box", f"{where}: {short(box)}")
        return False
    shape = record.get("segmentation")
    if segmentations:
        if not shape:
            tally.add("no_segmentation", where)
            return False
        fault = problem(shape, height, width)
        if fault is not None:
            tally.add("bad_segmentation", f"{where}: {fault}")
            return False
    if box[2] <= 0 or box[3] <= 0:
        tally.add("zero_area", f"{where}: box {box}")
    elif _outside(box, height, width):
        tally.add("box_outside", f"{where}: box {box} in {width} x {height} pixels")
    if "area" in record and not is_area(record["area"]):
        tally.add("bad_area", f"{where}: area {short(record['area'])}")
    clipped = _clipped(box, height, width)
    if segmentations and not _is_empty(clipped):
        around = mask_tools.extent(shape, height, width)
        apart = _apart(clipped, around)
        # Clipping hides how far off a box of two corners is.
        misread = (apart or _outside(box, height, width)) and _fits_as_corners(box, clipped, around)
        if apart or misread:
            left, top, right, bottom = around
            mask = [round(v, 1) for v in (left, top, right - left, bottom - top)]
            hint = "; it fits as x1, y1, x2, y2, and COCO's are x, y, width, height" * misread
            tally.add("box_off_mask", f"{where}: box {box}, but its mask is in {mask}{hint}")
    return True


def _check_corners(
    kept: dict[int, list[dict[str, Any]]], images: dict[int, dict[str, Any]], tally: Tally
) -> None:
    """Finds boxes of x1, y1, x2, y2 where no mask tells.

    All boxes of the file can be read as corners in their image, and a tenth or more of them reach
    out of it if they are read as x, y, width, height.
    """
    outside = []
    count = 0
    for image_id, records in kept.items():
        height, width = images[image_id]["height"], images[image_id]["width"]
        for record in records:
            box = record["bbox"]
            corners = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            if not _ordered(box) or _outside(corners, height, width):
                return
            count += 1
            if _outside(box, height, width):
                outside.append(f"annotation {record['id']} of image {image_id}: box {box}")
    if outside and 10 * len(outside) >= count:
        for example in outside:
            tally.add("box_corners", f"{example}; every box of the file can be read so")


def _fits_as_corners(box: list[float], clipped: Corners, around: Corners) -> bool:
    """Whether a box fits its mask as left, top, right, bottom, and better than as it is."""
    corners = box[0], box[1], box[2], box[3]
    return (
        _ordered(box)
        and not _is_empty(around)
        and not _apart(corners, around)
        and _shared(corners, around) > _shared(clipped, around)
    )


def _ordered(box: list[float]) -> bool:
    """Whether a box can be read as left, top, right, bottom."""
    return box[0] < box[2] and box[1] < box[3]


def _outside(box: list[float], height: int, width: int) -> bool:
    """Whether a box reaches out of its image by more than is rounded."""
    left, top, across, down = box
    return (
        min(left, top) < -_TOLERANCE
        or left + across > width + _TOLERANCE
        or top + down > height + _TOLERANCE
    )


def _clipped(box: list[float], height: int, width: int) -> Corners:
    """The corners of a box, those outside its image moved to the edge."""
    left, top, across, down = box
    return max(left, 0), max(top, 0), min(left + across, width), min(top + down, height)


def _is_empty(corners: Corners) -> bool:
    return corners[2] <= corners[0] or corners[3] <= corners[1]


def _apart(box: Corners, around: Corners) -> bool:
    """Whether a box and the one around its mask do not fit.

    They share less than half of what they cover, and not for a pixel or two of rounding.
    """
    if _is_empty(around):
        return False  # a mask without a pixel is another finding
    farthest = max(abs(a - b) for a, b in zip(box, around, strict=True))
    return farthest > 2 and _shared(box, around) < 0.5


def _shared(box: Corners, other: Corners) -> float:
    """Intersection over union of two boxes that are not empty."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    both = max(0.0, across) * max(0.0, down)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - both)
