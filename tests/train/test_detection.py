import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from detection_runs import tiny
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from torch import nn

from batchfree import ConfigError, DataError
from batchfree._errors import NonFiniteLoss
from batchfree.data.detection import DetectionSet
from batchfree.data.scenes import DigitScenes
from batchfree.train import Config, OutputError, TrainingInterrupted, fit
from batchfree.train.detection import _without_crowds
from batchfree.train.detection_build import build_detector
from batchfree.train.optim import build_optimizer

LOSSES = ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values[trainer.global_step] = float(outputs["loss"])


def losses(config, **options):
    watch = Losses()
    return fit(config, callbacks=[watch], progress=False, **options), watch.values


def same_weights(a, b):
    return all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    return losses(tiny())


def test_the_result(reference):
    result, seen = reference
    assert [p["step"] for p in result.curve] == [2, 4, 5]
    assert sorted(seen) == [1, 2, 3, 4, 5]
    assert {"box_AP", "box_AP50", "mask_AP", "mask_AR100"} <= set(result.figures)
    assert len(result.figures) == 24
    assert result.curve[-1]["box_AP"] == result.figures["box_AP"]
    for name in LOSSES:
        assert result.curve[0][name] > 0
    # The last point's mean is over step 5 alone, the first's over steps 1 and 2.
    assert result.curve[-1]["train_loss"] == pytest.approx(seen[5])
    assert result.curve[0]["train_loss"] == pytest.approx((seen[1] + seen[2]) / 2)
    assert sum(result.curve[0][n] for n in LOSSES) == pytest.approx(result.curve[0]["train_loss"])
    assert "box AP" in str(result)


def test_a_config_gives_the_same_weights_again(reference):
    torch.manual_seed(123)
    again, seen = losses(tiny())
    assert seen == reference[1]
    assert same_weights(again, reference[0])


def test_workers_change_nothing(reference):
    _, seen = losses(tiny(data={"workers": 2}))
    assert seen == reference[1]


def test_another_seed_gives_others(reference):
    _, seen = losses(tiny(seed=1, trainer={"max_steps": 1}))
    assert seen[1] != reference[1][1]


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, step, reference):
    with pytest.raises(TrainingInterrupted) as caught:
        fit(
            tiny(),
            output=tmp_path,
            progress=False,
            on_step=lambda s: signal.raise_signal(signal.SIGINT) if s == step else None,
        )
    resumed, seen = losses(tiny(), output=tmp_path, resume=caught.value.checkpoint)
    assert seen == {k: v for k, v in reference[1].items() if k > step}
    assert same_weights(resumed, reference[0])
    assert [p["step"] for p in resumed.curve] == [2, 4, 5]
    for point, expected in zip(resumed.curve, reference[0].curve, strict=True):
        assert point == pytest.approx(expected, nan_ok=True)


KILLED = """
import json, os, signal, sys
from lightning.pytorch.callbacks import Callback
from batchfree.train import DetectionConfig, fit

class Record(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with open("losses.jsonl", "a") as file:
            file.write(json.dumps([trainer.global_step, float(outputs["loss"])]) + chr(10))

def kill(step):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

config = DetectionConfig.from_dict(json.loads(sys.argv[1]))
fit(config, output="run", progress=False, callbacks=[Record()], on_step=kill)
"""


def test_a_killed_run_resumes_to_the_losses_of_an_uninterrupted_one(tmp_path, reference):
    config = tiny(trainer={"checkpoint_every": 3, "evaluate_every": 5})
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, json.dumps(config.to_dict()), "4"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    before = dict(map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines()))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    _, after = losses(config, output=tmp_path / "run", resume=checkpoint)
    assert {**before, **after} == reference[1]
    assert sorted(after) == [4, 5]


def test_what_a_run_leaves(tmp_path):
    result = fit(tiny(), output=tmp_path, progress=False)
    files = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert files == {"last.ckpt", "best.ckpt"}
    history = json.loads((tmp_path / "history.json").read_text())
    assert [p["step"] for p in history["curve"]] == [2, 4, 5]
    assert history["curve"][-1]["box_APl"] is None  # no large objects: NaN
    rows = list(csv.DictReader((tmp_path / "logs/version_0/metrics.csv").read_text().splitlines()))
    for name in LOSSES:
        assert sum(bool(r[f"{name}_step"]) for r in rows) == 5
    assert sum(bool(r["box_AP"]) for r in rows) == 3
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["batchfree"])
        saved = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert told["config"]["task"] == "detection"
    assert told["categories"]["names"] == list("0123456789")
    assert told["conventions"]["norm"] == "gn"
    assert all(torch.equal(v, saved[k]) for k, v in result.model.state_dict().items())


def test_accumulated_passes_are_a_step():
    steps = []
    result = fit(tiny(trainer={"accumulate": 2, "max_steps": 2}), on_step=steps.append)
    assert [p["step"] for p in result.curve] == [2]
    assert steps == [0, 1, 1, 2]


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains(precision):
    result, _ = losses(tiny(trainer={"precision": precision, "max_steps": 2}))
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_cascade_and_batch_norms_train():
    for model in (
        {"cascade": True},
        {
            **dict.fromkeys(("norm", "fpn_norm", "box_norm", "mask_norm"), "bn"),
            "channels_per_group": None,
        },
        {
            **dict.fromkeys(("norm", "fpn_norm", "box_norm", "mask_norm"), "sync_bn"),
            "channels_per_group": None,
        },
        {"neck": "c4", "anchor_sizes": [16, 32, 64]},
    ):
        result, _ = losses(tiny(model=model, trainer={"max_steps": 2}))
        assert result.curve[-1]["train_loss"] > 0


def test_gamma_and_beta_do_not_decay():
    config = tiny()
    network, _ = build_detector(config.model, 10)
    decayed, free = build_optimizer(network, config.optimizer, 0.1).param_groups
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert decayed["weight_decay"] == 1e-4
    assert free["weight_decay"] == 0
    assert {id(p) for p in free["params"]} == {id(p) for m in norms for p in m.parameters()}


def test_crowds_are_not_learnt():
    target = {
        "boxes": torch.arange(8.0).reshape(2, 4),
        "labels": torch.tensor([1, 2]),
        "masks": torch.zeros(2, 4, 4),
        "iscrowd": torch.tensor([1, 0]),
    }
    assert _without_crowds(target)["labels"].tolist() == [2]


def broken_scene(monkeypatch, change):
    """Changes the fourth image of a training set as it is read."""
    read = DigitScenes.scene

    def scene(self, index):
        found = read(self, index)
        return change(found) if self.split == "train" and index == 3 else found

    monkeypatch.setattr(DigitScenes, "scene", scene)


def test_a_loss_that_is_not_finite_stops_with_its_images_and_a_state(tmp_path, monkeypatch):
    item = DetectionSet.__getitem__

    def poisoned(self, index):
        image, target = item(self, index)
        if self.split == "train" and index == 3:
            image = image * float("nan")
        return image, target

    monkeypatch.setattr(DetectionSet, "__getitem__", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step \d: loss_\w+ is nan.* on images \[") as caught:
        fit(tiny(), output=tmp_path, progress=False)
    error = caught.value
    assert DigitScenes("train", 7).image_ids[3] in error.image_ids
    assert len(error.image_ids) == 2
    assert error.checkpoint == tmp_path / "checkpoints" / "non-finite.ckpt"
    saved = torch.load(error.checkpoint, weights_only=True)
    weights = [v for k, v in saved["state_dict"].items() if v.is_floating_point()]
    assert all(torch.isfinite(w).all() for w in weights)
    assert f"step {saved['global_step'] + 1}:" in str(error)


def test_a_diverging_run_stops_without_an_output_folder_too():
    with pytest.raises(NonFiniteLoss) as caught:
        fit(tiny(optimizer={"base_lr": 1e12}, schedule={"warmup": 0}))
    assert caught.value.checkpoint is None


def test_a_loading_process_that_dies_is_named(monkeypatch):
    parent, read = os.getpid(), DigitScenes.scene

    def die(self, index):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(DigitScenes, "scene", die)
    with pytest.raises(DataError, match=r"loads images died.*lower data\.workers"):
        fit(tiny(data={"workers": 1}))


def test_an_error_in_a_loading_process_stays_what_it_is(monkeypatch):
    def fail(found):
        raise DataError("the image is bad")

    broken_scene(monkeypatch, fail)
    with pytest.raises(DataError, match="the image is bad"):
        fit(tiny(data={"workers": 1}))


def test_a_disk_that_fills_costs_no_training(tmp_path, monkeypatch, capfd, reference):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    def fill(step):
        if step == 1:
            monkeypatch.setattr(os, "fsync", no_space)

    config = tiny(trainer={"checkpoint_every": 1})
    with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
        fit(config, output=tmp_path, progress=False, on_step=fill)
    monkeypatch.undo()
    assert same_weights(caught.value.result, reference[0])
    assert "training goes on" in capfd.readouterr().err


def test_images_without_instances_train(monkeypatch):
    def empty(found):
        none = {k: getattr(found, k)[:0] for k in ("boxes", "labels", "masks", "iscrowd")}
        return type(found)(image=found.image, image_id=found.image_id, **none)

    broken_scene(monkeypatch, empty)
    _, seen = losses(tiny())
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"backbone": "resnet5"}}, "model.backbone must be one of"),
        ({"model": {"num_groups": 4}}, "exclude each other"),
        ({"model": {"norm": "frozen_bn"}}, "name model.weights, or take gn"),
        ({"model": {"freeze_at": 2}}, "freezes random layers"),
        ({"model": {"freeze_at": 9, "weights": "w"}}, "freeze_at must be 0"),
        ({"model": {"weights": "none.pth"}}, "there is no checkpoint at 'none.pth'"),
        ({"model": {"anchor_sizes": [8]}}, "one side for each of the FPN's 5 levels"),
        ({"model": {"image_mean": [0.5]}}, "three numbers"),
        ({"model": {"min_size": []}}, r"model\.min_size must be positive numbers"),
        ({"data": {"kind": "coco"}}, "data.root is missing"),
        ({"data": {"flip": 2.0}}, "data.flip must be a probability"),
        ({"data": {"size": 64}}, "data: "),
        ({"optimizer": {"label_smoothing": 0.1}}, "label_smoothing is of classification"),
        ({"trainer": {"max_steps": None}}, "trainer.max_steps or trainer.max_epochs"),
        ({"batch_size": 3, "trainer": {"accumulate": 2}}, "batch_size must split evenly"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(sections, message):
    with pytest.raises((ConfigError, DataError), match=message):
        fit(tiny(**sections))


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    fit(tiny(trainer={"max_steps": 1}), output=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="one of detection, this run one of classification"):
        fit(Config(), resume=tmp_path / "checkpoints" / "last.ckpt")


DDP = """
import json, os, sys
import torch
from batchfree.train import DetectionConfig, fit
torch.set_num_threads(1)
result = fit(DetectionConfig.from_dict(json.loads(sys.argv[1])))
if os.environ.get("LOCAL_RANK", "0") == "0":
    json.dump(result.curve, open("curve.json", "w"))
    torch.save(result.model.state_dict(), "weights.pth")
"""
EVALUATE = """
import json, sys
import torch
from batchfree.train import DetectionConfig
from batchfree.train.evaluate import evaluate
torch.set_num_threads(1)
config = DetectionConfig.from_dict(json.loads(sys.argv[1]))
config = config.replace(trainer={"devices": 1, "strategy": "auto"})
json.dump(evaluate(config, "weights.pth"), open("figures.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["gn", "sync_bn"])
def test_two_processes_train_and_count_each_image_once(tmp_path, norm):
    kinds = dict.fromkeys(("norm", "fpn_norm", "box_norm", "mask_norm"), norm)
    config = tiny(
        model={**kinds, "channels_per_group": 4 if norm == "gn" else None},
        trainer={"devices": 2, "strategy": "ddp", "max_steps": 2, "evaluate_every": 2},
    )
    (tmp_path / "train.py").write_text(DDP)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", json.dumps(config.to_dict())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if norm == "sync_bn":
        assert "'sync_bn' needs GPUs where there are several devices" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "curve.json").read_text())
    assert point["train_loss"] > 0
    # One process evaluates the same weights on the same images to the same figures.
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "evaluate.py", json.dumps(config.to_dict())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name, value in figures.items():
        if "/" not in name:
            assert point[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name
