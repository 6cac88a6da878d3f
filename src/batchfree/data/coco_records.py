"""The checks of the categories and images of an annotation file. Needs `batchfree[detect]`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from batchfree._errors import DataError
from batchfree.data.coco_files import slashed
from batchfree.data.coco_mend import whole
from batchfree.data.coco_report import Tally
from batchfree.data.detection import Categories
from batchfree.data.image_files import examine, no_word_of_size

ImageCheck = Literal["exist", "size", "decode"]
Progress = Callable[[int, int], None]

_CHUNK = 256  # images between two reports of progress


def with_values(record: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The record with these values; itself where it holds them."""
    return record if all(record.get(k) is v for k, v in values.items()) else record | values


def check_categories(records: list[Any], tally: Tally) -> Categories:
    """The usable categories."""
    names: dict[int, str] = {}
    for k, record in enumerate(records):
        id = whole(record.get("id")) if isinstance(record, dict) else None
        if id is None or not isinstance(record.get("name"), str):
            tally.add("bad_category", f"category {k} of the list: {short(record)}")
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
                "bad_image", f"image {k} of the list has no whole number as id: {short(record)}"
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
            tally.add("bad_image", f"image {id}: file_name {short(name)} names no file")
        elif wrong:
            said = ", ".join(f"{side} {short(record.get(side))}" for side in wrong)
            tally.add("bad_image", f"image {id}: {said} is no positive whole number of pixels")
        elif Path(name := slashed(folder, name)).is_absolute() or ".." in Path(name).parts:
            tally.add("unsafe_path", f"image {id}: {name!r}")
        elif name not in present and not (folder / name).is_file():
            tally.add("missing_image", f"image {id}: {folder / name}")
        else:
            usable[id] = with_values(record, {"id": id, "file_name": name, **sides})
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
    workers = min(32, os.cpu_count() or 1)  # decoders leave the GIL
    with no_word_of_size(), ThreadPoolExecutor(workers) as pool:
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


def short(value: Any) -> str:
    """A value as it is shown in an example."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
