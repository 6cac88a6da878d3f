from dataclasses import replace

from batchfree.experiments.paper import IMAGENET_RESNET50
from batchfree.report import tables
from batchfree.report.charts import charts


def texts(row):
    return [entry.text for entry in row]


def test_our_table_has_mean_range_and_seeds(results):
    table = tables.our_table(results)
    assert table.head == ("Norm", "32", "16", "8", "4", "2")
    assert texts(table.rows[0]) == ["BN", "5.2", "5.3", "5.7", "6.4", "9.5"]
    assert table.rows[0][5].notes == ("9.3–9.7",)
    assert table.caption.endswith("mean and range over 3 seeds")


def test_one_seed_has_no_range(results):
    single = replace(results, rows=tuple(row for row in results.rows if row.seed == 1))
    table = tables.our_table(single)
    assert table.caption.endswith("one seed")
    assert table.rows[0][1].notes == ()


def test_seeds_that_differ_are_counted_in_each_cell(results):
    table = tables.our_table(replace(results, rows=results.rows[2:]))
    assert table.rows[0][1].notes == ("n = 1",)
    assert table.rows[0][2].notes == ("5.1–5.5", "n = 3")


def test_sizes_without_runs_are_dashes(results):
    table = tables.our_table(replace(results, rows=results.rows[:3]))
    assert texts(table.rows[0]) == ["BN", "5.2", "–", "–", "–", "–"]


def test_the_papers_table_stands_as_published():
    table = tables.paper_table(IMAGENET_RESNET50)
    assert texts(table.rows[0]) == ["BN", "23.6", "23.7", "24.8", "27.3", "34.7"]
    assert texts(table.rows[2]) == ["LN", "25.3", "–", "–", "–", "–"]
    assert "images per GPU" in table.caption


def test_every_chart_has_its_numbers_as_a_table(results):
    summary, curves, train = map(tables.chart_table, charts(results))
    assert texts(summary.rows[4])[:3] == ["2", "9.5", "5.9"]
    assert curves.head[1] == "BatchNorm, 32 images"
    assert len(curves.rows) == len(train.rows) == 15


def test_every_run_has_a_line(results):
    table = tables.runs_table(results)
    assert len(table.rows) == 27
    assert texts(table.rows[0])[:3] == ["BN", "32", "0"]
    assert texts(table.rows[-1])[:3] == ["IN", "every size", "2"]
