"""A Lightning callback that turns BatchNorms into GroupNorms during fine-tuning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from batchfree.convert import collapse, set_alpha


class AnnealBlend(Callback):
    """Lowers alpha of every layer of `convert(..., method="blend")` from 1 to 0, linearly in steps.

    At 1 a layer is BatchNorm with fixed statistics, at 0 GroupNorm. Alpha follows from the step
    alone, so a resumed training goes on where it was.

    Args:
        until: the step from which on alpha is 0; None is half of the training.
        collapse: put plain GroupNorms in the place of the layers at the end of the fit. The
            module's parameters are new ones from then on.

    Raises:
        ValueError: `until` is below 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AnnealBlend(until=500)], max_steps=1000, logger=False)
    """

    def __init__(self, until: int | None = None, *, collapse: bool = True) -> None:
        if until is not None and until < 1:
            raise ValueError(f"until must be at least 1 step, got {until}")
        self.until, self.collapse = until, collapse

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Sets alpha for this step."""
        until = self.until
        if until is None:
            total = trainer.estimated_stepping_batches
            until = max(1, int(total) // 2)
        set_alpha(pl_module, max(0.0, 1.0 - trainer.global_step / until))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collapses the layers."""
        if self.collapse:
            set_alpha(pl_module, 0.0)
            collapse(pl_module)
