"""How far a converted model stands from its original: each layer's output, and the model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchfree._errors import DataError
from batchfree.audit.tree import children, tensors
from batchfree.convert.batches import Forward, run


@dataclass
class Sums:
    """Of pairs of tensors: what cosine and relative error are made of."""

    product: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    difference: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Adds a pair of the same shape, where theirs is finite; complex numbers as pairs."""
        a, b = (
            (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double().flatten()
            for t in (ours.detach(), theirs.detach())
        )
        a, b = a[b.isfinite()], b[b.isfinite()]
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


@dataclass
class Drift:
    """What `measure` found.

    Attributes:
        layers: of each layer's outputs, by its name.
        outputs: of the models' outputs; None where they cannot be compared.
        uncompared: why.
        changed: share of samples, %, whose largest output is another; None where outputs are no
            logits (N, classes).
    """

    layers: dict[str, Sums]
    outputs: Sums | None
    uncompared: str
    changed: float | None


def measure(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    batches: list[Any],
    forward: Forward,
) -> Drift:
    """Compares two models, in eval mode, on the same batches.

    Raises:
        DataError: the model gives NaN or infinity where the original gives numbers.
    """
    layers: dict[str, Sums] = defaultdict(Sums)
    whole = Sums()
    other = rows = 0
    why = ""
    pairs: list[tuple[Tensor, Tensor]]
    for batch in batches:
        theirs: dict[str, list[Tensor]] = defaultdict(list)
        wanted = _run(original, paths, batch, forward, theirs)
        ours: dict[str, list[Tensor]] = defaultdict(list)
        got = _run(model, paths, batch, forward, ours)
        for path, outputs in ours.items():
            for a, b in zip(outputs, theirs[path], strict=False):
                if a.shape == b.shape:
                    _check_numbers(a, b, path)
                    layers[path].add(a, b)
        if _are_detections(wanted):
            pairs, reason = [], "they are detections, whose number and order are each model's own"
        else:
            pairs, reason = _pairs(list(tensors(got)), list(tensors(wanted)))
        why = why or reason
        for a, b in pairs:
            _check_numbers(a, b)
            whole.add(a, b)
        if pairs and _are_logits(got) and _are_logits(wanted):
            other += int((got.argmax(1) != wanted.argmax(1)).sum())
            rows += len(got)
    if not why and whole.theirs == 0:
        why = "the original's are all zero"
    return Drift(dict(layers), None if why else whole, why, 100 * other / rows if rows else None)


def _pairs(ours: list[Tensor], theirs: list[Tensor]) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Outputs to compare, one by one, or why they cannot be."""
    if len(ours) != len(theirs):
        return [], f"the original gives {len(theirs)} tensors, the result {len(ours)}"
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return [], f"their shapes differ, {tuple(b.shape)} and {tuple(a.shape)}"
    pairs = [
        (a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point() or a.is_complex()
    ]
    if not ours:
        return [], "they hold no tensor"
    if not pairs:
        return [], f"they are no measures but {str(ours[0].dtype).removeprefix('torch.')} values"
    if not any(a.numel() for a, _ in pairs):
        return [], "they are empty"
    return pairs, ""


def _are_detections(output: Any) -> bool:
    """Whether there are boxes with scores in it, as torchvision's detectors give them."""
    found = children(output)
    if found is None:
        return False
    parts = dict(found[0])
    return {"boxes", "scores"} <= parts.keys() or any(map(_are_detections, parts.values()))


def _are_logits(output: Any) -> bool:
    """Whether a largest one of a sample's outputs can be told."""
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and output.dim() == 2
        and output.shape[1] > 1
    )


def _check_numbers(ours: Tensor, theirs: Tensor, path: str | None = None) -> None:
    if not bool((~ours.isfinite() & theirs.isfinite()).any()):
        return
    dtype = str(ours.dtype).removeprefix("torch.")
    what = "the outputs" if path is None else f"the output of layer {path!r}"
    keep = "keep layers with keep=" if path is None else f"keep it: keep={path!r}"
    raise DataError(
        f"{what} hold NaN or infinity after the conversion and numbers before it: {dtype} does not "
        f"reach that far, perhaps; convert in float32 (model.float()), or {keep}"
    )


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
