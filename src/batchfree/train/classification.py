"""Image classification as a LightningModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from batchfree.train.config import Config
from batchfree.train.optim import Schedule, build_optimizer, build_scheduler


class Classifier(pl.LightningModule):
    """Trains a network on images and labels with SGD.

    It logs `train_loss` and `train_error` (%) over the steps since the last evaluation, and
    `val_error` (%) of the whole validation set, each image counted once whatever the number of
    devices.

    Args:
        network: images (N, 3, H, W) to logits (N, classes).
        config: the run.
        schedule: the learning rate's schedule, in optimizer steps.
        num_validation: validation images; what a rank is given beyond them is padding.
    """

    def __init__(
        self, network: nn.Module, config: Config, schedule: Schedule, num_validation: int
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.schedule = schedule
        self.num_validation = num_validation
        self.val_error = MeanMetric(nan_strategy="error")
        # Loss, errors and images since the last evaluation: a plain tensor, because a buffer would
        # be averaged by the EMA and broadcast by DDP.
        self.window = torch.zeros(3, dtype=torch.float64)
        self._generator_state: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.network(images)

    def on_fit_start(self) -> None:
        """Moves what is no buffer to the device, the generator to where a checkpoint left it."""
        self.window = self.window.to(self.device, self._window_dtype())
        if self._generator_state is not None:
            torch.set_rng_state(self._generator_state)

    def on_train_start(self) -> None:
        """A network that was just evaluated for its checkpoint goes on in training mode."""
        self.network.train()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, label smoothing included."""
        images, labels = batch
        if self.config.trainer.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.network(images)
        loss = F.cross_entropy(
            logits, labels, label_smoothing=self.config.optimizer.label_smoothing
        )
        with torch.no_grad():
            wrong = (logits.argmax(1) != labels).sum()
            count = torch.full_like(wrong, len(labels))
            self.window.add_(torch.stack([loss * len(labels), wrong, count]))
        if self._logs_this_step():
            self.log("train_loss_step", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts a batch's errors, padding left out."""
        images, labels = batch
        if self.config.trainer.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        wrong = (self.network(images).argmax(1) != labels).float() * 100
        place = batch_idx * self.config.data.eval_batch_size + torch.arange(len(labels))
        index = place * self.trainer.world_size + self.trainer.global_rank
        # Cut, not weighted: MeanMetric ignores weights under nan_strategy="disable".
        self.val_error.update(wrong[: int((index < self.num_validation).sum())])

    def on_validation_epoch_end(self) -> None:
        """Logs the point of the curve: train loss and error since the last one, val error."""
        window = self.trainer.strategy.reduce(self.window.clone(), reduce_op="sum")
        loss, wrong, count = window.tolist()
        self.window.zero_()
        values: dict[str, Any] = {"val_error": self.val_error}
        values["train_loss"] = loss / count if count else float("nan")
        values["train_error"] = 100 * wrong / count if count else float("nan")
        self.log_dict(values, prog_bar=True, sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD and its schedule, stepped once per optimizer step."""
        optimizer = build_optimizer(
            self.network,
            self.config.optimizer,
            self.config.learning_rate(),
            fused=self.device.type == "cpu",
        )
        scheduler = build_scheduler(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the config, the running window and the state of the random generator."""
        checkpoint["batchfree"] = {
            "config": self.config.to_dict(),
            "window": self.window.tolist(),
            "generator": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the running window (of rank 0, which wrote it) and the random generator."""
        state = checkpoint["batchfree"]
        if self.trainer.is_global_zero:
            self.window = torch.tensor(state["window"], dtype=torch.float64)
        self._generator_state = state["generator"]

    def _window_dtype(self) -> torch.dtype:
        # MPS has no float64.
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _logs_this_step(self) -> bool:
        wants = self.trainer.loggers or self.trainer.progress_bar_callback is not None
        return bool(wants) and (self.global_step + 1) % self.config.trainer.log_every == 0
