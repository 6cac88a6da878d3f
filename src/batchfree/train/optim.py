"""The optimizer: parameter groups, and the learning rate's schedule as a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from batchfree.train.config import OptimizerConfig, ScheduleConfig

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_norm_parameters: bool
) -> list[dict[str, object]]:
    """The model's trainable parameters, with their weight decay.

    Args:
        model: the network.
        weight_decay: the L2 penalty's factor.
        decay_norm_parameters: False puts every norm's gamma and beta in a group without decay.

    Returns:
        One group, or two: the second holds the norms' parameters and decays nothing.

    Source: Wu & He 2018, section 4.1 (ImageNet: decay on all, gamma and beta included) and 4.2
    (COCO: none on gamma and beta).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
        >>> groups = parameter_groups(net, 1e-4, decay_norm_parameters=False)
        >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
        [(2, 0.0001), (2, 0.0)]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if decay_norm_parameters:
        return [{"params": parameters, "weight_decay": weight_decay}]
    norm_ids = {
        id(p)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for p in module.parameters(recurse=False)
    }
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if id(p) not in norm_ids], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in norm_ids], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, learning_rate: float, *, fused: bool = False
) -> torch.optim.SGD:
    """SGD over `parameter_groups`; `fused` takes PyTorch's one-kernel step."""
    return torch.optim.SGD(
        parameter_groups(
            model, config.weight_decay, decay_norm_parameters=config.decay_norm_parameters
        ),
        lr=learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused or None,
    )


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule, every length in optimizer steps.

    Args:
        kind: `cosine`, `step` or `constant`.
        total: steps of the training.
        warmup: steps of linear warm-up; the factor reaches 1 at this step.
        warmup_factor: the factor at step 0 of a warm-up.
        milestones: steps from which on another `gamma` is multiplied in.
        gamma: that factor.
        final_factor: what `cosine` falls to at `total`.

    Example:
        >>> schedule = Schedule("step", total=100, milestones=(30, 60, 90))
        >>> [round(schedule.factor(s), 4) for s in (0, 29, 30, 60, 99)]
        [1.0, 1.0, 0.1, 0.01, 0.001]
    """

    kind: str
    total: int
    warmup: int = 0
    warmup_factor: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_factor: float = 0.0

    def factor(self, step: int) -> float:
        """The factor of the learning rate at optimizer step `step`, counted from 0."""
        if step < self.warmup:
            return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup
        if self.kind == "step":
            return self.gamma ** sum(step >= m for m in self.milestones)
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * done)) / 2


def build_schedule(
    config: ScheduleConfig, *, total_steps: int, steps_per_epoch: float | None, learning_rate: float
) -> Schedule:
    """The config's schedule in steps.

    Args:
        config: the schedule.
        total_steps: optimizer steps of the training.
        steps_per_epoch: optimizer steps in a pass over the data; None where it has no epochs.
        learning_rate: the scaled learning rate, which decides on the warm-up.
    """
    unit = {"fraction": float(total_steps), "epochs": steps_per_epoch or 0.0, "steps": 1.0}
    scale = unit[config.unit]
    warm = learning_rate > config.warmup_above_lr
    return Schedule(
        kind=config.kind,
        total=total_steps,
        warmup=round(config.warmup * scale) if warm else 0,
        warmup_factor=config.warmup_factor,
        milestones=tuple(round(m * scale) for m in config.milestones),
        gamma=config.gamma,
        final_factor=config.final_factor,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LambdaLR:
    """A scheduler that follows `schedule`, to be stepped once per optimizer step."""

    # A function, not the bound method: LambdaLR would save the state of a callable object.
    def factor(step: int) -> float:
        return schedule.factor(step)

    return LambdaLR(optimizer, factor)
