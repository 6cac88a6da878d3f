"""Mask R-CNN as a LightningModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from batchfree._errors import NonFiniteLoss
from batchfree.data.counted import mix
from batchfree.models.conventions import conventions_of
from batchfree.train.detection_build import describe_detector
from batchfree.train.detection_config import DetectionConfig
from batchfree.train.detection_data import DetectionData
from batchfree.train.detection_metrics import CocoEvaluator
from batchfree.train.optim import Schedule, build_optimizer, build_scheduler
from batchfree.train.output import tolerate_write_failure

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Detector(pl.LightningModule):
    """Trains Mask R-CNN with SGD and evaluates it as COCO does.

    It logs every loss by its name and their sum `train_loss`, as means over the steps since the
    last evaluation, and COCO's figures in percent, `box_AP` to `mask_ARl`, each image counted once
    whatever the number of devices. What anchors and regions a step samples depends on the seed and
    the step alone.

    Args:
        network: of `batchfree.models.mask_rcnn`.
        config: the run.
        schedule: the learning rate's schedule, in optimizer steps.
        data: the sets of the run.
        folder: of the run, for the state that a loss that is not finite leaves; None keeps none.
    """

    def __init__(
        self,
        network: MaskRCNN,
        config: DetectionConfig,
        schedule: Schedule,
        data: DetectionData,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config, self.schedule, self.folder = config, schedule, folder
        self.categories = data.validation.categories
        self.evaluator = CocoEvaluator(data.validation)
        # Sums of each loss since the last evaluation, and of steps: plain tensors, because buffers
        # would be averaged by an EMA and broadcast by DDP.
        self.window: dict[str, Tensor] = {}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of images (3, H, W) in [0, 1]."""
        return self.network(images)

    def on_fit_start(self) -> None:
        """Moves what is no buffer to the device."""
        self.window = {k: v.to(self.device) for k, v in self.window.items()}

    def on_train_start(self) -> None:
        """A network that was just evaluated for its checkpoint goes on in training mode."""
        self.network.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of a batch's losses.

        Raises:
            NonFiniteLoss: one of them is NaN or infinite.
        """
        images, targets = batch
        place = batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(mix(self.config.seed, place))
        losses = self.network(images, [_without_crowds(t) for t in targets])
        total = torch.stack([v.float() for v in losses.values()]).sum()
        if not torch.isfinite(total):
            self._stop(losses, targets)
        self._count({**losses, "train_loss": total})
        if self._logs_this_step():
            values = {f"{name}_step": value.detach() for name, value in losses.items()}
            self.log_dict(values)
            self.log("train_loss_step", total.detach(), prog_bar=True)
        return total

    def on_validation_epoch_start(self) -> None:
        """Forgets the last evaluation's detections."""
        self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects a batch's detections."""
        images, targets = batch
        self.evaluator.update([t["image_id"] for t in targets], self.network(images))

    def on_validation_epoch_end(self) -> None:
        """Logs the point of the curve: losses since the last one, and COCO's figures."""
        self.evaluator.gather()
        seen = len(self.evaluator.image_ids)
        whole = seen == len(self.trainer.datamodule.data.validation)  # type: ignore[attr-defined]
        figures = self.evaluator.figures("all" if whole else "seen")
        window = {
            k: self.trainer.strategy.reduce(v, reduce_op="sum") for k, v in self.window.items()
        }
        steps = window.pop("steps", None)
        means = {k: v / steps for k, v in window.items()} if steps is not None else {}
        self.window = {}
        # Every rank has the same values: they come of sums and of merged detections.
        values = {
            k: torch.as_tensor(v, dtype=torch.float32) for k, v in {**means, **figures}.items()
        }
        self.log_dict(values, prog_bar=True, sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD and its schedule, stepped once per optimizer step."""
        optimizer = build_optimizer(
            self.network,
            self.config.optimizer,
            self.config.learning_rate(),
            fused=self.device.type == "cpu",
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": build_scheduler(optimizer, self.schedule),
                "interval": "step",
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the config, the categories, the conventions and the losses' running sums."""
        checkpoint["batchfree"] = {
            **self.describe(),
            "window": {k: float(v) for k, v in self.window.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the running sums (of rank 0, which wrote them)."""
        if self.trainer.is_global_zero:
            kept = checkpoint["batchfree"]["window"]
            self.window = {k: torch.tensor(v, dtype=torch.float32) for k, v in kept.items()}

    def describe(self) -> dict[str, Any]:
        """What a file of these weights says of itself, in plain values."""
        seen = self.network.transform  # not the config's: it may have adopted those of its weights
        return {
            **describe_detector(self.config, self.categories),
            "conventions": conventions_of(
                self.network.backbone.body, seen.image_mean, seen.image_std
            ),
        }

    def _count(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in {**values, "steps": torch.ones_like(values["train_loss"])}.items():
                held = self.window.get(name, 0.0)
                self.window[name] = held + value.detach().float()

    def _stop(self, losses: dict[str, Tensor], targets: list[dict[str, Any]]) -> None:
        bad = [f"{k} is {float(v.detach())}" for k, v in losses.items() if not torch.isfinite(v)]
        ids = [int(t["image_id"]) for t in targets]
        saved = None
        if self.folder is not None and self.trainer.is_global_zero:
            path = self.folder / "checkpoints" / "non-finite.ckpt"
            with tolerate_write_failure(self.folder):
                # The strategy's own, since the trainer's would wait for the other ranks.
                state = self.trainer._checkpoint_connector.dump_checkpoint()
                self.trainer.strategy.checkpoint_io.save_checkpoint(state, path)
                saved = path
        raise NonFiniteLoss(
            f"step {self.trainer.global_step + 1}: {', '.join(bad)} on images {ids}; "
            + (f"the state before the step is in {saved}; " if saved else "")
            + "look at these images and their boxes, lower optimizer.base_lr, lengthen "
            "schedule.warmup, or set trainer.gradient_clip",
            image_ids=ids,
            checkpoint=saved,
        )

    def _logs_this_step(self) -> bool:
        wants = self.trainer.loggers or self.trainer.progress_bar_callback is not None
        return bool(wants) and (self.global_step + 1) % self.config.trainer.log_every == 0


def _without_crowds(target: dict[str, Any]) -> dict[str, Any]:
    """Boxes, labels and masks of single instances; a crowd is no object to learn."""
    kept = {k: target[k] for k in ("boxes", "labels", "masks")}
    crowd = target.get("iscrowd")
    if crowd is None or not bool(crowd.any()):
        return kept
    return {k: v[crowd == 0] for k, v in kept.items()}
