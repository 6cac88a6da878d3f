"""Which rows of a whole batch's tensor belong to the samples that ran apart, and how far apart the
two are.

A tensor need not have its samples in dimension 0: video models fold frames into it, and a reshape
may fold samples into the channels. A detector's heads have one row a proposal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Apart:
    """Which samples of the batch run apart: `samples` of `size`."""

    samples: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Pair:
    """A tensor of the run apart, and the rows of the batch's tensor that should equal it.

    Attributes:
        apart: as it came out.
        batch: the rows of the batch, of the same shape; None where none belong to it.
        grows: a dimension beside that of the samples is as long as the batch.
    """

    apart: Tensor
    batch: Tensor | None
    grows: bool = False


def pair(batch: Tensor, apart: Tensor, who: Apart, rows: Tensor | None = None) -> Pair:
    """Pairs a tensor with its rows in the batch's tensor.

    Args:
        batch: from the run of the whole batch.
        apart: from the run of some samples.
        who: which samples.
        rows: rows of dimension 0 that are known to belong to it, where the input told.
    """
    if batch.dim() != apart.dim():
        # squeeze() takes the batch's dimension along where there is one sample.
        squeezed = len(who.samples) == 1 and batch.shape[:1] == (who.size,)
        if squeezed and batch.shape[1:] == apart.shape:
            return Pair(apart, batch[who.samples[0]])
        return Pair(apart, None)
    if rows is not None and apart.dim() and len(rows) == apart.shape[0]:
        known = batch[rows] if rows.max() < batch.shape[0] else None
        if known is not None and known.shape == apart.shape:
            return Pair(apart, known)
    if batch.shape == apart.shape:
        return Pair(apart, batch)
    differ = [d for d in range(batch.dim()) if batch.shape[d] != apart.shape[d]]
    scaled = [d for d in differ if _scales(batch.shape[d], apart.shape[d], who)]
    if not scaled:
        return Pair(apart, None)
    if len(differ) > 1:
        return Pair(apart, None, grows=len(differ) == len(scaled))
    chosen = [
        batch.index_select(scaled[0], index)
        for index in _rows_of(batch.shape[scaled[0]], who, batch.device)
    ]
    return Pair(apart, min(chosen, key=lambda rows: distance(rows, apart)))


def _scales(in_batch: int, apart: int, who: Apart) -> bool:
    return in_batch * len(who.samples) == apart * who.size and in_batch % who.size == 0


def _rows_of(length: int, who: Apart, device: torch.device) -> list[Tensor]:
    """The rows of the samples where each has a run of them, and where they are dealt in turn."""
    each = length // who.size
    samples = torch.tensor(who.samples, device=device)
    steps = torch.arange(each, device=device)
    runs = (samples[:, None] * each + steps).flatten()
    turns = (steps[:, None] * who.size + samples).flatten()
    return [runs] if each == 1 else [runs, turns]


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the root mean square of the values.

    Of integers and booleans 1 where any differs. NaN equals NaN; where only one is NaN or infinite
    the distance is infinite.
    """
    if a.numel() == 0 or a is b:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float(not torch.equal(a, b))
    if torch.equal(a, b):
        return 0.0
    a, b = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (a, b))
    finite = a.isfinite() & b.isfinite()
    if not finite.all():
        same = (a == b) | (a.isnan() & b.isnan())
        if not bool((same | finite).all()):
            return float("inf")
        a, b = a[finite], b[finite]
        if a.numel() == 0:
            return 0.0
    largest = (a - b).abs().max()
    # Of the larger of the two: one of them may be all zero.
    scale = torch.maximum(a.abs().square().mean(), b.abs().square().mean()).sqrt()
    return (largest / scale.clamp_min(torch.finfo(a.dtype).tiny)).item()


def find_rows(batch: Tensor, apart: Tensor) -> Tensor | None:
    """Where in dimension 0 of the batch's tensor the rows of another stand, if all of them do.

    Of several equal rows the first counts.
    """
    if batch.dim() < 2 or batch.dim() != apart.dim() or batch.shape[1:] != apart.shape[1:]:
        return None
    if 0 in (batch.shape[0], apart.shape[0]) or not batch.is_floating_point():
        return None
    flat, wanted = batch.flatten(1).double(), apart.flatten(1).double()
    # Not random: this runs while the model's own draws are watched.
    steps = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64, device=flat.device)
    directions = torch.sin(steps[:, None] * steps.new_tensor([0.7, 1.3, 1.9, 2.9]))
    rows = torch.cdist(wanted @ directions, flat @ directions).argmin(1)
    return rows if distance(batch[rows], apart) < 1e-4 else None
