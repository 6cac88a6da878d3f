"""Data-free and calibrated parameters of the GroupNorms in a converted model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from batchfree._errors import DataError
from batchfree.audit.tree import batch_size, tensors
from batchfree.convert.batches import Forward, run
from batchfree.convert.kinds import Source
from batchfree.convert.moments import Fit, Moments, analytic, fit
from batchfree.convert.planned import PlannedLayer
from batchfree.nn import GroupNorm

Progress = Callable[[str, float], None]


@dataclass
class Seen:
    """What a BatchNorm of the original model saw on the calibration data.

    Attributes:
        order: which it was in the order of the first calls.
        calls: for each batch, how often it was called.
        positions: the fewest positions of an input.
        weight: all positions together.
        mean, square: (C,), weighted sums over them, float64.
    """

    order: int
    calls: list[int]
    positions: int
    weight: float = 0.0
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of the input over all positions, float64."""
        mean = torch.as_tensor(self.mean) / self.weight
        return mean, (torch.as_tensor(self.square) / self.weight - mean.square()).clamp_min(0)


@dataclass
class Work:
    """A layer on its way.

    Attributes:
        row: of the plan.
        source: the BatchNorm.
        norm: the GroupNorm in its place.
        seen: of the original on the calibration data; None where it did not run, or without data.
        fit: what was found for it.
    """

    row: PlannedLayer
    source: Source
    norm: GroupNorm
    seen: Seen | None = None
    fit: Fit | None = field(default=None, repr=False)


def observe(
    model: nn.Module, paths: Sequence[str], batches: list[Any], forward: Forward, progress: Progress
) -> dict[str, Seen]:
    """What the layers of these names see when the model, in eval mode, runs on the batches."""
    found: dict[str, Seen] = {}
    number = 0

    def hook(path: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = _input(args, kwargs)
            moments = _checked(Moments.of(x), path)
            seen = found.get(path)
            positions = int(moments.positions.min()) if len(moments.positions) else 1
            if seen is None:
                seen = found[path] = Seen(len(found), [0] * len(batches), positions)
            seen.calls[number] += 1
            seen.positions = min(seen.positions, positions)
            weights = moments.positions.unsqueeze(1)
            seen.weight += float(weights.sum())
            seen.mean = seen.mean + (weights * moments.mean).sum(0)
            square = moments.variance + moments.mean.square()
            seen.square = seen.square + (weights * square).sum(0)

        return look

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[p].register_forward_pre_hook(hook(p), with_kwargs=True) for p in paths]
    try:
        for number, batch in enumerate(batches):
            progress("the original on the calibration data", number / len(batches))
            run(model, batch, forward)
    finally:
        for handle in handles:
            handle.remove()
    return found


def affine_of(work: Work) -> tuple[Tensor, Tensor] | None:
    """BatchNorm in eval mode as u = slope x + offset, (C,) float64; None where nothing tells."""
    source = work.source
    mean, variance = source.running_mean, source.running_var
    if mean is None or variance is None:
        if work.seen is None:
            return None
        mean, variance = work.seen.moments()
    slope = source.weight.double().cpu() * (variance.double().cpu() + source.eps).rsqrt()
    return slope, source.bias.double().cpu() - slope * mean.double().cpu()


def set_analytic(work: Work, anchor: float | None) -> None:
    """Sets the norm by its running statistics; where there are none it keeps gamma and beta."""
    affine = affine_of(work)
    if affine is None:
        return
    mean, variance = work.source.running_mean, work.source.running_var
    if mean is None or variance is None:
        assert work.seen is not None
        mean, variance = work.seen.moments()
    moments = mean.double().cpu(), variance.double().cpu()
    found = analytic(
        *moments,
        *affine,
        work.row.groups,
        work.norm.eps,
        anchor=anchor,
        dtype=work.source.weight.dtype,
    )
    _set(work, found)


class Calibration:
    """Fits each layer on what the layers before it, fitted already, feed it.

    A layer's input is looked at in a forward that stops there. With all data in one batch a single
    forward fits them all, each in passing.

    Args:
        model: the converted model, in eval mode.
        works: its layers.
        batches: the calibration data.
        forward: calls the model on a batch.
        anchor: of `moments.balance`.
        progress: told of each layer.

    Attributes:
        runs: forward passes over the whole data that were begun.
        skipped: names of layers that did not run in the converted model.
    """

    def __init__(
        self,
        model: nn.Module,
        works: Sequence[Work],
        batches: list[Any],
        forward: Forward,
        *,
        anchor: float | None,
        progress: Progress,
    ) -> None:
        ran = [w for w in works if w.seen is not None]
        self.pending = sorted(ran, key=lambda w: w.seen.order if w.seen else 0)
        self.total = len(self.pending)
        self.model, self.batches, self.forward = model, batches, forward
        self.anchor, self.progress = anchor, progress
        self.parts: list[Moments] = []
        self.calls = self.number = 0
        self.samples = self.seen_samples = 0
        self.skipped: list[str] = []

    @property
    def runs(self) -> float:
        """Forward passes over the whole data that were begun."""
        return self.samples / max(1, self.seen_samples)

    def __call__(self) -> None:
        """Fits every layer."""
        self.seen_samples = sum(batch_size(b) or 0 for b in self.batches)
        handles = [
            w.norm.register_forward_pre_hook(self._hook(w), with_kwargs=True) for w in self.pending
        ]
        try:
            while self.pending:
                self._advance()
        finally:
            for handle in handles:
                handle.remove()

    def _advance(self) -> None:
        head, left = self.pending[0], len(self.pending)
        self.parts = []
        for number, batch in enumerate(self.batches):
            self.number, self.calls = number, 0
            self.samples += batch_size(batch) or 0
            with contextlib.suppress(_Fitted):
                run(self.model, batch, self.forward)
        if len(self.pending) == left:
            if self.parts:
                self._fit(head)
            else:
                self.skipped.append(head.row.path)
                self.pending.pop(0)

    def _hook(self, work: Work) -> Any:
        def arrive(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.pending or work is not self.pending[0]:
                return
            assert work.seen is not None
            moments = Moments.of(_input(args, kwargs))
            self.parts.append(_checked(moments, work.row.path, "converted"))
            self.calls += 1
            if self.calls < work.seen.calls[self.number]:
                return
            if len(self.batches) > 1:
                raise _Fitted
            self._fit(work)
            self.calls = 0
            if work.seen.calls[0] > 1:
                raise _Fitted  # its first calls ran on what it was before

        return arrive

    def _fit(self, work: Work) -> None:
        self.progress(work.row.path, 1 - len(self.pending) / self.total)
        affine = affine_of(work)
        assert affine is not None
        assert work.seen is not None
        slope, offset = affine
        variance = work.source.running_var
        best: Fit | None = None
        moments = Moments.joined(self.parts)
        for groups in work.row.candidates or [work.row.groups]:
            found = fit(
                moments,
                slope,
                offset,
                groups,
                work.norm.eps,
                anchor=self.anchor,
                target_mean=slope * work.seen.moments()[0] + offset,
                least_variance=None if variance is None else variance.double().cpu() / 4,
                dtype=work.source.weight.dtype,
            )
            # Of errors that are nearly the same the larger number of groups: it is GroupNorm's own.
            if best is None or found.error <= best.error * 1.02:
                best = found
        assert best is not None
        _set(work, best)
        self.parts = []
        self.pending.pop(0)


class _Fitted(Exception):
    """Ends a forward at the layer that it was made for."""


def _set(work: Work, found: Fit) -> None:
    norm = work.norm
    work.fit = found
    work.row.choose(found.groups)
    norm.num_groups = found.groups
    with torch.no_grad():
        for name in ("weight", "bias", "scale", "shift"):
            own, value = getattr(norm, name, None), getattr(found, name)
            if own is not None and value is not None:
                own.copy_(value)
                if not bool(own.isfinite().all()):
                    raise DataError(
                        f"{name} of the GroupNorm in the place of layer {work.row.path!r} leaves "
                        f"the range of {str(own.dtype).removeprefix('torch.')}; convert in float32 "
                        f"(model.float()), or keep it: keep={work.row.path!r}"
                    )


def _input(args: Any, kwargs: Any) -> Tensor:
    return next(tensors((args, kwargs)))


def _checked(moments: Moments, path: str, model: str = "original") -> Moments:
    """The moments, where they are numbers.

    Raises:
        DataError: they are not.
    """
    if bool(moments.mean.isfinite().all() and moments.variance.isfinite().all()):
        return moments
    if model == "original":
        raise DataError(
            f"the input of layer {path!r} holds NaN or infinity on the calibration data; look at "
            "the weights and at the data"
        )
    raise DataError(
        f"the input of layer {path!r} holds NaN or infinity in the converted model, and none in "
        "the original: a layer converted before it leaves the range of its dtype; convert in "
        "float32 (model.float()), or keep that layer with keep="
    )
