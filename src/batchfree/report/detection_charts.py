"""The figures of a detection experiment: average precision over images seen."""

from __future__ import annotations

from batchfree.experiments.detection_results import DetectionResults
from batchfree.report import detection_series as series
from batchfree.report.charts import Chart, Line, Panel

_PANELS = (("Boxes", "box_AP"), ("Masks", "mask_AP"))


def detection_charts(results: DetectionResults) -> list[Chart]:
    """The figures that the rows are enough for."""
    panels = [
        Panel(title, lines) for title, figure in _PANELS if (lines := _lines(results, figure))
    ]
    if not panels:
        return []
    drawn = [line for panel in panels for line in panel.lines]
    several = any(len(line.seeds) > 1 for line in drawn)
    band = "Mean over seeds; the band reaches from the lowest seed to the highest."
    return [
        Chart(
            key="curves",
            title="Average precision during training",
            note=(band if several else "One seed.")
            + " The axes are the same in both panels."
            + " Smaller batches take more steps for the same images."
            * (len(series.batches(results)) > 1),
            panels=tuple(panels),
            x_label="images seen in training",
            y_label="AP on unseen digits (%)",
            sizes=(),
            x_end=1.02 * max(line.x[-1] for line in drawn),  # the last marks are whole
            y_top=1.12 * max(max(line.high) for line in drawn) or 1.0,
            rows=results.rows,
            x_unit="images",
        )
    ]


def _lines(results: DetectionResults, figure: str) -> tuple[Line, ...]:
    found = []
    for arm in series.arms(results):
        curve = series.curve(series.rows_of(results, arm), figure)
        if curve is not None:
            found.append(
                Line(
                    label=series.label(results, arm),
                    style=series.style(results, arm),
                    x=curve.images,
                    y=curve.means,
                    seeds=curve.seeds,
                    low=curve.lows,
                    high=curve.highs,
                )
            )
    return tuple(found)
