"""`fit` for detection, and its result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_only
from torchvision.models.detection import MaskRCNN

from batchfree.train.detection import Detector
from batchfree.train.detection_build import build_detector
from batchfree.train.detection_config import DetectionConfig
from batchfree.train.detection_data import DetectionDataModule, build_detection_data
from batchfree.train.loop import Monitor, plan, run_loop, save_result
from batchfree.train.output import prepare

_MONITOR = Monitor(("train_loss", "loss_", "box_", "mask_"), "box_AP", "max")


@dataclass
class DetectionResult:
    """What a detection run came to.

    Attributes:
        figures: COCO's figures of the last evaluation, percent: `box_AP`, `mask_AP` and the others.
        curve: one point per evaluation: step, mean losses since the one before, the figures.
        seconds: wall-clock time of the training, evaluations included.
        checkpoint: the last checkpoint; None without an output folder, or where none was written.
        model: the trained network.
    """

    figures: dict[str, float]
    curve: list[dict[str, Any]]
    seconds: float
    checkpoint: Path | None
    model: MaskRCNN

    def __str__(self) -> str:
        return (
            f"box AP {self.figures['box_AP']:.1f}, mask AP {self.figures['mask_AP']:.1f} "
            f"(last evaluation), {self.seconds:.0f} s"
        )


def fit_detection(
    config: DetectionConfig,
    folder: Path | None,
    resume: Path | str | None,
    progress: bool,
    callbacks: Sequence[Callback],
    on_step: Callable[[int], None] | None,
) -> DetectionResult:
    """What `batchfree.train.fit` does for a `DetectionConfig`; arguments as there."""
    data = build_detection_data(config.data, config.seed)
    assert data.train is not None
    writer = getattr(rank_zero_only, "rank", 0) == 0
    torch.manual_seed(config.seed)
    network, remarks = build_detector(config.model, len(data.train.categories))
    if folder is not None and writer:
        prepare(folder, config, resume=resume is not None)
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr, flush=True)
    run = plan(config, len(data.train))
    module = Detector(network, config, run.schedule, data, folder)
    ended = run_loop(
        config,
        module,
        DetectionDataModule(config, data, run.steps * config.trainer.accumulate),
        run,
        _MONITOR,
        folder=folder,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
        on_step=on_step,
    )
    last = ended.curve[-1]
    result = DetectionResult(
        figures={k: v for k, v in last.items() if k.startswith(("box_", "mask_"))},
        curve=ended.curve,
        seconds=ended.seconds,
        checkpoint=ended.checkpoint,
        model=network,
    )
    if folder is not None and ended.is_writer:
        values = {"seconds": result.seconds, "curve": result.curve}
        save_result(folder, result, values, network, module.describe())
    return result
