"""Detection sets in COCO's format, of any categories. Needs `batchfree[detect]`.

The annotation file is checked, then read, here: torchvision's `CocoDetection` and its wrapper for
transforms v2 fail in the middle of an epoch at the first annotation without a segmentation, and
need pycocotools besides faster-coco-eval. On clean files both give the same boxes, labels and
masks (tests/data/test_coco.py); the transforms are torchvision's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torchvision.transforms import v2

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree.data import masks as mask_tools
from batchfree.data.coco_check import inspect
from batchfree.data.coco_files import split_files
from batchfree.data.coco_mend import area
from batchfree.data.coco_records import ImageCheck, Progress
from batchfree.data.coco_report import in_line
from batchfree.data.detection import Categories, DetectionSet, Scene
from batchfree.data.image_files import load_fitting

OnBad = Literal["stop", "skip"]


class CocoDataset(DetectionSet):
    """Images with boxes, labels and masks from a COCO annotation file.

    The file is checked first, as by `batchfree data check`. What it finds either stops the
    construction or is left out; what is only doubtful is taken as it stands with a warning; boxes
    are clipped to their image and empty ones left out in any case. Labels are 1 to K in the order
    of the category ids, which may be any whole numbers. An image is turned by its EXIF orientation
    where that gives it the size in the file, and taken as stored otherwise.

    Args:
        root: the data set's folder; it may be None where `annotations` is given.
        split: `"train"` or `"val"`: the files `annotations/instances_{split}2017.json` and
            `{split}2017/`, or what goes by the split's name (`coco_files.split_files`).
        annotations: the annotation file, where it has another name: a path, from here or in `root`.
        images: the image folder, likewise.
        transforms: of an item, such as `detection_transform(...)`; by default the image is scaled
            to [0, 1] and nothing else.
        masks: whether items have masks, so that annotations need a segmentation.
        keep_crowd: whether items hold annotations of crowds; by default not when the split is
            `"train"`. `ground_truth` always does: the metric ignores what falls on a crowd.
        keep_empty: whether images without an annotation stay; by default not when the split is
            `"train"`, as in Detectron.
        on_bad: `"stop"` raises an error at the first opportunity: on construction for the
            annotation file, on reading for an image that cannot be decoded. `"skip"` leaves out
            what is wrong with one warning; an image that cannot be decoded is replaced by the next.
        image_check: how far images are checked on construction; see `check_coco`.
        categories: the categories expected, those of the training split.
        progress: called with the images checked so far and in all.

    Attributes:
        report: what the check found.
        left_out: images of the file that are not in the set.

    Raises:
        DataError: a file or folder that is missing, an annotation file that is none, findings
            where `on_bad` is `"stop"`, other categories than expected, no image left.

    Example:
        >>> CocoDataset("/data/coco", "val")[0]  # doctest: +SKIP
        (tensor of shape (3, 426, 640), {'boxes': ..., 'labels': ..., 'masks': ..., ...})
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        transforms: Callable[..., Any] | None = None,
        masks: bool = True,
        keep_crowd: bool | None = None,
        keep_empty: bool | None = None,
        on_bad: OnBad = "stop",
        image_check: ImageCheck = "exist",
        categories: Categories | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_choice(on_bad, get_args(OnBad), "on_bad")
        check_choice(image_check, get_args(ImageCheck), "image_check")
        files = split_files(root, split, annotations, images)
        found = inspect(files, image_check, masks, progress)
        self.report = found.report
        self.on_bad, self.masks, self.transforms = on_bad, masks, transforms
        self._settle()
        self.categories = found.categories
        if categories is not None and categories != found.categories:
            raise DataError(
                f"{files.annotations} has other categories than expected: "
                f"{_difference(categories, found.categories)}; training and validation need the "
                "same ids and names"
            )
        self._labels = {id: k for k, id in enumerate(self.categories.ids, start=1)}
        self._folder, self._file = found.folder, files.annotations
        self._annotations, self._unseen = found.annotations, found.unseen
        self._keep_crowd = split != "train" if keep_crowd is None else keep_crowd
        keep_empty = split != "train" if keep_empty is None else keep_empty
        self._records = [
            found.images[id]
            for id in sorted(found.images)
            if keep_empty or any(map(self._holds, found.annotations.get(id, ())))
        ]
        self.left_out = self.report.images - len(self._records)
        if not self._records:
            raise DataError(
                f"{files.annotations} leaves no image to use, of {self.report.images}; "
                f"{self.report.summary() or 'none has an annotation'}"
            )
        self.image_ids = [r["id"] for r in self._records]
        self.sizes = [(r["height"], r["width"]) for r in self._records]
        self._unreadable: set[int] = set()

    def scene(self, index: int) -> Scene:
        """The image at an index and its instances; another's where it is skipped as unreadable."""
        for step in range(len(self)):
            at = (index + step) % len(self)
            if at in self._unreadable:
                continue
            try:
                return self._read(at)
            except DataError as e:
                if self.on_bad == "stop":
                    raise
                self._unreadable.add(at)
                warnings.warn(f"{e}; the next image takes its place", stacklevel=2)
        raise DataError(f"none of the {len(self)} images in {str(self._folder)!r} can be read")

    def ground_truth(self) -> dict[str, Any]:
        """The set in COCO's format, crowds included, annotation ids from 1 on.

        Boxes to be clipped and instances to be left out of items are in it as the file says, so
        that figures are those of COCO's own evaluation; except where `on_bad` is `"skip"`: then
        boxes and masks of which no part is in the image, which no detection could match, are left
        out of it as well. An area that is missing or no number above zero is the mask's, or the
        box's where there is no mask: pycocotools fails at one that is missing or no number, takes
        0 for small, and ignores an object whose area is negative or infinite.
        """
        annotations: list[dict[str, Any]] = []
        for record in self._records:
            height, width = record["height"], record["width"]
            for annotation in self._annotations.get(record["id"], ()):
                if self.on_bad == "skip" and annotation["id"] in self._unseen:
                    continue
                entry = {"iscrowd": 0} | annotation | {"id": len(annotations) + 1}
                annotations.append(entry | {"area": area(entry, height, width)})
        categories = [
            {"id": id, "name": name}
            for id, name in zip(self.categories.ids, self.categories.names, strict=True)
        ]
        return {"images": self._records, "annotations": annotations, "categories": categories}

    def _holds(self, annotation: dict[str, Any]) -> bool:
        """Whether items hold an annotation."""
        seen = annotation["id"] not in self._unseen
        return seen and (self._keep_crowd or not annotation.get("iscrowd", 0))

    def _read(self, index: int) -> Scene:
        record = self._records[index]
        height, width = record["height"], record["width"]
        path = self._folder / record["file_name"]
        picture = load_fitting(path, height, width)
        if picture.size != (width, height):
            raise DataError(
                f"the image {str(path)!r} is {picture.width} x {picture.height} pixels, but "
                f"{self._file.name} says {width} x {height}: its boxes and masks do not fit"
            )
        held = [a for a in self._annotations.get(record["id"], ()) if self._holds(a)]
        boxes = torch.tensor([a["bbox"] for a in held], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if self.masks:
            masks = mask_tools.decode([a["segmentation"] for a in held], height, width)
        return Scene(
            image=v2.functional.pil_to_tensor(picture),
            boxes=boxes.float(),
            labels=torch.tensor([self._labels[a["category_id"]] for a in held], dtype=torch.int64),
            masks=masks,
            iscrowd=torch.tensor([a.get("iscrowd", 0) for a in held], dtype=torch.int64),
            image_id=record["id"],
        )

    def _settle(self) -> None:
        """Raises or warns by what the check found."""
        errors, file = self.report.errors, self.report.annotation_file
        if any(f.effect == "file" for f in errors):
            raise DataError(
                f"the annotation file {str(file)!r} cannot be used: {errors[0].examples[0]}"
            )
        if self.report.doubts:
            warnings.warn(
                f"taken as it stands of {str(file)!r}: {in_line(self.report.doubts)}; `batchfree "
                "data check` lists more",
                stacklevel=3,
            )
        if not errors:
            return
        if self.on_bad == "stop":
            raise DataError(
                f"{str(file)!r} has {self.report.summary()}; `batchfree data check` lists more; "
                'mend the file, or leave these out with on_bad="skip"'
            )
        warnings.warn(f"left out of {str(file)!r}: {self.report.summary()}", stacklevel=3)


def read_annotations(path: str | Path) -> dict[str, Any]:
    """A whole annotation file, unchecked.

    Raises:
        DataError: it cannot be read or is no annotation file.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as e:
        raise DataError(f"the annotation file {str(path)!r} cannot be read: {e}") from e
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(n), list) for n in lists):
        raise DataError(f"{str(path)!r} is no annotation file: it has no lists {', '.join(lists)}")
    return content


def _difference(expected: Categories, found: Categories) -> str:
    missing = [n for n in expected.names if n not in found.names]
    extra = [n for n in found.names if n not in expected.names]
    parts = [f"lacks {missing[:3]}"] * bool(missing) + [f"has {extra[:3]} besides"] * bool(extra)
    return " and ".join(parts) or f"ids {list(found.ids[:5])} for {list(expected.ids[:5])}"
