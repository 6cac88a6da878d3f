import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from detection_runs import losses, same_weights, tiny
from safetensors import safe_open
from torch import nn

from batchfree.train import TrainingInterrupted, fit
from batchfree.train.detection import _without_crowds
from batchfree.train.detection_build import build_detector
from batchfree.train.optim import build_optimizer

LOSSES = ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]


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
