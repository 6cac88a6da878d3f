"""Synthetic rows of detectors: numbers from formulas, from no training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchfree.data.scenes import DigitScenes, annotation_records
from batchfree.experiments.detection import pictured_scenes
from batchfree.experiments.detection_results import (
    HEADLINE_FIGURES,
    Arm,
    Detection,
    DetectionPoint,
    DetectionResults,
    DetectionRow,
)
from batchfree.experiments.results import CurvePoint, Row

FINAL = {
    "detection": {
        Arm("gn", "gn", "fine-tuned", 2): 61.0,
        Arm("frozen_bn", "none", "fine-tuned", 2): 58.0,
        Arm("frozen_bn", "gn", "fine-tuned", 2): 59.0,
        Arm("frozen_bn", "bn", "fine-tuned", 2): 30.0,
        Arm("bn", "bn", "fine-tuned", 2): 33.0,
        Arm("gn", "gn", "scratch", 2): 55.0,
    },
    "scratch": {
        Arm("gn", "gn", "scratch", 2): 57.0,
        Arm("bn", "bn", "scratch", 2): 45.0,
        Arm("gn", "gn", "scratch", 1): 56.0,
        Arm("bn", "bn", "scratch", 1): 20.0,
    },
}
SHARED = {
    "commit": "0123456789abcdef",
    "versions": {"batchfree": "0.1.0", "torch": "2.15.0"},
    "machine": {"cpu": "Synthetic CPU", "cores": 2, "system": "Linux"},
    "command": "batchfree reproduce detection",
    "config": {"detector": {"width": 32}, "backbone": None},
}
_DIGITS = tuple("0123456789")


def detections(image_id: int, share: float) -> list[Detection]:
    """The first `share` of the digits of a test scene."""
    scene = DigitScenes("test", image_id, 128, 0).scene(image_id - 1)
    records = annotation_records(scene, first_id=1)
    return [
        Detection(image_id, r["category_id"], 0.91, tuple(r["bbox"]), r["segmentation"])
        for r in records[: round(share * len(records))]
    ]


def detection_row(arm: Arm, seed: int, final: float, **changes: Any) -> DetectionRow:
    """A run that ends at `final` box AP, give or take its seed."""
    final = final + 0.5 * seed
    steps = 6000 // arm.batch_size
    points = tuple(
        DetectionPoint(
            step=steps * k // 6,
            losses={"train_loss": 3.0 / k, "loss_mask": 0.7 / k},
            box_AP=final * k / 6,
            mask_AP=0.9 * final * k / 6,
        )
        for k in range(1, 7)
    )
    figures = {
        name: final * (0.9 if "mask" in name else 1) * {"50": 1.3, "75": 1.1}.get(name[-2:], 1)
        for name in HEADLINE_FIGURES
    }
    row = DetectionRow(
        norm=arm.norm,
        head_norm=arm.head_norm,
        start=arm.start,
        seed=seed,
        steps=steps,
        batch_size=arm.batch_size,
        images=6000,
        learning_rate=0.01 * arm.batch_size,
        figures=figures,
        per_category={kind: dict.fromkeys(_DIGITS, final) for kind in ("box", "mask")},
        curve=points,
        detections=tuple(d for image_id in (1, 2) for d in detections(image_id, final / 61)),
        failure=None,
        seconds=900.0,
        **SHARED,
    )
    return replace(row, **changes)


def diverged_row(arm: Arm, seed: int) -> DetectionRow:
    """A run whose loss was not finite."""
    return detection_row(
        arm, seed, 1.0, figures={}, per_category={}, curve=(), detections=(),
        failure="diverged at step 7: loss_mask is nan on images [3, 4]",
    )  # fmt: skip


def backbone_row(norm: str, seed: int) -> Row:
    """A classifier that detectors start from."""
    return Row(
        norm=norm,
        normalization_batch=32 if norm == "bn" else None,
        seed=seed,
        steps=3000,
        batch_size=32,
        learning_rate=0.1,
        train_error=2.0,
        val_error=4.0,
        curve=(CurvePoint(3000, 0.1, 2.0, 4.0),),
        seconds=300.0,
        **SHARED,
    )


def results(experiment: str = "detection", **changes: Any) -> DetectionResults:
    """All arms of an experiment, two seeds each."""
    rows = tuple(
        detection_row(arm, seed, final)
        for seed in range(2)
        for arm, final in FINAL[experiment].items()
    )
    found = DetectionResults(
        experiment=experiment,
        preset="synthetic",
        planned=tuple(row.name for row in rows),
        command=f"batchfree reproduce {experiment} --preset synthetic",
        created="2026-01-31T12:00:00+00:00",
        rows=rows,
        backbones=(backbone_row("bn", 0), backbone_row("gn", 0))
        if experiment == "detection"
        else (),
        scenes=pictured_scenes(128, 2),
    )
    return replace(found, **changes)
