"""`fit`: one training run from its config to its result."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn

from batchfree.convert import (
    BlendNorm,
    ConversionPlan,
    collapse,
    read_manifest,
    save_converted,
    set_alpha,
)
from batchfree.models.conventions import conventions_of
from batchfree.train.blend import AnnealBlend
from batchfree.train.build import build_network
from batchfree.train.callbacks import CurvePoint
from batchfree.train.checkpoint import check_checkpoint
from batchfree.train.checks import validate
from batchfree.train.classification import Classifier
from batchfree.train.config import BaseConfig, Config
from batchfree.train.data import DataModule, build_data, preprocessing
from batchfree.train.loop import Monitor, TrainingInterrupted, plan, run_loop, save_result
from batchfree.train.loop import surroundings as _surroundings
from batchfree.train.output import prepare, unwritable

if TYPE_CHECKING:
    from batchfree.train.detection_config import DetectionConfig
    from batchfree.train.detection_run import DetectionResult

__all__ = ["FitResult", "TrainingInterrupted", "fit"]

_MONITOR = Monitor(("train_loss", "train_error", "val_error"), "val_error", "min")


@dataclass
class FitResult:
    """What a training run came to.

    Attributes:
        val_error: validation error, %, median of the last five evaluations (as the paper reports).
        train_error: training error, %, median over the same evaluations' windows.
        curve: one point per evaluation.
        seconds: wall-clock time of the training, evaluations included.
        checkpoint: the last checkpoint; None without an output folder, or where none was written.
        model: the trained network (with EMA, the averaged one).
    """

    val_error: float
    train_error: float
    curve: list[CurvePoint]
    seconds: float
    checkpoint: Path | None
    model: nn.Module

    def __str__(self) -> str:
        return (
            f"validation error {self.val_error:.2f}%, training error {self.train_error:.2f}% "
            f"(median of the last {min(5, len(self.curve))} evaluations), {self.seconds:.0f} s"
        )


@overload
def fit(
    config: Config,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    on_step: Callable[[int], None] | None = None,
) -> FitResult: ...


@overload
def fit(
    config: DetectionConfig,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    on_step: Callable[[int], None] | None = None,
) -> DetectionResult: ...


def fit(
    config: BaseConfig,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    on_step: Callable[[int], None] | None = None,
) -> FitResult | DetectionResult:
    """Trains a network from its config: a `Config` or a `DetectionConfig`.

    On a CPU, a config gives the same weights to the bit each time, and a resumed run the same as an
    uninterrupted one.

    Args:
        config: the run.
        output: a folder for checkpoints (`checkpoints/last.ckpt`, `best.ckpt`), logs (TensorBoard
            and CSV, `logs/`), `history.json`, `config.yaml` and, at the end, `model.safetensors`.
            None writes nothing and shows nothing.
        resume: a checkpoint to continue from.
        progress: show a progress bar, where there is an output folder.
        callbacks: further Lightning callbacks.
        on_step: called with the number of each optimizer step done, counted from 1.

    Raises:
        ConfigError: values that cannot be used; a folder that holds another run; a checkpoint of
            another one.
        DataError: images that are missing or damaged; a loading process that died.
        NonFiniteLoss: in detection, a loss that is NaN or infinite.
        OutputError: the output folder cannot be written. Found before training where possible;
            later a checkpoint or log line is lost with a warning, training goes on, and the error
            at the end carries `result`.
        TrainingInterrupted: Ctrl-C, with an output folder: its `checkpoint` is one to resume from.
        KeyboardInterrupt: Ctrl-C without one, or pressed twice.

    Example:
        >>> from batchfree.train import Config, fit
        >>> config = Config().replace(trainer={"max_steps": 2}, data={"val_samples": 20})
        >>> fit(config).curve[-1]["step"]
        2
    """
    validate(config)
    folder = None if output is None else Path(output)
    if resume is not None:
        check_checkpoint(Path(resume), config)
    with _surroundings(config):
        if isinstance(config, Config):
            return _fit(config, folder, resume, progress, callbacks, on_step)
        from batchfree.train.detection_config import DetectionConfig
        from batchfree.train.detection_run import fit_detection

        assert isinstance(config, DetectionConfig)
        return fit_detection(config, folder, resume, progress, callbacks, on_step)


def _fit(
    config: Config,
    folder: Path | None,
    resume: Path | str | None,
    progress: bool,
    callbacks: Sequence[Callback],
    on_step: Callable[[int], None] | None,
) -> FitResult:
    data = build_data(config.data, config.seed)
    if folder is not None and getattr(rank_zero_only, "rank", 0) == 0:
        prepare(folder, config, resume=resume is not None)
    torch.manual_seed(config.seed)
    network = build_network(config.model, data.num_classes)
    if config.trainer.channels_last:
        network = network.to(memory_format=torch.channels_last)
    run = plan(config, data.samples_per_epoch)
    converted = config.model.converted
    if any(isinstance(m, BlendNorm) for m in network.modules()):
        until = max(1, round((config.model.blend_until or 0.5) * run.steps))
        callbacks = [AnnealBlend(until, collapse=False), *callbacks]
    ended = run_loop(
        config,
        Classifier(network, config, run.schedule, len(data.validation)),  # type: ignore[arg-type]
        DataModule(config, data, run.steps * config.trainer.accumulate),
        run,
        _MONITOR,
        folder=folder,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
        on_step=on_step,
    )
    if converted is not None:
        set_alpha(network, 0.0)
        collapse(network)
    recent = ended.curve[-5:]
    result = FitResult(
        val_error=statistics.median(p["val_error"] for p in recent),
        train_error=statistics.median(p["train_error"] for p in recent),
        curve=ended.curve,
        seconds=ended.seconds,
        checkpoint=ended.checkpoint,
        model=network,
    )
    if folder is not None and ended.is_writer:
        values = {k: getattr(result, k) for k in ("val_error", "train_error", "seconds", "curve")}
        told = {
            "config": config.to_dict(),
            "conventions": conventions_of(network, *preprocessing(config.data)),
        }
        save_result(folder, result, values, network, told)
        if converted is not None:
            _save_converted(folder, result, converted)
    return result


# What a fine-tuned model's manifest shares with that of the file it started from.
_KEPT = ("source", "calibration", "anchor", "preprocessing")


def _save_converted(folder: Path, result: FitResult, converted: str) -> None:
    manifest = read_manifest(converted)
    try:
        save_converted(
            folder / "converted.safetensors",
            result.model,
            ConversionPlan.from_json(json.dumps(manifest["plan"])),
            method=f"{manifest['method']}, fine-tuned",
            **{key: manifest[key] for key in _KEPT},
        )
    except OSError as e:
        error = unwritable(folder, e)
        error.result = result
        raise error from e
