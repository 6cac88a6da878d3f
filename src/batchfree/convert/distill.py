"""A short training of a converted model towards its original, on unlabelled data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchfree._errors import ConfigError, DataError
from batchfree.audit.tree import tensors
from batchfree.convert.batches import Forward, moved
from batchfree.convert.calibrate import Progress
from batchfree.convert.layers import ConvertedNorm
from batchfree.convert.replacing import copied

_HALF = (torch.float16, torch.bfloat16)


def distill(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    batches: list[Any],
    forward: Forward,
    *,
    steps: int,
    rate: float = 1e-3,
    progress: Progress,
) -> str:
    """Trains the parameters of the model so that layers and outputs come near the original's.

    The loss is the relative squared error of each converted layer's output, their mean, plus that
    of the outputs. Adam, the rate falling to zero along a cosine; both models in eval mode, so that
    what is still random or batch-dependent elsewhere stays still. The parameters stay as they were
    where the loss over all batches is no lower with the new ones.

    Half-precision parameters, in which Adam's steps vanish or overflow, are trained in a float32
    copy of the model and rounded at the end: while it lasts that takes twice the model's size more,
    and gradients and Adam's moments are float32 too.

    Args:
        model: converted; trained in place.
        original: in eval mode; not changed.
        paths: names of the converted layers.
        batches: inputs; passed through in turn, again and again.
        forward: calls a model on a batch.
        steps: how many; 0 does nothing.
        rate: Adam's at first, of 200 steps or more; of fewer its share of them, since Adam's first
            steps are as long as any and lead away.
        progress: told of the steps.

    Returns:
        What to know: that it was of no use; "" where it was.

    Raises:
        DataError: the loss is not finite.
        ConfigError: the model cannot be trained: no gradients, or it does not run in float32.
    """
    targets = _trained(model)
    if not steps or not targets:
        return ""
    half = any(p.dtype in _HALF for p in targets)
    student = _float32(copied(model)) if half else model
    start = [p.detach().clone() for p in targets]
    before = _measured(model, original, paths, batches, forward)
    _train(student, original, paths, batches, forward, steps, rate, progress)
    with torch.no_grad():
        for p, new in zip(targets, _trained(student), strict=True):
            p.copy_(new)
        after = _measured(model, original, paths, batches, forward)
        # Written so that NaN counts as worse.
        better = after < before and all(bool(p.isfinite().all()) for p in targets)
        if not better:
            for p, old in zip(targets, start, strict=True):
                p.copy_(old)
    if better:
        return ""
    return (
        f"the distillation came no nearer in {steps} steps (its loss went from {before:.3g} to "
        f"{after:.3g}): the parameters are those of the calibration"
    )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    fixed = {
        id(p) for m in model.modules() if isinstance(m, ConvertedNorm) for p in (m.scale, m.shift)
    }
    return [p for p in model.parameters() if p.is_floating_point() and id(p) not in fixed]


def _float32(model: nn.Module) -> nn.Module:
    """Half precision in float32, in place; other dtypes stay."""
    return model._apply(lambda t: t.float() if t.dtype in _HALF else t)


def _train(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    batches: list[Any],
    forward: Forward,
    steps: int,
    rate: float,
    progress: Progress,
) -> None:
    wanted = {p: p.requires_grad for p in model.parameters()}
    trained = _trained(model)
    for p in trained:
        p.requires_grad_(True)
    adam = torch.optim.Adam(trained, rate * min(1.0, steps / 200))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    try:
        for step in range(steps):
            progress(f"distillation, step {step + 1} of {steps}", step / steps)
            adam.zero_grad()
            loss = _step(model, original, paths, batches[step % len(batches)], forward)
            if not bool(loss.isfinite()):
                raise DataError(f"the distillation's loss is {float(loss)} at step {step}")
            adam.step()
            schedule.step()
    finally:
        for p, requires_grad in wanted.items():
            p.grad = None
            p.requires_grad_(requires_grad)


def _step(
    model: nn.Module, original: nn.Module, paths: Sequence[str], batch: Any, forward: Forward
) -> Tensor:
    """The loss, with its gradients in the parameters."""
    with torch.no_grad():
        theirs = _outputs(original, paths, moved(batch, original), forward)
    try:
        with torch.enable_grad():
            loss = _loss(_outputs(model, paths, moved(batch, model), forward), theirs)
            if loss.requires_grad:
                loss.backward()
                return loss
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the model cannot be trained, as method='distill' does: {type(error).__name__}: "
            f"{first}; take method='calibrated'"
        ) from error
    raise ConfigError(
        "method='distill' trains, and nothing in the model gives gradients: its forward runs under "
        "torch.no_grad() or inference_mode(); take that off, or method='calibrated'"
    )


@torch.no_grad()
def _measured(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    batches: list[Any],
    forward: Forward,
) -> float:
    """The mean loss over the batches."""
    losses = []
    for batch in batches:
        theirs = _outputs(original, paths, moved(batch, original), forward)
        losses.append(float(_loss(_outputs(model, paths, moved(batch, model), forward), theirs)))
    return sum(losses) / len(losses)


def _outputs(
    model: nn.Module, paths: Sequence[str], batch: Any, forward: Forward
) -> dict[str, list[Tensor]]:
    """The layers' outputs by name, and the model's under ""."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    modules = dict(model.named_modules(remove_duplicate=False))
    handles = []
    for path in paths:

        def keep(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            # A copy: an activation after the layer may work in place.
            found["/" + path].extend(t.clone() for t in tensors(output))

        handles.append(modules[path].register_forward_hook(keep))
    try:
        found[""] = list(tensors(forward(model, batch)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _loss(ours: dict[str, list[Tensor]], theirs: dict[str, list[Tensor]]) -> Tensor:
    layers: list[Tensor] = []
    outputs: list[Tensor] = []
    for path, found in ours.items():
        for a, b in zip(found, theirs.get(path, []), strict=False):
            if a.shape != b.shape or not a.is_floating_point():
                continue
            if a.dtype in _HALF or a.dtype != b.dtype:
                a, b = a.float(), b.float()
            error = (a - b).square().mean() / b.square().mean().clamp_min(1e-12)
            (layers if path else outputs).append(error)
    parts = [torch.stack(p).mean() for p in (layers, outputs) if p]
    if not parts:
        raise ConfigError("method='distill' finds no layer and no output to compare")
    return torch.stack(parts).sum()
