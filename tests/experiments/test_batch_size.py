"""The plan of the batch-size experiment, and its promise that GN never sees the batch."""

import pytest
import torch

from batchfree import ConfigError
from batchfree.experiments.batch_size import (
    NORMS,
    PRESETS,
    SIZES,
    command_line,
    make_preset,
    plan,
    results_of,
)
from batchfree.train import fit

QUICK = make_preset("quick", steps=3)


def test_isolated_changes_the_normalisation_batch_and_nothing_else():
    runs = [r for r in plan(make_preset("demo")) if r.norm == "bn"]
    assert [r.normalization_batch for r in runs] == sorted(SIZES)
    plain = [r.config.replace(name="", model={"normalization_batch": None}) for r in runs]
    assert all(config == plain[0] for config in plain)
    assert [r.config.model.normalization_batch for r in runs] == sorted(SIZES)


def test_isolated_runs_the_other_norms_once_a_seed():
    runs = plan(make_preset("hour"))
    assert len(runs) == 3 * (len(SIZES) + len(NORMS) - 1)
    assert {r.normalization_batch for r in runs if r.norm != "bn"} == {None}
    assert len({r.name for r in runs}) == len(runs)


def test_every_norm_has_the_same_budget_and_tuning():
    def shared(run):
        model = dict(norm="gn", normalization_batch=None, num_groups=1)
        model["weight_standardization"] = False
        return run.config.replace(name="", seed=0, model=model)

    runs = plan(make_preset("hour"))
    assert all(shared(run) == shared(runs[0]) for run in runs)


def test_paper_protocol_scales_batch_rate_and_steps():
    runs = plan(make_preset("hour", norms=["bn", "gn"], seeds=1, steps=4096), "paper")
    assert len(runs) == 10
    for run in runs:
        n, config = run.normalization_batch, run.config
        assert config.batch_size == 8 * n
        assert config.learning_rate() == pytest.approx(runs[0].config.learning_rate() / 2 * n)
        assert config.batch_size * run.steps == 32 * 4096
        assert config.model.normalization_batch == (n if run.norm == "bn" else None)


def train(norm, protocol_size):
    """Final weights after three steps of the isolated protocol, planned for one size only."""
    preset = make_preset("quick", norms=[norm], sizes=[protocol_size], steps=3)
    (run,) = plan(preset)
    config = run.config.replace(data={"val_samples": 20})
    result = fit(config)
    return result.model.state_dict(), result.curve


def test_one_group_norm_run_stands_for_every_size_to_the_bit():
    weights, curve = train("gn", 32)
    for size in (16, 2):
        again, same_curve = train("gn", size)
        for key, value in weights.items():
            assert torch.equal(again[key], value), key
        assert same_curve == curve


def test_batch_norm_does_change_with_the_size():
    a, b = train("bn", 32)[0], train("bn", 2)[0]
    assert not torch.equal(a["conv1.weight"], b["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(name="demoo"), "did you mean 'demo'"),
        (dict(norms=["gm"]), "unknown norm 'gm'.*did you mean 'gn'"),
        (dict(seeds=0), "seeds must be at least 1, got 0"),
        (dict(steps=-5), "steps must be at least 1"),
        (dict(sizes=[2, 0]), "size must be at least 1, got 0"),
        (dict(sizes=[2, 2]), "each size once"),
    ],
)
def test_a_wrong_preset_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        make_preset(**change)


def test_a_normalisation_batch_above_the_sgd_batch_is_refused():
    with pytest.raises(ConfigError, match=r"64 is above the SGD batch of 32.*--protocol paper"):
        plan(make_preset("quick", sizes=[64]))


def test_results_name_the_experiment_and_the_command():
    line = command_line(["reproduce", "batch-size", "-o", "a folder"])
    assert line == "batchfree reproduce batch-size -o 'a folder'"
    results = results_of((), preset=QUICK, preset_name="quick", protocol="isolated", command=line)
    assert (results.experiment, results.protocol, results.preset) == (
        "batch-size",
        "isolated",
        "quick",
    )
    assert results.sizes == (32, 2)


def test_presets_hold_the_papers_sizes():
    assert SIZES == (32, 16, 8, 4, 2)
    assert PRESETS["demo"].sizes == SIZES
    assert PRESETS["hour"].seeds >= 3


def test_fields_hold_for_every_training():
    for run in plan(make_preset("hour"), fields={"optimizer.base_lr": 0.5, "model.width": 8}):
        assert run.config.optimizer.base_lr == 0.5
        assert run.config.model.width == 8


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("optimizer.base_rl", 1.0, "did you mean 'optimizer.base_lr'"),
        ("optimizer.base_lr", "fast", "optimizer.base_lr must be a number, got 'fast'"),
        ("model.norm", "bn", "set by the experiment itself"),
        ("trainer.max_steps", 5, "set by the experiment itself"),
    ],
)
def test_a_wrong_field_is_refused(name, value, words):
    with pytest.raises(ConfigError, match=words):
        plan(make_preset("quick"), fields={name: value})
