"""A short training of a converted model towards its original, on unlabelled data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchfree._errors import DataError
from batchfree.audit.tree import tensors
from batchfree.convert.batches import Forward, moved
from batchfree.convert.calibrate import Progress
from batchfree.convert.layers import ConvertedNorm


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
) -> None:
    """Trains the parameters of the model so that layers and outputs come near the original's.

    The loss is the relative squared error of each converted layer's output, their mean, plus that
    of the outputs. Adam, the rate falling to zero along a cosine; both models in eval mode, so that
    what is still random or batch-dependent elsewhere stays still.

    Args:
        model: converted; trained in place.
        original: in eval mode; not changed.
        paths: names of the converted layers.
        batches: inputs; passed through in turn, again and again.
        forward: calls a model on a batch.
        steps: how many; 0 does nothing.
        rate: Adam's, at first.
        progress: told of the steps.

    Raises:
        DataError: the loss is not finite.
    """
    wanted = {p: p.requires_grad for p in model.parameters()}
    fixed = {
        id(p) for m in model.modules() if isinstance(m, ConvertedNorm) for p in (m.scale, m.shift)
    }
    trained = [p for p in model.parameters() if p.is_floating_point() and id(p) not in fixed]
    if not steps or not trained:
        return
    for p in trained:
        p.requires_grad_(True)
    adam = torch.optim.Adam(trained, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    try:
        for step in range(steps):
            progress(f"distillation, step {step + 1} of {steps}", step / steps)
            batch = batches[step % len(batches)]
            with torch.no_grad():
                theirs = _outputs(original, paths, moved(batch, original), forward)
            with torch.enable_grad():
                ours = _outputs(model, paths, moved(batch, model), forward)
                loss = _loss(ours, theirs)
                adam.zero_grad()
                loss.backward()
            if not bool(loss.isfinite()):
                raise DataError(f"the distillation's loss is {float(loss)} at step {step}")
            adam.step()
            schedule.step()
    finally:
        for p, requires_grad in wanted.items():
            p.grad = None
            p.requires_grad_(requires_grad)


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
            error = (a - b).square().mean() / b.square().mean().clamp_min(1e-12)
            (layers if path else outputs).append(error)
    parts = [torch.stack(p).mean() for p in (layers, outputs) if p]
    return torch.stack(parts).sum()
