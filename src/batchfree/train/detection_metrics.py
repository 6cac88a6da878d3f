"""COCO's average precision of boxes and masks, by faster-coco-eval. Needs `batchfree[detect]`."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree._files import write_atomically
from batchfree.data.coco import read_annotations
from batchfree.data.coco_mend import area, is_area
from batchfree.data.detection import Categories, DetectionSet
from batchfree.data.masks import encode
from batchfree.train.detection_comparison import IouType, compare

FIGURES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""COCO's twelve figures in its order: average precision over IoU 0.5 to 0.95, at 0.5, at 0.75, of
small, medium and large objects; average recall with 1, 10 and 100 detections an image, and of
small, medium and large objects."""

PREFIX = {"bbox": "box", "segm": "mask"}
_THRESHOLD = 0.5  # of a mask's probability, as in He et al., "Mask R-CNN", 2017, section 3.1


class _Seen(NamedTuple):
    """What was said of an image: detections, and how many more that were not finite."""

    records: list[dict[str, Any]]
    lost: int


class CocoEvaluator:
    """Collects detections image by image and gives COCO's figures.

    An image counts once, however often and on however many ranks it was seen: what is said of it
    first is kept. An area of the ground truth that is missing or no number above zero is its
    mask's, or its box's where there is no mask.

    Args:
        ground_truth: a detection set, an annotation file, or its content.
        iou_types: `"bbox"`, `"segm"` or both.

    Raises:
        ValueError: an unknown IoU type, or masks to be compared with a ground truth without.
        DataError: an annotation file that cannot be read, ids that are no whole numbers.

    Example:
        >>> from batchfree.data.scenes import DigitScenes
        >>> scenes = DigitScenes("test", images=2)
        >>> evaluator = CocoEvaluator(scenes)
        >>> for _, truth in scenes:
        ...     found = truth | {"scores": torch.ones(len(truth["labels"]))}
        ...     evaluator.update([truth["image_id"]], [found])
        >>> round(evaluator.figures()["mask_AP"], 3)
        100.0
    """

    def __init__(
        self,
        ground_truth: DetectionSet | str | Path | Mapping[str, Any],
        iou_types: Sequence[IouType] = ("bbox", "segm"),
    ) -> None:
        for kind in iou_types:
            check_choice(kind, tuple(PREFIX), "iou_types")
        if isinstance(ground_truth, DetectionSet):
            content: Mapping[str, Any] = ground_truth.ground_truth()
        elif isinstance(ground_truth, (str, Path)):
            content = read_annotations(ground_truth)
        else:
            content = ground_truth
        self.iou_types = tuple(iou_types)
        self._sizes = {r["id"]: (r["height"], r["width"]) for r in content["images"]}
        self._annotations = [
            a if is_area(a.get("area")) else {**a, "area": area(a, *self._sizes[a["image_id"]])}
            for a in content["annotations"]
            if a["image_id"] in self._sizes
        ]
        if "segm" in iou_types and not all(a.get("segmentation") for a in self._annotations):
            raise ValueError(
                "the ground truth has annotations without a segmentation, so masks cannot be "
                'evaluated; use iou_types=("bbox",) or mend the file (batchfree data check)'
            )
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        self.categories = Categories(tuple(sorted(names)), tuple(names[i] for i in sorted(names)))
        if odd := [i for i in (*self._sizes, *names) if not isinstance(i, int)]:
            raise DataError(
                f"ids of images and categories must be whole numbers, got {odd[0]!r}; mend the "
                "file (batchfree data check)"
            )
        self._found: dict[int, _Seen] = {}
        self._evaluated: dict[tuple[str, str], Any] | None = None

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The images seen so far; on every rank after `gather`."""
        return tuple(sorted(self._found))

    def reset(self) -> None:
        """Forgets every detection."""
        self._found, self._evaluated = {}, None

    def update(
        self,
        image_ids: Iterable[int],
        predictions: Iterable[Mapping[str, Tensor]],
        frames: Iterable[tuple[int, int]] | None = None,
    ) -> None:
        """Adds the detections of some images; an image seen before is passed over.

        Detections with a NaN or infinite box or score are left out; `figures` warns of them.

        Args:
            image_ids: of each image.
            predictions: of each, as torchvision's detectors give them: `boxes` (N, 4) left, top,
                right, bottom; `labels` (N,), 1 to K; `scores` (N,); and for `"segm"` `masks`
                (N, 1, H, W) or (N, H, W), probabilities, on any device.
            frames: (height, width) of the image that each prediction's coordinates are of, where
                that is not the size in the annotation file: the network saw a resized image.

        Raises:
            ValueError: an image that is not in the ground truth, a label that is not in it, or
                other numbers of images and predictions.
        """
        ids, found = [int(i) for i in image_ids], list(predictions)
        sizes = [None] * len(ids) if frames is None else list(frames)
        if not len(ids) == len(found) == len(sizes):
            raise ValueError(
                "every image needs one prediction and one frame, got "
                f"{len(ids)} images, {len(found)} predictions, {len(sizes)} frames"
            )
        self._evaluated = None
        for image_id, prediction, frame in zip(ids, found, sizes, strict=True):
            if image_id not in self._sizes:
                raise ValueError(f"image {image_id} is not in the ground truth; nothing to compare")
            if image_id not in self._found:
                self._found[image_id] = self._records(image_id, prediction, frame)

    def gather(self) -> None:
        """Merges the detections of all ranks, where torch.distributed is initialised."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        world: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(world, self._found)
        merged: dict[int, _Seen] = {}
        for part in world:
            merged = part | merged
        self._found = merged
        self._evaluated = None

    def figures(self, images: Literal["all", "seen"] = "all") -> dict[str, float]:
        """COCO's twelve figures for each IoU type, percent, after `gather`; the same on every rank.

        Args:
            images: over `"all"` of the ground truth, so that one that was not seen counts as
                missed; or over those `"seen"`.

        Returns:
            `{"box_AP": ..., "box_AP50": ..., ..., "mask_AP": ..., ...}`; see `FIGURES`. NaN where
            the ground truth holds no such object.
        """
        return {
            f"{PREFIX[kind]}_{name}": _percent(value)
            for kind, run in self._runs(images).items()
            for name, value in zip(FIGURES, run.stats, strict=True)
        }

    def per_category(self, images: Literal["all", "seen"] = "all") -> dict[str, dict[str, float]]:
        """AP of each category for each IoU type, percent: `{"box": {"car": ...}, "mask": ...}`.

        A name that several categories share is followed by the id: `car (id 3)`. NaN where the
        ground truth holds none of the category.
        """
        out = {}
        for kind, run in self._runs(images).items():
            # (IoU thresholds, recalls, categories, areas, detections): all areas, 100 detections
            precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]
            values = [p[p > -1] for p in np.moveaxis(precision, 2, 0)]
            out[PREFIX[kind]] = {
                name: _percent(v.mean() if v.size else -1.0)
                for name, v in zip(self.categories.unique_names, values, strict=True)
            }
        return out

    def results(self, iou_type: IouType) -> list[dict[str, Any]]:
        """The detections in COCO's results format, by image id.

        Boxes and masks are separate lists, as COCO's server takes them: the area of a detection is
        that of its box in the one and of its mask in the other.
        """
        check_choice(iou_type, self.iou_types, "iou_type")
        shape = "bbox" if iou_type == "bbox" else "segmentation"
        return [
            {
                "image_id": image_id,
                "category_id": record["category_id"],
                shape: record[shape],
                "score": record["score"],
            }
            for image_id in sorted(self._found)
            for record in self._found[image_id].records
        ]

    def write(self, folder: str | Path) -> list[Path]:
        """Writes `predictions_bbox.json` and `predictions_segm.json`, each whole or not at all.

        Raises:
            OSError: a file cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for kind in self.iou_types:
            paths.append(folder / f"predictions_{kind}.json")
            write_atomically(paths[-1], json.dumps(self.results(kind)).encode())
        return paths

    def _records(
        self, image_id: int, prediction: Mapping[str, Tensor], frame: tuple[int, int] | None
    ) -> _Seen:
        boxes = prediction["boxes"].detach().double().cpu().reshape(-1, 4)
        scores = prediction["scores"].detach().double().cpu()
        good = boxes.isfinite().all(dim=1) & scores.isfinite()
        labels = prediction["labels"].cpu()[good].tolist()
        size = self._sizes[image_id]
        codes: list[Any] = [None] * len(labels)
        if "segm" in self.iou_types:
            if "masks" not in prediction:
                raise ValueError(
                    f'the prediction of image {image_id} has no masks, which "segm" needs; use '
                    'iou_types=("bbox",) for a detector without'
                )
            masks = prediction["masks"].detach()
            masks = (masks.squeeze(1) if masks.dim() == 4 else masks)[good.to(masks.device)]
            frame = frame or (int(masks.shape[1]), int(masks.shape[2]))
            codes = encode(_solid(masks, size).cpu())
        if frame is not None and tuple(frame) != size:
            scale = torch.tensor([size[1] / frame[1], size[0] / frame[0]], dtype=torch.float64)
            boxes = boxes * scale.repeat(2)
        boxes = boxes[good]
        boxes[:, 2:] -= boxes[:, :2]
        records = [
            {
                "category_id": self.categories.id(label),
                "bbox": box,
                "segmentation": code,
                "score": score,
            }
            for label, box, code, score in zip(
                labels, boxes.tolist(), codes, scores[good].tolist(), strict=True
            )
        ]
        return _Seen(records, int((~good).sum()))

    def _runs(self, images: str) -> dict[str, Any]:
        check_choice(images, ("all", "seen"), "images")
        if self._evaluated is None:
            self.gather()
            self._evaluated = {}
        if lost := sum(seen.lost for seen in self._found.values()):
            warnings.warn(
                f"{lost} detections with a NaN or infinite box or score were left out: the "
                "network has diverged, or its input is not finite",
                stacklevel=3,
            )
        for kind in self.iou_types:
            if (images, kind) not in self._evaluated:
                self._evaluated[images, kind] = compare(
                    kind,
                    self._sizes,
                    self._annotations,
                    self.categories,
                    self.results(kind),
                    self._found if images == "seen" else self._sizes,
                )
        return {kind: self._evaluated[images, kind] for kind in self.iou_types}


def _solid(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, h, w) as masks of the image's size, bool."""
    if len(masks) and tuple(masks.shape[1:]) != size:
        masks = F.interpolate(masks[:, None].float(), size, mode="bilinear")[:, 0]
    return masks > _THRESHOLD


def _percent(value: float) -> float:
    """A figure times 100; the library's -1 is "none to find"."""
    return float(value) * 100 if value > -1 else math.nan
