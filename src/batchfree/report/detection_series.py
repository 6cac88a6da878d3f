"""Rows of detectors to numbers: means and ranges over seeds, by arm, and curves over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from batchfree.experiments.detection_results import (
    SCRATCH,
    Arm,
    DetectionResults,
    DetectionRow,
)
from batchfree.report.styles import Style, norm_label, norm_style

_MARKS = (("solid", "circle"), ("dash", "square"), ("dot", "diamond"), ("dashdot", "triangle-up"))
_LOOKS = {
    ("gn", "gn", "fine-tuned"): ("gn", "#0068a8", "#5cb8f5", "solid", "square"),
    ("gn", "gn", "scratch"): ("gn-scratch", "#0068a8", "#5cb8f5", "dot", "triangle-up"),
    ("frozen_bn", "none", "fine-tuned"): ("fbn", "#4a4f5e", "#c3c8d4", "solid", "diamond"),
    ("frozen_bn", "gn", "fine-tuned"): ("fbn-gn", "#00805c", "#3ccfa0", "dash", "triangle-up"),
    ("frozen_bn", "bn", "fine-tuned"): ("fbn-bn", "#c9530a", "#ff9b5e", "dash", "circle"),
    ("bn", "bn", "fine-tuned"): ("bn", "#a8478a", "#e79bcb", "dashdot", "triangle-down"),
}


@dataclass(frozen=True)
class Cell:
    """A figure of an arm over its seeds.

    Attributes:
        mean, low, high: over the seeds that have it, percent.
        seeds: these seeds, ascending.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]

    def is_apart(self, other: Cell) -> bool:
        """Whether both have several seeds and their ranges do not overlap."""
        several = min(len(self.seeds), len(other.seeds)) > 1
        return several and (self.low > other.high or self.high < other.low)


@dataclass(frozen=True)
class Curve:
    """A figure over images seen, with its range over the seeds."""

    images: tuple[int, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    seeds: tuple[int, ...]


def arms(results: DetectionResults) -> list[Arm]:
    """What has rows, in the order of the rows."""
    return list(dict.fromkeys(row.arm for row in results.rows))


def find(results: DetectionResults, norm: str, head: str, start: str, batch: int) -> Arm | None:
    """An arm, where it has rows."""
    arm = Arm(norm, head, start, batch)
    return arm if arm in arms(results) else None


def batches(results: DetectionResults) -> list[int]:
    """The batches that have rows, largest first."""
    return sorted({row.batch_size for row in results.rows}, reverse=True)


def rows_of(results: DetectionResults, arm: Arm) -> list[DetectionRow]:
    """An arm's rows, by seed."""
    return sorted((row for row in results.rows if row.arm == arm), key=lambda row: row.seed)


def cell(results: DetectionResults, arm: Arm, figure: str = "box_AP") -> Cell | None:
    """An arm's figure, over the runs that did not diverge; None where there is none."""
    found = {
        row.seed: value
        for row in rows_of(results, arm)
        if row.failure is None and (value := row.figures.get(figure)) is not None
    }
    if not found:
        return None
    values = found.values()
    return Cell(fmean(values), min(values), max(values), tuple(sorted(found)))


def diverged(results: DetectionResults, arm: Arm) -> list[DetectionRow]:
    """An arm's runs that ended early."""
    return [row for row in rows_of(results, arm) if row.failure is not None]


def curve(rows: Sequence[DetectionRow], figure: str) -> Curve | None:
    """`box_AP` or `mask_AP` over images, over the runs that did not diverge.

    Only steps at which every run was evaluated count, so that no point averages fewer seeds than
    another; None where there is no such step.
    """
    runs = [
        {
            point.step * row.batch_size: value
            for point in row.curve
            if (value := getattr(point, figure)) is not None
        }
        for row in rows
        if row.failure is None
    ]
    images = sorted(set.intersection(*map(set, runs))) if runs else []
    if not images:
        return None
    values = [[run[x] for run in runs] for x in images]
    return Curve(
        images=tuple(images),
        means=tuple(map(fmean, values)),
        lows=tuple(map(min, values)),
        highs=tuple(map(max, values)),
        seeds=tuple(sorted(row.seed for row in rows if row.failure is None)),
    )


def label(results: DetectionResults, arm: Arm, *, batch: bool = True) -> str:
    """What an arm is called: `BN*, GN heads`; with its batch, where there are several."""
    name, head = _norm(arm.norm), _norm(arm.head_norm)
    if arm.head_norm != arm.norm:
        name += ", plain heads" if arm.head_norm == "none" else f", {head} heads"
    if results.experiment == "detection" and arm.start == SCRATCH:
        name += ", from scratch"
    if batch and (results.experiment == "scratch" or len(batches(results)) > 1):
        name += f", batch {arm.batch_size}"
    return name


def style(results: DetectionResults, arm: Arm) -> Style:
    """An arm's look: by its norms when fine-tuned, by norm and batch from scratch."""
    looks = _LOOKS.get((arm.norm, arm.head_norm, arm.start))
    if looks is not None and results.experiment == "detection":
        return Style(*looks)  # its batches have a chart each
    norms = {item.norm for item in arms(results)}
    base = norm_style(arm.norm, norms)
    same = [item for item in arms(results) if item.norm == arm.norm]
    dash, marker = _MARKS[same.index(arm) % len(_MARKS)]
    return Style(f"{base.key}-{same.index(arm)}", base.light, base.dark, dash, marker)


def _norm(norm: str) -> str:
    return {"frozen_bn": "BN*", "none": "no norm"}.get(norm) or norm_label(norm)
