"""Test scenes with what is there and what each detector finds, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from batchfree._errors import ResultsError
from batchfree.data.masks import decode, problem
from batchfree.data.scenes import DIGITS, DigitScenes, annotation_records
from batchfree.experiments.detection import scene_digest
from batchfree.experiments.detection_results import Detection, DetectionResults, DetectionRow
from batchfree.report import detection_series as series

_SIDE = 256  # pixels of a drawn scene, about
# Tableau's ten colours, the bright ones, one for each digit.
_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf")


@dataclass(frozen=True)
class Picture:
    """A drawn scene: its `source`, a data URI, and the same in words."""

    source: str
    words: str


@dataclass(frozen=True)
class PictureGrid:
    """Scenes by detectors.

    Attributes:
        head: what is there, then the arms' labels.
        rows: of each scene its name and its pictures, as `head` has them.
        seed: the seed of the drawn runs, where it is the same for all; else None.
        left_out: scenes that are no longer what the detectors saw.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    seed: int | None
    left_out: int


def picture_grid(results: DetectionResults) -> PictureGrid | None:
    """The pictured scenes under every arm's first seed; None without rows or scenes.

    Raises:
        ResultsError: a detection that does not fit its scene.
    """
    runs = [series.rows_of(results, arm)[0] for arm in series.arms(results)]
    if not runs or not results.scenes:
        return None
    found, left_out = [], 0
    for pictured in results.scenes:
        scene = DigitScenes("test", pictured.image_id, pictured.size, 0).scene(
            pictured.image_id - 1
        )
        if scene_digest(scene.image) != pictured.sha256:
            left_out += 1
            continue
        truth = [
            Detection(r["image_id"], r["category_id"], 1.0, tuple(r["bbox"]), r["segmentation"])
            for r in annotation_records(scene, first_id=1)
        ]
        pictures = [_picture(scene.image, truth, truth=True)]
        pictures += [_run_picture(scene.image, row, pictured.image_id) for row in runs]
        found.append((f"Scene {pictured.image_id}", tuple(pictures)))
    seeds = {row.seed for row in runs}
    return PictureGrid(
        head=("What is there", *(series.label(results, row.arm) for row in runs)),
        rows=tuple(found),
        seed=seeds.pop() if len(seeds) == 1 else None,
        left_out=left_out,
    )


def _run_picture(image: Tensor, row: DetectionRow, image_id: int) -> Picture:
    detections = [item for item in row.detections if item.image_id == image_id]
    height, width = image.shape[1:]
    for item in detections:
        wrong = problem(item.segmentation, height, width)
        if item.category_id not in DIGITS.ids:
            wrong = f"category {item.category_id}, which the scenes do not have"
        if wrong:
            raise ResultsError(
                f"{row.name}: a detection in scene {image_id} with {wrong}; the row is damaged: "
                "delete it under rows/ and run the same command again"
            )
    return _picture(image, detections, row.failure)


def _picture(
    image: Tensor,
    detections: Sequence[Detection],
    failure: str | None = None,
    *,
    truth: bool = False,
) -> Picture:
    scale = max(1, round(_SIDE / image.shape[-1]))
    height, width = image.shape[1:]
    drawn = _larger(image, scale)
    digits = [DIGITS.name(DIGITS.label(item.category_id)) for item in detections]
    if detections:
        masks = _larger(decode([item.segmentation for item in detections], height, width), scale)
        corners = [
            (left, top, left + across, top + down)
            for left, top, across, down in (item.bbox for item in detections)
        ]
        colours = [_COLOURS[DIGITS.label(item.category_id) - 1] for item in detections]
        drawn = draw_segmentation_masks(drawn, masks.bool(), alpha=0.45, colors=colours)
        boxes = scale * torch.tensor(corners, dtype=torch.float32)
        drawn = draw_bounding_boxes(
            drawn,
            boxes,
            digits,
            colours,
            width=2,
            font=_FONT,
            font_size=22,
            label_colors="white",
            label_background_colors=[_darker(colour) for colour in colours],
            fill_labels=True,
        )
    told = [
        digit if truth else f"{digit} ({item.score:.2f})"
        for digit, item in zip(digits, detections, strict=True)
    ]
    words = failure or ", ".join(told) or "nothing found"
    return Picture(_data_uri(drawn), words)


def _larger(images: Tensor, scale: int) -> Tensor:
    """(N, H, W) uint8, every pixel `scale` times as wide and high."""
    return F.interpolate(images[None], scale_factor=scale, mode="nearest")[0]


def _darker(colour: str) -> str:
    """The colour as a ground for white letters."""
    return "#" + "".join(f"{int(colour[k : k + 2], 16) * 6 // 10:02x}" for k in (1, 3, 5))


def _data_uri(picture: Tensor) -> str:
    file = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.quantize(128).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
