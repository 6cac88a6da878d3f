"""A Lightning callback that turns BatchNorms into GroupNorms during fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from batchfree._errors import ConfigError
from batchfree.convert import BlendNorm, collapse, set_alpha


class AnnealBlend(Callback):
    """Lowers alpha of every layer of `convert(..., method="blend")` from 1 to 0, linearly in steps.

    At 1 a layer is BatchNorm with fixed statistics, at 0 GroupNorm. Alpha follows from the step
    alone, so a resumed training goes on where it was.

    A checkpoint of the fit holds the layers as they were then. The collapsed module still loads it,
    `trainer.test(ckpt_path="best")` does, where alpha was 0; one from before is part BatchNorm and
    is refused: take `collapse=False` to test such a one, or `until` before the steps that count.

    Args:
        until: the step from which on alpha is 0; None is half of the training, whose length then
            has to be known: from `max_steps`, or from `max_epochs` of data that has a length.
        collapse: put plain GroupNorms in the place of the layers at the end of the fit. The
            module's parameters are new ones from then on.

    Raises:
        ConfigError: `until` is no whole number from 1. When the fit starts: the module holds no
            such layer, or `until` is None and the length of the training is not known. When a
            checkpoint is loaded into the collapsed module: its alpha is not 0.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AnnealBlend(until=500)], max_steps=1000, logger=False)
    """

    def __init__(self, until: int | None = None, *, collapse: bool = True) -> None:
        whole = isinstance(until, int) and not isinstance(until, bool)
        if until is not None and not (whole and until >= 1):
            raise ConfigError(f"until must be at least 1 step and whole, got {until!r}")
        self.until, self.collapse = until, collapse

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks that there is something to anneal, and until when."""
        if not _blends(pl_module):
            raise ConfigError(
                f"{type(pl_module).__name__} holds no layer to anneal: convert its network with "
                "method='blend', or leave AnnealBlend out where it is collapsed already"
            )
        self._until(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Sets alpha for this step."""
        set_alpha(pl_module, max(0.0, 1.0 - trainer.global_step / self._until(trainer)))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collapses the layers."""
        if self.collapse:
            paths = _blends(pl_module)
            set_alpha(pl_module, 0.0)
            collapse(pl_module)
            for path in paths:
                norm = pl_module.get_submodule(path)
                norm.register_load_state_dict_pre_hook(_from_blend)

    def _until(self, trainer: pl.Trainer) -> int:
        if self.until is not None:
            return self.until
        steps = trainer.estimated_stepping_batches
        if not 1 <= steps < math.inf:
            raise ConfigError(
                "half of the training is not known, since its data or its Trainer tells no length: "
                "give AnnealBlend(until=STEP), or Trainer(max_steps=...)"
            )
        return max(1, int(steps) // 2)


def _blends(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, BlendNorm)]


def _from_blend(norm: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes of a `BlendNorm`'s state, where alpha is 0, that of the GroupNorm in its place.

    Raises:
        ConfigError: alpha is not 0.
    """
    alpha = state.get(f"{prefix}alpha")
    if not isinstance(alpha, torch.Tensor):
        return
    if float(alpha) != 0:
        raise ConfigError(
            f"the checkpoint is from alpha = {float(alpha):g}: {prefix[:-1]!r} was part BatchNorm "
            "then, and is a collapsed GroupNorm now; take AnnealBlend(collapse=False) to load it, "
            "or a checkpoint from when alpha was 0"
        )
    weight, bias, ratio, offset = (
        state[f"{prefix}{name}"] for name in ("weight", "bias", "ratio", "offset")
    )
    state[f"{prefix}weight"], state[f"{prefix}bias"] = weight * ratio, bias + offset
    for name in ("alpha", "ratio", "offset", "running_mean", "running_var"):
        state.pop(f"{prefix}{name}", None)
