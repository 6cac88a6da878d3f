"""Trainings of minutes to hours within a sweep: they go on from their own checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from batchfree._errors import ConfigError
from batchfree.train.callbacks import InterruptHandler
from batchfree.train.checkpoint import check_checkpoint
from batchfree.train.config import BaseConfig
from batchfree.train.run import fit


class Clock(Callback):
    """Counts the seconds of a training over all its attempts, as far as their steps were kept."""

    def __init__(self) -> None:
        self.before = 0.0
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds, without those of steps that were lost."""
        return self.before + time.perf_counter() - self.began

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.before, self.began = state_dict["seconds"], time.perf_counter()


class SweepStop(InterruptHandler):
    """Ends a training as Ctrl-C does, after the step under way and with a checkpoint.

    Args:
        checkpoint: where to write it.
        evaluate_every: steps between evaluations.
        stopping: whether the sweep ends.
    """

    def __init__(self, checkpoint: Path, evaluate_every: int, stopping: Callable[[], bool]) -> None:
        super().__init__(checkpoint, evaluate_every)
        self.stopping = stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves Ctrl-C to the sweep."""

    def _stop_if_requested(self, trainer: pl.Trainer) -> None:
        self.requested = self.stopping()
        super()._stop_if_requested(trainer)


def fit_or_go_on(
    config: BaseConfig,
    folder: Path,
    on_step: Callable[[int], None],
    stopping: Callable[[], bool],
    callbacks: Sequence[Callback] = (),
) -> Any:
    """Trains in a folder; where that holds a part of the same training, the rest of it.

    Args:
        config: the run; its evaluations are `trainer.evaluate_every` steps apart.
        folder: of the run. What another config has left there is removed.
        on_step: called with the number of steps done.
        stopping: whether to end early.
        callbacks: of Lightning.

    Raises:
        KeyboardInterrupt: it was ended early, with a checkpoint.
        Exception: what `batchfree.train.fit` raises.
    """
    last = folder / "checkpoints" / "last.ckpt"
    resume = None
    if last.exists():
        try:
            check_checkpoint(last, config)
            resume = last
        except ConfigError:  # damaged, or of other settings
            resume = None
    if resume is None:
        shutil.rmtree(folder, ignore_errors=True)
    interval = config.trainer.evaluate_every
    assert interval is not None
    return fit(
        config,  # type: ignore[call-overload]
        output=folder,
        resume=resume,
        progress=False,
        callbacks=[SweepStop(last, interval, stopping), *callbacks],
        on_step=on_step,
    )
