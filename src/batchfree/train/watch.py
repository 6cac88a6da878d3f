"""A Lightning callback that logs what the BatchNorms see."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from batchfree.audit.watch import Watcher, check_every

_DISTANCES = ("mean_drift", "variance_drift", "gap")


class BatchWatch(Callback):
    """Logs the normalisation batch, statistics drift and train/eval gap of every BatchNorm.

    For TensorBoard or another logger: `batch/<layer>/samples`, `.../mean_drift`,
    `.../variance_drift` and `.../gap` as `batchfree.audit.LayerRecord` defines them, and the means
    over layers as `batch/mean_drift`, `batch/variance_drift` and `batch/gap`. Nothing is logged of
    a model without BatchNorms in training mode.

    Args:
        every: training steps from one record to the next.

    Raises:
        ValueError: `every` is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BatchWatch(every=100)], max_steps=1000)
    """

    def __init__(self, every: int = 50) -> None:
        check_every(every)
        self.every = every
        self._watcher: Watcher | None = None
        self._last = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to watch."""
        self._watcher = Watcher(pl_module).__enter__()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at this step, where it is its turn."""
        assert self._watcher is not None
        step = trainer.global_step
        self._watcher.take()
        # With accumulation several batches make a step: the first of them.
        self._watcher.active = step % self.every == 0 and step != self._last
        self._last = step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Logs what was seen."""
        assert self._watcher is not None
        self._watcher.active = False
        layers = self._watcher.take()
        if not layers:
            return
        metrics = {
            f"batch/{layer.module}/{name}": float(getattr(layer, name))
            for layer in layers
            for name in ("samples", *_DISTANCES)
        }
        for name in _DISTANCES:
            values = [getattr(layer, name) for layer in layers]
            metrics[f"batch/{name}"] = sum(values) / len(values)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the model as it was."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leaves the model as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.__exit__()
            self._watcher = None
