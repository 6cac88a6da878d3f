"""The tables of a detection experiment's page."""

from __future__ import annotations

from batchfree.experiments.detection_results import HEADLINE_FIGURES, DetectionResults
from batchfree.experiments.paper import PaperDetection
from batchfree.report import detection_series as series
from batchfree.report.styles import norm_label
from batchfree.report.tables import Entry, Table

_NONE = Entry("–")


def our_table(results: DetectionResults) -> Table:
    """Our average precision by arm."""
    rows = []
    for arm in series.arms(results):
        failed = series.diverged(results, arm)
        entries = [Entry(series.label(results, arm))]
        for figure in HEADLINE_FIGURES:
            cell = series.cell(results, arm, figure)
            notes = (f"{len(failed)} diverged",) if failed else ()
            if cell is None:
                entries.append(Entry("diverged", notes) if failed else _NONE)
                continue
            count = len(cell.seeds)
            spread = (f"{cell.low:.1f}–{cell.high:.1f}",) if count > 1 else ("one seed",)
            entries.append(Entry(f"{cell.mean:.1f}", (*spread, *notes)))
        rows.append(tuple(entries))
    return Table(
        caption="AP (%) on unseen digits at the end of training; mean and range over seeds",
        head=("Norm", "Box AP", "AP50", "AP75", "Mask AP", "AP50", "AP75"),
        rows=tuple(rows),
    )


def paper_table(paper: PaperDetection) -> Table:
    """The paper's average precision."""
    return Table(
        caption="AP (%) on COCO",
        head=("Norm", "Box AP", "Mask AP", "Where"),
        rows=tuple(
            (
                Entry(row.label),
                *(
                    _NONE if value is None else Entry(f"{value:.1f}")
                    for value in (row.box_AP, row.mask_AP)
                ),
                Entry(row.note),
            )
            for row in paper.rows
        ),
    )


def category_table(results: DetectionResults) -> Table:
    """Box AP by category, the mean over the seeds."""
    arms = series.arms(results)
    names = dict.fromkeys(name for row in results.rows for name in row.per_category.get("box", {}))
    rows = []
    for name in names:
        entries = [Entry(name)]
        for arm in arms:
            values = [
                value
                for row in series.rows_of(results, arm)
                if (value := row.per_category.get("box", {}).get(name)) is not None
            ]
            entries.append(Entry(f"{sum(values) / len(values):.1f}") if values else _NONE)
        rows.append(tuple(entries))
    head = ("Digit", *(series.label(results, arm) for arm in arms))
    return Table("Box AP (%) by digit, mean over seeds", head, tuple(rows))


def runs_table(results: DetectionResults) -> Table:
    """Every run on a line."""
    rows = []
    for arm in series.arms(results):
        for row in series.rows_of(results, arm):
            figures = [row.figures.get(name) for name in ("box_AP", "mask_AP")]
            shown = ["–" if value is None else f"{value:.2f}" for value in figures]
            end = row.failure or "finished"
            texts = (series.label(results, arm), str(row.seed), *shown, f"{row.steps:,}")
            rows.append(tuple(map(Entry, (*texts, f"{row.seconds:,.0f}", end))))
    head = ("Norm", "Seed", "Box AP (%)", "Mask AP (%)", "Steps", "Seconds", "End")
    return Table("Every run", head, tuple(rows))


def backbones_table(results: DetectionResults) -> Table:
    """The classifiers that the fine-tuned detectors start from."""
    return Table(
        caption="Classifiers of single digits whose backbones the fine-tuned detectors start from",
        head=("Norm", "Seed", "Val. error (%)", "Steps", "Seconds"),
        rows=tuple(
            tuple(
                map(
                    Entry,
                    (
                        norm_label(row.norm),
                        str(row.seed),
                        f"{row.val_error:.2f}",
                        f"{row.steps:,}",
                        f"{row.seconds:,.0f}",
                    ),
                )
            )
            for row in results.backbones
        ),
    )
