"""The plan of the batch-size experiment, and its promise that GN never sees the batch."""

import pytest
import torch

from batchfree import ConfigError
from batchfree.data import DigitsInTheWild
from batchfree.experiments.batch_size import (
    NORMS,
    PRESETS,
    SIZES,
    _config,
    command_line,
    make_preset,
    plan,
    results_of,
)
from batchfree.train import fit
from batchfree.train.build import build_network

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
        assert config.learning_rate() == pytest.approx(config.optimizer.base_lr * n / 32)
        assert config.batch_size * run.steps == 32 * 4096
        assert config.model.normalization_batch == (n if run.norm == "bn" else None)


def trained(norm, size):
    """Config, weights and curve of three steps of the isolated protocol, for this size."""
    config = _config(make_preset("quick", steps=3), "isolated", norm, size, 0, {})
    config = config.replace(data={"val_samples": 20})
    result = fit(config)
    return config, result.model.state_dict(), result.curve


def test_group_norm_trained_for_any_size_is_the_same_run_to_the_bit():
    config, weights, curve = trained("gn", None)
    for size in (32, 2):
        other, again, same_curve = trained("gn", size)
        assert other == config
        for key, value in weights.items():
            assert torch.equal(again[key], value), key
        assert same_curve == curve


def test_batch_norm_trained_for_another_size_is_another_run():
    weights = [trained("bn", size)[1]["conv1.weight"] for size in (32, 2)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(("norm", "alike"), [("gn", True), ("gn+ws", True), ("bn", False)])
def test_in_training_mode_only_batch_norm_sees_how_the_batch_is_cut(norm, alike):
    config = _config(make_preset("quick"), "isolated", norm, None, 0, {})
    net = build_network(config.model, 10).train()
    images = DigitsInTheWild().batch(range(32))[0]
    whole = net(images)
    for n in (16, 2):
        cut = torch.cat([net(chunk) for chunk in images.split(n)])
        assert torch.allclose(cut, whole, rtol=1e-4, atol=1e-5) == alike


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
        ("optimizer.base_lr", -1, "optimizer.base_lr must be a positive number, got -1"),
        ("model.name", "resnet_smal", "did you mean 'resnet_small'"),
    ],
)
def test_a_wrong_field_is_refused(name, value, words):
    with pytest.raises(ConfigError, match=words):
        plan(make_preset("quick"), fields={name: value})


@pytest.mark.parametrize("field", ["num_groups", "channels_per_group"])
def test_groups_are_swept_where_there_are_groups(field):
    for run in plan(make_preset("hour"), fields={f"model.{field}": 4}):
        model = run.config.model
        wanted = 4 if run.norm.startswith("gn") else None
        assert getattr(model, field) == wanted
        assert [model.num_groups, model.channels_per_group].count(None) == (1 if wanted else 2)
