"""What training needs beyond Lightning's own callbacks."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar

from batchfree.train.output import finite, tolerate_write_failure, write_json


class CurvePoint(TypedDict):
    """An evaluation: train values over the steps since the one before, errors in %."""

    step: int
    train_loss: float
    train_error: float
    val_error: float


_CLASSIFICATION = ("train_loss", "train_error", "val_error")


class History(Callback):
    """Collects the curve; it survives in checkpoints, and in `path` after each evaluation.

    Args:
        path: a JSON file to keep it in as well, or None.
        prefixes: what the names of the metrics in a point start with.
    """

    def __init__(
        self, path: Path | None = None, prefixes: tuple[str, ...] = _CLASSIFICATION
    ) -> None:
        self.path, self.prefixes = path, prefixes
        self.curve: list[Any] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the point of the evaluation that just ended."""
        metrics = {
            name: float(value)
            for prefix in self.prefixes
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix) and not name.endswith("_step")
        }
        self.curve.append({"step": trainer.global_step, **metrics})
        if self.path is not None and trainer.is_global_zero:
            with tolerate_write_failure(self.path.parent):
                write_json(self.path, {"curve": finite(self.curve)})

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        return {"curve": [dict(p) for p in self.curve]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues a curve."""
        self.curve = [dict(p) for p in state_dict["curve"]]


class StepHook(Callback):
    """Calls `on_step(step)` after every optimizer step; step counts from 1."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.on_step = on_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Reports the step."""
        self.on_step(trainer.global_step)


class EvaluateAtEnd(Callback):
    """Makes Lightning evaluate after the last step, also where the interval does not divide."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Asks for a stop, before which Lightning evaluates."""
        if trainer.global_step >= self.total_steps:
            trainer.should_stop = True


class StopRequested(Exception):
    """Raised inside the training loop once the checkpoint of an interrupted run is written."""

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__(str(checkpoint))
        self.checkpoint = checkpoint


class InterruptHandler(Callback):
    """The first Ctrl-C ends training after the step under way, with a checkpoint to resume from.

    The second one ends it at once. A checkpoint at a step's end is one that a resumed run can
    continue to the bit; an interrupt's own moment is not.

    Args:
        checkpoint: where to write it.
        evaluate_every: steps between evaluations; where one is due the stop waits for its end.
    """

    def __init__(self, checkpoint: Path, evaluate_every: int) -> None:
        self.checkpoint, self.evaluate_every = checkpoint, evaluate_every
        self.requested = False
        self._previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over Ctrl-C."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Stops, unless an evaluation or another backward pass of the same step comes first."""
        mid_step = trainer.fit_loop.epoch_loop._should_accumulate()
        evaluates = trainer.should_stop or trainer.global_step % self.evaluate_every == 0
        if not mid_step and not evaluates:
            self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops after an evaluation, unless it was the last."""
        if not trainer.should_stop:
            self._stop_if_requested(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Hands Ctrl-C back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(
            "\nstopping after this step, with a checkpoint (Ctrl-C again stops at once)",
            file=sys.stderr,
            flush=True,
        )

    def _stop_if_requested(self, trainer: pl.Trainer) -> None:
        requested = self.requested
        if trainer.world_size > 1:  # all ranks have to stop at the same step
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if requested:
            written = False
            with tolerate_write_failure(self.checkpoint.parent):
                trainer.save_checkpoint(self.checkpoint)
                written = True
            raise StopRequested(self.checkpoint if written or self.checkpoint.exists() else None)


class Checkpoint(ModelCheckpoint):
    """Keeps one checkpoint; a full disk costs the checkpoint, not the training.

    Args:
        folder: where it is kept.
        name: its file name, without the suffix.
        monitor: the metric whose best value is kept; None keeps the last evaluation's.
        mode: which value is best, `min` or `max`.
    """

    def __init__(
        self, folder: Path, name: str, monitor: str | None = None, mode: str = "min"
    ) -> None:
        super().__init__(
            dirpath=folder,
            filename=name,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, where this evaluation is one to keep."""
        if trainer.world_size > 1:  # the other ranks wait for the writer, who must not go on alone
            super().on_validation_end(trainer, pl_module)
            return
        with tolerate_write_failure(Path(str(self.dirpath))):
            super().on_validation_end(trainer, pl_module)


class PeriodicCheckpoint(Callback):
    """Keeps the last checkpoint between evaluations too, for runs that may be killed at any time.

    Args:
        path: where to.
        every: steps from one to the next.
        evaluate_every: steps between evaluations, which write their own.
    """

    def __init__(self, path: Path, every: int, evaluate_every: int) -> None:
        self.path, self.every, self.evaluate_every = path, every, evaluate_every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Saves at the end of every so many steps."""
        step = trainer.global_step
        mid_step = trainer.fit_loop.epoch_loop._should_accumulate()
        evaluates = trainer.should_stop or step % self.evaluate_every == 0
        if step % self.every or mid_step or evaluates:
            return
        if trainer.world_size > 1:  # the other ranks wait for the writer
            trainer.save_checkpoint(self.path)
            return
        with tolerate_write_failure(self.path.parent):
            trainer.save_checkpoint(self.path)


class Progress(RichProgressBar):
    """Lightning's bar over the whole training, which is one pass to Lightning."""

    @property
    def total_train_batches(self) -> int | float:
        """Passes of the whole training; Lightning's own counts steps, of several passes each."""
        return self.trainer.num_training_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training  "

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """The last step's loss and the last evaluation's error, or box AP."""
        values = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
        shown = {}
        if "train_loss_step" in values:
            shown["loss"] = f"{values['train_loss_step']:.3f}"
        if "val_error" in values:
            shown["val"] = f"{values['val_error']:.2f}%"
        if "box_AP" in values:
            shown["box AP"] = f"{values['box_AP']:.1f}"
        return shown
