"""The trainings of the detection experiments: detectors, and the classifiers they start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from batchfree._errors import NonFiniteLoss
from batchfree.experiments.batch_size_run import ClassifierRun, classifier_row
from batchfree.experiments.detection_results import (
    FINE_TUNED,
    Arm,
    Detection,
    DetectionPoint,
    DetectionRow,
)
from batchfree.experiments.results import Measured, Row
from batchfree.train.config import Config
from batchfree.train.detection_config import DetectionConfig
from batchfree.train.output import write_json

PICTURED = (1, 2, 3, 4, 5, 6)
"""Ids of the test scenes whose detections are kept: the first, so that nobody has chosen them."""
SCORE = 0.5
"""The lowest score of a detection that is kept."""
_WEIGHTS = "model.safetensors"
_FINDINGS = "findings.json"


@dataclass(frozen=True)
class BackboneRun(ClassifierRun):
    """The training of a classifier whose backbone detectors start from.

    Attributes:
        config: the training.
        folder: of the experiment; its weights stay in `backbones/NAME/model.safetensors`.
    """

    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """Its file's name under rows/, without the ending."""
        return f"backbone-{self.config.model.norm}-seed{self.config.seed}"

    @property
    def weights(self) -> Path:
        """Where its weights are when it is finished."""
        return self.folder / "backbones" / self.name / _WEIGHTS

    def is_usable(self) -> bool:
        """Whether its weights are there."""
        return self.weights.is_file()

    def train(
        self,
        on_step: Callable[[int], None],
        stopping: Callable[[], bool],
        provenance: dict[str, Any],
    ) -> Row:
        """Trains, or goes on with it, and returns the row."""
        from batchfree.experiments.resumable import Clock, fit_or_go_on

        clock = Clock()
        result = fit_or_go_on(self.config, self.weights.parent, on_step, stopping, [clock])
        result.seconds = clock.seconds
        model = self.config.model
        batch = self.config.batch_size if model.norm == "bn" else None
        return classifier_row(
            model.norm, batch, self.config, result, on_this_device(self.config, provenance)
        )

    def tidy(self) -> None:
        """Only the weights are needed further."""
        shutil.rmtree(self.weights.parent / "checkpoints", ignore_errors=True)


@dataclass(frozen=True)
class DetectionRun:
    """The training of a detector.

    Attributes:
        arm: what it is a run of.
        config: the training, without weights to start from.
        folder: of the experiment.
        backbone: what it starts from; None from scratch.
    """

    arm: Arm
    config: DetectionConfig
    folder: Path
    backbone: BackboneRun | None = None

    def __post_init__(self) -> None:
        assert (self.backbone is not None) == (self.arm.start == FINE_TUNED)

    @property
    def name(self) -> str:
        """Its file's name under rows/, without the ending."""
        return f"{self.arm.name}-seed{self.config.seed}"

    @property
    def steps(self) -> int:
        """Its optimizer steps."""
        assert self.config.trainer.max_steps is not None
        return self.config.trainer.max_steps

    @property
    def settings(self) -> dict[str, Any]:
        """Its config in plain values, and that of what it starts from: no path of a machine."""
        start = None if self.backbone is None else self.backbone.settings
        return {"detector": self.config.to_dict(), "backbone": start}

    @property
    def row_type(self) -> type[Measured]:
        """`DetectionRow`."""
        return DetectionRow

    @property
    def needs(self) -> tuple[str, ...]:
        """The run of its backbone."""
        return () if self.backbone is None else (self.backbone.name,)

    @property
    def output(self) -> Path:
        """The folder of the training itself."""
        return self.folder / "runs" / self.name

    def is_usable(self) -> bool:
        """It leaves nothing to other runs."""
        return True

    def complete_config(self) -> DetectionConfig:
        """The config with the place of the weights that it starts from."""
        if self.backbone is None:
            return self.config
        return self.config.replace(model={"weights": str(self.backbone.weights)})

    def train(
        self,
        on_step: Callable[[int], None],
        stopping: Callable[[], bool],
        provenance: dict[str, Any],
    ) -> DetectionRow:
        """Trains, or goes on with it, and returns the row; a loss that is not finite is a result.

        Whatever else `batchfree.train.fit` raises comes through.
        """
        from batchfree.experiments.resumable import Clock, fit_or_go_on

        clock = Clock()
        failure = None
        try:
            fit_or_go_on(
                self.complete_config(),
                self.output,
                on_step,
                stopping,
                [clock, Findings(self.output / _FINDINGS)],
            )
        except NonFiniteLoss as error:
            failure = f"diverged at {str(error).partition('; ')[0]}"
        return self._row(failure, clock.seconds, on_this_device(self.config, provenance))

    def tidy(self) -> None:
        """The weights stay, for `batchfree predict`."""
        shutil.rmtree(self.output / "checkpoints", ignore_errors=True)

    def _row(self, failure: str | None, seconds: float, provenance: dict[str, Any]) -> DetectionRow:
        history = self.output / "history.json"
        points = json.loads(history.read_text())["curve"] if history.exists() else []
        found: dict[str, Any] = {"figures": {}, "per_category": {}, "detections": []}
        if failure is None:
            found = json.loads((self.output / _FINDINGS).read_text())
        return DetectionRow(
            norm=self.arm.norm,
            head_norm=self.arm.head_norm,
            start=self.arm.start,
            seed=self.config.seed,
            steps=self.steps,
            batch_size=self.config.batch_size,
            images=self.steps * self.config.batch_size,
            learning_rate=self.config.learning_rate(),
            figures=found["figures"],
            per_category=found["per_category"],
            curve=tuple(_point(p) for p in points),
            detections=tuple(Detection.from_json(d) for d in found["detections"]),
            failure=failure,
            seconds=round(seconds, 2),
            config=self.settings,
            **provenance,
        )


class Findings(Callback):
    """Writes what each evaluation found; it is there before the checkpoint that goes with it.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The figures, those by category, and the detections in the pictured scenes."""
        evaluator: Any = pl_module.evaluator
        every = len(evaluator.image_ids) == len(trainer.datamodule.data.validation)  # type: ignore[attr-defined]
        which = "all" if every else "seen"
        detections = [
            {**mask, "bbox": [round(side, 2) for side in box["bbox"]]}
            for mask, box in zip(evaluator.results("segm"), evaluator.results("bbox"), strict=True)
            if mask["image_id"] in PICTURED and mask["score"] >= SCORE
        ]
        figures = {k: _finite(v) for k, v in evaluator.figures(which).items()}
        tables = {
            kind: {name: _finite(v) for name, v in values.items()}
            for kind, values in evaluator.per_category(which).items()
        }
        content = {"figures": figures, "per_category": tables, "detections": detections}
        write_json(self.path, content)


def _finite(value: float) -> float | None:
    return round(float(value), 3) if value == value else None


def _point(point: dict[str, Any]) -> DetectionPoint:
    losses = {k: v for k, v in point.items() if k == "train_loss" or k.startswith("loss_")}
    return DetectionPoint(point["step"], losses, point.get("box_AP"), point.get("mask_AP"))


def on_this_device(config: Config | DetectionConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance with the GPU's name, where the run used one."""
    if config.trainer.accelerator != "gpu":
        return provenance
    import torch

    machine = {**provenance["machine"], "gpu": torch.cuda.get_device_name()}
    return {**provenance, "machine": machine}
