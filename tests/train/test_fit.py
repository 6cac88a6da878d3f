import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from batchfree import ConfigError
from batchfree.train import Config, OutputError, TrainingInterrupted, fit
from batchfree.train.build import evaluation_interval, total_steps


def tiny(**sections):
    """23 steps of a tiny network, evaluated at 10, 20 and 23."""
    base = Config().replace(
        batch_size=8,
        model={"width": 4, "blocks_per_stage": 1},
        data={"val_samples": 30, "eval_batch_size": 16},
        trainer={"max_steps": 23, "evaluate_every": 10, "accelerator": "cpu", "devices": 1},
    )
    return base.replace(**sections)


def weights(result):
    return result.model.state_dict()


def assert_same(a, b):
    assert weights(a).keys() == weights(b).keys()
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert a.curve == b.curve


def interrupted(config, output, step):
    """Trains until Ctrl-C at a step; the checkpoint left."""
    with pytest.raises(TrainingInterrupted) as caught:
        fit(
            config,
            output=output,
            progress=False,
            on_step=lambda s: signal.raise_signal(signal.SIGINT) if s == step else None,
        )
    return caught.value.checkpoint


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    return fit(tiny())


def test_the_result(reference):
    assert [p["step"] for p in reference.curve] == [10, 20, 23]
    errors = sorted(p["val_error"] for p in reference.curve)
    assert reference.val_error == errors[1]
    assert all(0 <= e <= 100 for e in errors)
    assert reference.checkpoint is None
    assert reference.seconds > 0


def test_a_config_gives_the_same_weights_again(reference):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert_same(fit(tiny()), reference)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_others(reference):
    other = fit(tiny(seed=1, trainer={"max_steps": 1}))
    assert not torch.equal(weights(other)["fc.weight"], weights(reference)["fc.weight"])


def test_without_output_nothing_is_written_or_shown(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    seen = []
    fit(tiny(trainer={"max_steps": 3}), on_step=seen.append)
    assert seen == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("step", "sections"),
    [
        (7, {}),
        (10, {"data": {"train_samples": 50}}),  # at an evaluation, and within an epoch
        (13, {"model": {"norm": "bn", "normalization_batch": 2}, "optimizer": {"ema_decay": 0.9}}),
        (5, {"trainer": {"accumulate": 2}}),
    ],
    ids=["mid_interval", "at_evaluation", "bn_ema", "accumulate"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, step, sections):
    config = tiny(**sections)
    checkpoint = interrupted(config, tmp_path, step)
    assert checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    resumed = fit(config, output=tmp_path, resume=checkpoint, progress=False)
    assert_same(resumed, fit(config))


def test_a_finished_run_resumes_to_its_result(tmp_path):
    config = tiny(optimizer={"ema_decay": 0.9}, trainer={"max_steps": 3})
    done = fit(config, output=tmp_path, progress=False)
    assert_same(fit(config, output=tmp_path, resume=done.checkpoint, progress=False), done)


def test_what_a_run_leaves(tmp_path, reference):
    result = fit(tiny(trainer={"log_every": 5}), output=tmp_path, progress=True)
    assert_same(result, reference)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in weights(result).items())
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["curve"] == result.curve
    assert history["val_error"] == result.val_error
    metrics = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text()
    rows = list(csv.DictReader(metrics.splitlines()))
    assert [r["step"] for r in rows if r["val_error"]] == ["9", "19", "22"]
    assert any(r["train_loss_step"] for r in rows)
    assert any(r["lr-SGD"] for r in rows)
    assert list((tmp_path / "logs" / "version_0").glob("events.out.tfevents*"))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    with pytest.raises(ConfigError, match="already holds a run"):
        fit(tiny(), output=tmp_path)


def test_accumulated_passes_give_the_same_training(reference):
    halves = fit(tiny(trainer={"accumulate": 2}))
    for name, value in weights(halves).items():
        torch.testing.assert_close(value, weights(reference)[name], rtol=1e-3, atol=1e-4)


def test_the_bar_ends_at_all_of_its_passes(tmp_path, capfd):
    config = tiny(trainer={"accumulate": 2})
    fit(config, output=tmp_path, progress=True)
    passes = 2 * config.trainer.max_steps
    assert f"{passes}/{passes}" in capfd.readouterr().out


def test_the_evaluation_batch_changes_no_error(reference):
    other = fit(tiny(data={"eval_batch_size": 7}))
    assert [p["val_error"] for p in other.curve] == pytest.approx(
        [p["val_error"] for p in reference.curve]
    )


def test_a_disk_that_fills_costs_no_training(tmp_path, monkeypatch, capfd, reference):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    def fill(step):
        if step == 5:
            monkeypatch.setattr(
                "lightning.pytorch.trainer.trainer.Trainer.save_checkpoint", no_space
            )
            monkeypatch.setattr("batchfree.train.callbacks.write_json", no_space)
            monkeypatch.setattr("batchfree.train.loop.write_json", no_space)

    with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
        fit(tiny(), output=tmp_path, progress=False, on_step=fill)
    assert str(tmp_path) in str(caught.value)
    assert_same(caught.value.result, reference)
    assert "training goes on" in capfd.readouterr().err


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path, monkeypatch, capfd):
    def fill(step):
        if step == 15:
            monkeypatch.setattr(os, "fsync", no_space)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError):
        fit(tiny(), output=tmp_path, progress=False, on_step=fill)
    monkeypatch.undo()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10
    assert {p.name for p in last.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_a_loss_that_diverges_is_recorded(tmp_path):
    config = tiny(optimizer={"base_lr": 1e20}, trainer={"max_steps": 4, "evaluate_every": 2})
    result = fit(config, output=tmp_path, progress=False)
    assert result.curve[-1]["train_loss"] != result.curve[-1]["train_loss"]  # NaN
    assert json.loads((tmp_path / "history.json").read_text())["curve"][-1]["train_loss"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "trained with seed=0, this run asks for 1"),
        ({"model": {"width": 8}}, "trained with model.width=4, this run asks for 8"),
        ({"optimizer": {"base_lr": 0.01}}, "trained with optimizer.base_lr="),
        ({"optimizer": {"decay_norm_parameters": False}}, "optimizer.decay_norm_parameters=True"),
        ({"optimizer": {"ema_decay": 0.9}}, "trained with optimizer.ema_decay=None"),
        ({"schedule": {"warmup": 0.5}}, "trained with schedule.warmup="),
        ({"trainer": {"accumulate": 2}}, "trained with trainer.accumulate=1, this run asks for 2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    fit(tiny(trainer={"max_steps": 1}), output=tmp_path, progress=False)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=message):
        fit(tiny(**change), output=tmp_path, resume=checkpoint)
    # Another length, or other workers, is no other run.
    fit(tiny(trainer={"max_steps": 2}, data={"eval_batch_size": 5}), resume=checkpoint)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut in half", b"text"])
def test_a_missing_or_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        fit(tiny(), resume=path)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"batchfree": subprocess.Popen}, path)
    with pytest.raises(ConfigError, match="no checkpoint of batchfree"):
        fit(tiny(), resume=path)


def test_hardware_that_is_not_there_is_a_config_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"trainer: .*gpu"):
        fit(tiny(trainer={"accelerator": "gpu"}))


def test_lengths_and_intervals():
    config = Config(batch_size=8)
    epochs = config.replace(trainer={"max_steps": None, "max_epochs": 2.5})
    assert total_steps(epochs, 80) == 25
    with pytest.raises(ConfigError, match="max_epochs needs an epoch"):
        total_steps(epochs, None)
    assert evaluation_interval(config, 1500, None) == 100
    assert evaluation_interval(config, 100, 80) == 10
    assert evaluation_interval(config, 5, None) == 1


DDP = """
import json, os, sys
import torch
from tests_config import config
from batchfree.train import fit
torch.set_num_threads(1)
result = fit(config.replace(trainer={"devices": 2, "strategy": "ddp"}))
if os.environ.get("LOCAL_RANK", "0") == "0":
    json.dump(result.curve, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_two_processes_train_and_count_like_one(tmp_path):
    # 30 validation images in batches of 8 per process: padding would be counted if it could.
    config = tiny(data={"val_samples": 29}, trainer={"max_steps": 5, "evaluate_every": 5})
    (tmp_path / "tests_config.py").write_text(
        f"from batchfree.train import Config\nconfig = Config.from_dict({config.to_dict()!r})\n"
    )
    (tmp_path / "train.py").write_text(DDP)
    out = tmp_path / "curve.json"
    subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", str(out)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (point,) = json.loads(out.read_text())
    (expected,) = fit(config).curve
    assert point == pytest.approx(expected, rel=1e-4)
