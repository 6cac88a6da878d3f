"""The results file of the detection experiments; `docs/results-schema.md` describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchfree._errors import ResultsError
from batchfree.experiments._fields import (
    Check,
    Checked,
    bad_field,
    by,
    choice,
    integer,
    json_object,
    loss,
    number,
    optional,
    sequence,
    text,
    time,
)
from batchfree.experiments.results import Measured, Row
from batchfree.experiments.store import Stored

SCHEMA = "batchfree.detection/1"
ROW_SCHEMA = "batchfree.detection-row/1"
SCRATCH, FINE_TUNED = "scratch", "fine-tuned"
HEADLINE_FIGURES = (
    *("box_AP", "box_AP50", "box_AP75"),
    *("mask_AP", "mask_AP50", "mask_AP75"),
)


def _measures(value: Any, name: str) -> dict[str, float | None]:
    """A dict of text to a number, or to None where it was not finite or there was none."""
    if not isinstance(value, Mapping):
        raise bad_field(name, "an object", value)
    check = optional(loss)
    return {str(key): check(item, f"{name}.{key}") for key, item in value.items()}


def _tables(value: Any, name: str) -> dict[str, dict[str, float | None]]:
    if not isinstance(value, Mapping):
        raise bad_field(name, "an object", value)
    return {str(key): _measures(item, f"{name}.{key}") for key, item in value.items()}


def _box(value: Any, name: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise bad_field(name, "left, top, width and height", value)
    least = (-1e6, -1e6, 0, 0)
    checked = zip(least, value, strict=True)
    return tuple(number(low, 1e6)(side, f"{name}[{k}]") for k, (low, side) in enumerate(checked))


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise bad_field(name, "a list of text", value)
    return tuple(text(item, f"{name}[{k}]") for k, item in enumerate(value))


_run_lengths: Check = json_object(counts=text)


@dataclass(frozen=True)
class DetectionPoint(Checked):
    """An evaluation during training.

    Attributes:
        step: SGD steps done.
        losses: the means of each loss, and of their sum `train_loss`, since the evaluation before.
        box_AP, mask_AP: COCO's average precision, percent; None where it was not finite.
    """

    step: int = field(metadata=by(integer(0)))
    losses: dict[str, float | None] = field(metadata=by(_measures))
    box_AP: float | None = field(metadata=by(optional(loss)))
    mask_AP: float | None = field(metadata=by(optional(loss)))


@dataclass(frozen=True)
class Detection(Checked):
    """One object that a detector found in one of the pictured scenes.

    Attributes:
        image_id: the scene.
        category_id: as in the scenes' annotations.
        score: from 0 to 1.
        bbox: left, top, width and height, pixels.
        segmentation: the mask as a run-length encoding of COCO, `size` and `counts`.
    """

    image_id: int = field(metadata=by(integer(0)))
    category_id: int = field(metadata=by(integer(0)))
    score: float = field(metadata=by(number(0, 1)))
    bbox: tuple[float, ...] = field(metadata=by(_box))
    segmentation: dict[str, Any] = field(metadata=by(_run_lengths))


@dataclass(frozen=True)
class PicturedScene(Checked):
    """A test scene whose detections are kept.

    Attributes:
        image_id: its id among the test scenes.
        size: its side, pixels.
        sha256: of its pixels, uint8 (3, size, size): what was detected in is what is drawn.
    """

    image_id: int = field(metadata=by(integer(1)))
    size: int = field(metadata=by(integer(1)))
    sha256: str = field(metadata=by(text))


@dataclass(frozen=True)
class Arm:
    """What is compared: the norms of a detector, how it starts, and its batch.

    Attributes:
        norm: of the backbone.
        head_norm: of FPN, box head and mask head.
        start: `"scratch"` or `"fine-tuned"`, from a classifier.
        batch_size: images in a step, over which BatchNorm takes its statistics in the backbone.

    Example:
        >>> Arm("frozen_bn", "none", "fine-tuned", 2).name
        'frozen_bn-heads-none-fine-tuned-2'
    """

    norm: str
    head_norm: str
    start: str
    batch_size: int

    @property
    def name(self) -> str:
        """For file names."""
        heads = "" if self.head_norm == self.norm else f"-heads-{self.head_norm}"
        return f"{self.norm}{heads}-{self.start}-{self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class DetectionRow(Measured):
    """One finished training of a detector, or one that diverged.

    Attributes:
        norm: of the backbone.
        head_norm: of FPN, box head and mask head; `"none"` where these have none.
        start: `"scratch"`, or `"fine-tuned"` from a classifier.
        images: images seen in training: steps times batch size.
        figures: COCO's figures of the last evaluation, percent: `box_AP`, `box_AP50`, ...,
            `mask_AP`, ...; None where there is none.
        per_category: AP of each category by its name, under `box` and under `mask`, percent.
        curve: the evaluations, in order of steps.
        detections: what it finds with a score of at least 0.5 in the pictured scenes.
        failure: why it ended early, such as a loss that was not finite; None where it did not.

    Raises:
        ResultsError: a field of the wrong type or range; it is a `ValueError`.
    """

    SCHEMA = ROW_SCHEMA

    norm: str = field(metadata=by(text))
    head_norm: str = field(metadata=by(text))
    start: str = field(metadata=by(choice(SCRATCH, FINE_TUNED)))
    images: int = field(metadata=by(integer(1)))
    figures: dict[str, float | None] = field(metadata=by(_measures))
    per_category: dict[str, dict[str, float | None]] = field(metadata=by(_tables))
    curve: tuple[DetectionPoint, ...] = field(metadata=by(sequence(DetectionPoint)))
    detections: tuple[Detection, ...] = field(metadata=by(sequence(Detection)))
    failure: str | None = field(metadata=by(optional(text)))

    @property
    def arm(self) -> Arm:
        """What it is a run of, whatever its seed."""
        return Arm(self.norm, self.head_norm, self.start, self.batch_size)

    @property
    def name(self) -> str:
        """What tells it from the others of its experiment."""
        return f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True)
class DetectionResults(Stored):
    """Every finished run of a detection experiment.

    Attributes:
        experiment: `"detection"` or `"scratch"`.
        preset: the name of the preset that set scale and schedule.
        planned: names of the runs that the experiment is made of.
        command: the command that made the file.
        created: when, as an ISO 8601 time.
        rows: the finished runs; may be empty.
        backbones: the classifiers that fine-tuned detectors start from.
        scenes: the test scenes whose detections the rows hold.

    Raises:
        ResultsError: a field of the wrong type or range, a run that is not planned, or the same run
            twice.
    """

    SCHEMA = SCHEMA
    REMEDY = "finished runs are kept beside it under rows/"

    experiment: str = field(metadata=by(choice("detection", "scratch")))
    preset: str = field(metadata=by(text))
    planned: tuple[str, ...] = field(metadata=by(_texts))
    command: str = field(metadata=by(text))
    created: str = field(metadata=by(time))
    rows: tuple[DetectionRow, ...] = field(metadata=by(sequence(DetectionRow)))
    backbones: tuple[Row, ...] = field(metadata=by(sequence(Row)))
    scenes: tuple[PicturedScene, ...] = field(metadata=by(sequence(PicturedScene)))

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: dict[str, int] = {}
        for index, row in enumerate(self.rows):
            if row.name not in self.planned:
                raise bad_field(f"rows[{index}]", f"one of the runs {self.planned}", row.name)
            if row.name in seen:
                raise ResultsError(
                    f"rows[{index}]: the same run as rows[{seen[row.name]}], {row.name}; keep one"
                )
            seen[row.name] = index
