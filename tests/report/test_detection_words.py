"""What the page of a detection experiment says, whichever way the numbers went."""

import pytest
from detection_rows import detection_row, diverged_row, results

from batchfree.experiments.detection_results import Arm
from batchfree.report.detection_charts import detection_charts
from batchfree.report.detection_words import cautions, headline, lead, missing


def scratch(gn, bn, batch=2):
    """GN and BN at a batch with these box APs, a seed each."""
    arms = {Arm("gn", "gn", "scratch", batch): gn, Arm("bn", "bn", "scratch", batch): bn}
    rows = tuple(
        diverged_row(arm, seed) if value is None else detection_row(arm, seed, value)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    )
    return results("scratch", planned=tuple(row.name for row in rows), rows=rows)


@pytest.mark.parametrize(
    ("gn", "bn", "told"),
    [
        ((57, 57), (45, 45), "BN is 12.0 box AP below GN at batch 2 (45.2 against 57.2)"),
        ((45, 45), (57, 57), "BN is 12.0 box AP above GN at batch 2 (57.2 against 45.2)"),
        (
            (57, 50),
            (55, 51),
            "BN is 0.5 box AP below GN at batch 2 (53.2 against 53.8, within the spread of the "
            "seeds)",
        ),
        (
            (57, 50),
            (57, 50),
            "BN is level with GN at batch 2 (53.8 against 53.8, within the spread of the seeds)",
        ),
        ((57,), (45,), "BN is 12.0 box AP below GN at batch 2 (45.0 against 57.0, one seed)"),
        ((57, 57), (None, None), "BN diverged at batch 2 in every seed"),
        (
            (57, 57),
            (45, None),
            "BN is 12.2 box AP below GN at batch 2 (45.0 against 57.2, one seed; 1 of its runs "
            "diverged)",
        ),
    ],
)
def test_the_headline_says_what_was_found(gn, bn, told):
    assert headline(scratch(gn, bn)) == f"Trained from scratch, {told}"


def test_the_headlines_of_both_experiments():
    assert headline(results("scratch")) == (
        "Trained from scratch, BN is 12.0 box AP below GN at batch 2 (45.2 against 57.2); "
        "BN is 36.0 box AP below GN at batch 1 (20.2 against 56.2)"
    )
    assert headline(results("detection")).startswith(
        "Fine-tuned, GN everywhere is 3.0 box AP above BN* (61.2 against 58.2); BN in FPN"
    )
    assert headline(results(rows=())) == "No run has finished yet"


def with_batch_1(rows):
    """The detection experiment's rows, and the same at one image with half of their AP."""
    half = [
        detection_row(Arm(r.norm, r.head_norm, r.start, 1), r.seed, r.figures["box_AP"] / 2)
        for r in rows
    ]
    rows = (*rows, *half)
    return results("detection", planned=tuple(r.name for r in rows), rows=rows)


def test_two_batches_of_six_arms_leave_the_headline_to_the_papers():
    both = with_batch_1(results("detection").rows)
    assert headline(both) == (
        "Fine-tuned, GN everywhere is 3.0 box AP above BN* at batch 2 (61.2 against 58.2); "
        "BN in FPN and heads is 28.0 box AP below BN* with plain heads at batch 2 (30.2 against "
        "58.2)"
    )
    first = lead(both)[0]
    assert first.startswith("GN everywhere is 1.5 box AP above BN* at batch 1 (")
    assert first.endswith(". The paper has 40.3 against 38.6 (box AP on COCO).")
    assert "at batch 2 (" in lead(both)[3]
    assert "at batch 1 (" in lead(both)[3]
    charts = detection_charts(both)
    assert [chart.key for chart in charts] == ["curves-batch-2", "curves-batch-1"]
    assert len({(chart.x_end, chart.y_top) for chart in charts}) == 1
    for chart in charts:
        assert {row.batch_size for row in chart.rows} == {int(chart.key[-1])}
        assert all(len({line.style for line in panel.lines}) == 6 for panel in chart.panels)


def test_arms_without_their_counterpart_are_told_alone():
    row = detection_row(Arm("ln", "ln", "scratch", 2), 0, 40.0)
    alone = results("scratch", planned=(row.name,), rows=(row,))
    assert headline(alone) == "LN, batch 2 reaches 40.0 box AP"


def test_the_lead_puts_the_papers_finding_beside_each_comparison():
    sentences = lead(results("detection"))
    assert len(sentences) == 6
    assert "has 40.3 against 38.6 (box AP on COCO)" in sentences[0]
    assert sentences[4].startswith("GN from scratch is 6.0 box AP below GN fine-tuned")
    assert "not the size of AP" in sentences[-1]


def test_what_is_missing_diverged_or_of_one_seed_is_said():
    whole = results("scratch")
    part = results("scratch", rows=whole.rows[:3])
    assert missing(whole) == []
    (told,) = missing(part)
    assert told.startswith("5 of 8 runs have not finished: bn-scratch-1-seed0")
    assert cautions(whole) == []
    assert "One seed (0) only" in cautions(part)[-1]
    failed = scratch((57, 57), (45, None))
    assert cautions(failed) == [
        "BN, batch 2, seed 1: diverged at step 7: loss_mask is nan on images [3, 4]. It has no AP "
        "in the tables."
    ]
