"""Rows to numbers: means and spreads over seeds, by norm and size, and curves over steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from batchfree.experiments.results import Measured, Results, Row
from batchfree.report.styles import norm_order


@dataclass(frozen=True)
class Cell:
    """The validation error of one norm at one normalisation batch, over seeds.

    Attributes:
        norm, size: which.
        mean, low, high: mean, lowest and highest validation error over the seeds, in %.
        seeds: the seeds, ascending.
        shared: the runs do not depend on the normalisation batch and stand for every size.
    """

    norm: str
    size: int
    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    shared: bool


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps, averaged over the seeds that were measured at all of them."""

    steps: tuple[int, ...]
    means: tuple[float, ...]
    seeds: tuple[int, ...]


def norms(results: Results) -> list[str]:
    """The norms that have rows, in the order of figures and tables."""
    return norm_order({row.norm for row in results.rows})


def rows_at(results: Results, norm: str, size: int) -> list[Row]:
    """The runs of a norm at a size: those made at it, else those that stand for every size."""
    own = [row for row in results.rows if row.norm == norm]
    exact = [row for row in own if row.normalization_batch == size]
    return exact or [row for row in own if row.normalization_batch is None]


def is_shared(results: Results, norm: str) -> bool:
    """Whether a norm has rows and every one of them stands for all sizes."""
    own = [row for row in results.rows if row.norm == norm]
    return bool(own) and all(row.normalization_batch is None for row in own)


def cell(results: Results, norm: str, size: int) -> Cell | None:
    """A norm's error at a size, or None where no run gives it."""
    rows = rows_at(results, norm, size)
    if not rows:
        return None
    errors = [row.val_error for row in rows]
    return Cell(
        norm=norm,
        size=size,
        mean=fmean(errors),
        low=min(errors),
        high=max(errors),
        seeds=tuple(sorted(row.seed for row in rows)),
        shared=all(row.normalization_batch is None for row in rows),
    )


def cells(results: Results, norm: str) -> list[Cell]:
    """A norm's errors at every size that has one, from the largest size to the smallest."""
    found = (cell(results, norm, size) for size in results.sizes)
    return [item for item in found if item is not None]


def curve(rows: Sequence[Row], quantity: str) -> Curve | None:
    """The mean of `val_error` or `train_error` over steps, over the runs.

    Only steps at which every run was measured count, so that no step averages fewer seeds than
    another; None where there is no such step.
    """
    runs = [_measured(row, quantity) for row in rows]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
        return None
    return Curve(
        steps=tuple(steps),
        means=tuple(fmean(run[step] for run in runs) for step in steps),
        seeds=tuple(sorted(row.seed for row in rows)),
    )


def seeds(rows: Iterable[Measured]) -> list[int]:
    """The seeds of some rows, ascending, each once."""
    return sorted({row.seed for row in rows})


def _measured(row: Row, quantity: str) -> dict[int, float]:
    points = ((point.step, getattr(point, quantity)) for point in row.curve)
    return {step: value for step, value in points if value is not None}
