from dataclasses import replace

from batchfree.report import provenance


def table(facts):
    return {fact.term: fact.values for fact in facts}


def test_facts_name_everything_that_made_the_runs(results):
    told = table(provenance.facts(results, results.rows))
    assert told["Command"] == ("batchfree reproduce batch-size --preset synthetic",)
    assert told["Commit"] == ("0123456789abcdef",)
    assert told["Versions"] == ("batchfree 0.1.0, torch 2.15.0",)
    assert told["Machine"] == ("Synthetic CPU, 2 cores, Linux",)
    assert told["Seeds"] == ("0, 1, 2",)
    assert told["Steps"] == ("1,500",)
    assert told["Learning rate"] == ("0.1",)
    assert told["Time"] == ("20 min over 27 runs",)


def test_values_that_differ_are_all_told(results, make_row):
    rows = [make_row("bn", 32, seed, 5.0, commit=commit) for seed, commit in enumerate("ab")]
    assert table(provenance.facts(results, rows))["Commit"] == ("a", "b")
    many = [replace(rows[0], seed=seed, learning_rate=seed / 10) for seed in range(1, 13)]
    assert table(provenance.facts(results, many))["Learning rate"][-1] == "and 4 more"


def test_settings_are_flat_and_tell_what_is_not_set(make_row):
    rows = [
        make_row("bn", 32, 0, 5.0, config={"data": {"size": 16}, "name": "a", "list": [1, 2]}),
        make_row("gn", None, 0, 5.0, config={"data": {"size": 16}, "name": "a", "groups": 8}),
    ]
    assert table(provenance.settings(rows)) == {
        "data.size": ("16",),
        "name": ("a",),
        "list": ("[1, 2]", "not set"),
        "groups": ("not set", "8"),
    }


def test_the_brief_keeps_the_mark_of_changed_files(make_row):
    row = make_row("bn", 32, 0, 5.0, commit="0123456789abcdef0123+dirty")
    assert provenance.brief([row]) == "1 run, seed 0, 1,500 steps, commit 0123456789+dirty"
    assert provenance.brief([replace(row, commit=None)]).endswith("commit unknown")


def test_without_rows_the_command_is_left(results):
    assert [fact.term for fact in provenance.facts(results, [])] == ["Command"]
