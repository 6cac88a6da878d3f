"""The figures of a detection experiment: average precision over images seen."""

from __future__ import annotations

from collections.abc import Sequence

from batchfree.experiments.detection_results import Arm, DetectionResults
from batchfree.report import detection_series as series
from batchfree.report.charts import Chart, Line, Panel

_PANELS = (("Boxes", "box_AP"), ("Masks", "mask_AP"))


def detection_charts(results: DetectionResults) -> list[Chart]:
    """The figures that the rows are enough for, on the same axes.

    One for both batches of `scratch`, and one for each of `detection`, which has six arms.
    """
    batches: list[int | None] = [None]
    if results.experiment == "detection":
        batches = [*series.batches(results)]
    drawn = [(batch, panels) for batch in batches if (panels := _panels(results, batch))]
    lines = [line for _, panels in drawn for panel in panels for line in panel.lines]
    if not lines:
        return []
    x_end = 1.02 * max(line.x[-1] for line in lines)  # the last marks are whole
    y_top = 1.12 * max(max(line.high) for line in lines) or 1.0
    return [_chart(results, batch, panels, x_end, y_top) for batch, panels in drawn]


def _chart(
    results: DetectionResults,
    batch: int | None,
    panels: Sequence[Panel],
    x_end: float,
    y_top: float,
) -> Chart:
    several = any(len(line.seeds) > 1 for panel in panels for line in panel.lines)
    band = "Mean over seeds; the band reaches from the lowest seed to the highest."
    both = len(series.batches(results)) > 1
    apart = both and batch is not None
    return Chart(
        key=f"curves-batch-{batch}" if apart else "curves",
        title="Average precision during training" + f", batch {batch}" * apart,
        note=(band if several else "One seed.")
        + (" The axes are the same in all panels." if both else " The axes are the same in both.")
        + " Smaller batches take more steps for the same images." * both,
        panels=tuple(panels),
        x_label="images seen in training",
        y_label="AP on unseen digits (%)",
        sizes=(),
        x_end=x_end,
        y_top=y_top,
        rows=tuple(r for r in results.rows if batch is None or r.batch_size == batch),
        x_unit="images",
    )


def _panels(results: DetectionResults, batch: int | None) -> list[Panel]:
    arms = [arm for arm in series.arms(results) if batch is None or arm.batch_size == batch]
    found = ((title, _lines(results, arms, figure)) for title, figure in _PANELS)
    return [Panel(title, lines) for title, lines in found if lines]


def _lines(results: DetectionResults, arms: Sequence[Arm], figure: str) -> tuple[Line, ...]:
    found = []
    for arm in arms:
        curve = series.curve(series.rows_of(results, arm), figure)
        if curve is not None:
            found.append(
                Line(
                    label=series.label(results, arm, batch=results.experiment == "scratch"),
                    style=series.style(results, arm),
                    x=curve.images,
                    y=curve.means,
                    seeds=curve.seeds,
                    low=curve.lows,
                    high=curve.highs,
                )
            )
    return tuple(found)
