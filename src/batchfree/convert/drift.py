"""How far a converted model stands from its original: each layer's output, and the model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from batchfree.audit.tree import tensors
from batchfree.convert.batches import Forward, run


@dataclass
class Sums:
    """Of pairs of tensors: what cosine and relative error are made of."""

    product: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    difference: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Adds a pair of the same shape."""
        a, b = ours.detach().double().flatten(), theirs.detach().double().flatten()
        self.product += float(a @ b)
        self.ours += float(a @ a)
        self.theirs += float(b @ b)
        self.difference += float((a - b).square().sum())

    @property
    def cosine(self) -> float:
        """Of the angle between the two."""
        scale = (self.ours * self.theirs) ** 0.5
        return self.product / scale if scale > 0 else float("nan")

    @property
    def error(self) -> float:
        """|ours - theirs| / |theirs|."""
        return (self.difference / self.theirs) ** 0.5 if self.theirs > 0 else float("nan")


def measure(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    batches: list[Any],
    forward: Forward,
) -> tuple[dict[str, Sums], Sums, float | None]:
    """Compares two models, in eval mode, on the same batches.

    Returns:
        The sums of each layer's outputs by its name, those of the models' outputs, and the share of
        samples, %, whose largest output is another; None where outputs are no logits (N, classes).
    """
    layers: dict[str, Sums] = defaultdict(Sums)
    whole = Sums()
    other = rows = 0
    for batch in batches:
        theirs: dict[str, list[Tensor]] = defaultdict(list)
        wanted = _run(original, paths, batch, forward, theirs)
        ours: dict[str, list[Tensor]] = defaultdict(list)
        got = _run(model, paths, batch, forward, ours)
        for path, outputs in ours.items():
            for a, b in zip(outputs, theirs[path], strict=False):
                if a.shape == b.shape:
                    layers[path].add(a, b)
        pairs = list(zip(tensors(got), tensors(wanted), strict=False))
        for a, b in pairs:
            if a.shape == b.shape and a.is_floating_point():
                whole.add(a, b)
        if isinstance(got, Tensor) and isinstance(wanted, Tensor) and got.dim() == 2:
            other += int((got.argmax(1) != wanted.argmax(1)).sum())
            rows += len(got)
    return dict(layers), whole, 100 * other / rows if rows else None


def _run(
    model: nn.Module,
    paths: Sequence[str],
    batch: Any,
    forward: Forward,
    into: dict[str, list[Tensor]],
) -> Any:
    modules = dict(model.named_modules(remove_duplicate=False))
    handles = []
    for path in paths:

        def keep(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            # A copy: an activation after the layer may work in place.
            into[path].extend(t.detach().clone() for t in tensors(output))

        handles.append(modules[path].register_forward_hook(keep))
    try:
        return run(model, batch, forward)
    finally:
        for handle in handles:
            handle.remove()
