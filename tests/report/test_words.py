from dataclasses import replace

import pytest

from batchfree.report import words


def bn(make_row, first, last):
    rows = [make_row("bn", 32, seed, first) for seed in range(3)]
    return [*rows, *(make_row("bn", 2, seed, last) for seed in range(3))]


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (9.5, "BatchNorm’s error rises from 5.2% at normalisation batch 32 to 9.5% at 2"),
        (3.0, "BatchNorm’s error falls from 5.2% at normalisation batch 32 to 3.0% at 2"),
        (
            5.3,
            "BatchNorm’s error stays within the spread of its seeds, from 5.2% at normalisation "
            "batch 32 to 5.3% at 2",
        ),
    ],
)
def test_the_headline_says_what_was_found_either_way(results, make_row, last, told):
    some = replace(results, rows=tuple(bn(make_row, 5.2, last)))
    assert words.headline(some) == told


def test_the_headline_of_the_whole_sweep(results):
    assert words.headline(results) == (
        "BatchNorm’s error rises from 5.2% at normalisation batch 32 to 9.5% at 2; "
        "GroupNorm’s is 5.9% at every size"
    )


def test_one_seed_claims_no_rise(results, make_row):
    rows = (make_row("bn", 32, 1, 5.2), make_row("bn", 2, 1, 9.5), make_row("gn", None, 1, 5.9))
    told = words.headline(replace(results, rows=rows))
    assert "goes from 5.2% at normalisation batch 32 to 9.5% at 2 (one seed)" in told
    assert told.endswith("5.9% at every size (one seed)")


def test_one_size_is_called_the_only_one(results, make_row):
    told = words.headline(replace(results, rows=(make_row("bn", 4, 1, 6.4),)))
    assert told == (
        "BatchNorm’s error is 6.4% at normalisation batch 4, the only size that has run (one seed)"
    )


def test_without_bn_and_gn_the_others_are_told(results, make_row):
    told = words.headline(replace(results, rows=(make_row("ln", None, 1, 7.1),)))
    assert told.startswith("LayerNorm’s is 7.1%")


def test_the_lead_gives_the_gap_and_the_papers_numbers(results):
    gap, paper = words.lead(results)
    assert gap == (
        "By normalisation batch, GN’s error is 0.7 points above BN’s at 32 "
        "and 3.6 points below BN’s at 2."
    )
    assert "from 23.6% at 32 images per GPU to 34.7% at 2" in paper
    assert "between 24.0% and 24.2%" in paper


def test_equal_errors_are_level(results, make_row):
    rows = (*bn(make_row, 5.0, 5.0), *(make_row("gn", None, seed, 5.0) for seed in range(3)))
    assert "level with BN’s at 32" in words.lead(replace(results, rows=rows))[0]


def test_a_complete_sweep_misses_nothing(results):
    assert words.missing(results) == []


def test_what_is_missing_is_listed(results, make_row):
    rows = [row for row in results.rows if row.norm == "bn" and row.normalization_batch != 16]
    rows = [row for row in rows if (row.normalization_batch, row.seed) != (4, 2)]
    rows += [make_row("ln", None, 0, 7.1)]
    assert words.missing(replace(results, rows=tuple(rows))) == [
        "No run of GroupNorm.",
        "BN: no run at normalisation batch 16.",
        "BN at normalisation batch 4: seed 2 missing.",
        "LN: seeds 1 and 2 missing.",
    ]


def test_one_seed_and_no_rows_are_told(results):
    single = replace(results, rows=tuple(row for row in results.rows if row.seed == 1))
    assert words.missing(single) == []
    assert words.cautions(single)[0].startswith("One seed (1) only")
    assert words.cautions(results) == []
    empty = replace(results, rows=())
    assert words.headline(empty) == "No run has finished yet"
    assert "no finished runs" in words.missing(empty)[0]
    assert len(words.lead(empty)) == 1
