"""A check of COCO annotation files before anything trains on them. Needs `batchfree[detect]`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree.data.coco_annotations import check_annotations
from batchfree.data.coco_files import CocoFiles, all_files
from batchfree.data.coco_mend import whole
from batchfree.data.coco_records import (
    ImageCheck,
    Progress,
    check_categories,
    check_images,
)
from batchfree.data.coco_report import CocoReport, FileReport, Tally
from batchfree.data.detection import Categories


@dataclass
class Inspection:
    """A checked file and what can be used of it.

    Attributes:
        report: what was found.
        categories: those that can be used.
        images: records that can be used, by id.
        annotations: annotation records that can be used, by image id; those to be cleaned too.
        unseen: ids of those of which nothing can be seen: of their box or of their mask no part is
            in the image.
    """

    report: FileReport
    categories: Categories = field(default_factory=lambda: Categories((), ()))
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Where the images are."""
        return self.report.image_folder


def check_coco(
    root: str | Path,
    *,
    images: str | Path | None = None,
    image_check: ImageCheck = "exist",
    segmentations: bool = True,
    progress: Progress | None = None,
) -> CocoReport:
    """Checks the annotation files of a COCO data set and lists what is wrong in them.

    Args:
        root: the data set's folder, of which every annotation file is checked that training could
            take (`coco_files.all_files`); or one annotation file.
        images: the image folder, where it is not the one that goes by the annotation file's name.
        image_check: of image files, `"exist"` whether they are there; `"size"` also whether their
            headers say the size that the annotation file says; `"decode"` also whether they can be
            read to the end: 1 to 2 ms of a core for an image of COCO's, on all cores.
        segmentations: whether every annotation needs one.
        progress: called with the images looked into so far and in all, of each file in turn.

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
    return CocoReport(tuple(inspect(f, image_check, segmentations, progress).report for f in files))


def inspect(
    files: CocoFiles,
    image_check: ImageCheck = "exist",
    segmentations: bool = True,
    progress: Progress | None = None,
) -> Inspection:
    """Checks one annotation file and keeps what can be used of it."""
    tally = Tally()
    content = _read(files.annotations, tally)
    if content is None:
        findings = tally.findings()
        report = FileReport(files.annotations, files.folders[0], 0, 0, 0, 0, 0, findings)
        return Inspection(report)
    categories = check_categories(content["categories"], tally)
    records = [r for r in content["images"] if isinstance(r, dict)]
    folder = files.images(n for r in records if isinstance(n := r.get("file_name"), str))
    images, listed = check_images(content["images"], folder, image_check, tally, progress)
    kept, unseen = check_annotations(
        content["annotations"], images, listed, set(categories.ids), segmentations, tally
    )
    records = [a for a in content["annotations"] if isinstance(a, dict)]
    annotated = {whole(a.get("image_id")) for a in records}
    report = FileReport(
        annotation_file=files.annotations,
        image_folder=folder,
        images=len(content["images"]),
        annotations=len(content["annotations"]),
        categories=len(content["categories"]),
        crowds=sum(a.get("iscrowd") == 1 for a in records),
        empty=sum(id not in annotated for id in listed),
        findings=tally.findings(),
    )
    return Inspection(report, categories, images, kept, unseen)


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
