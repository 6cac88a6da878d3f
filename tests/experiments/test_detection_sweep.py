"""Detection sweeps: rows, resumed trainings, diverged runs, lost backbones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detection_sweeps import go, tiny_plan

from batchfree._errors import SweepError
from batchfree.experiments.detection import ARMS
from batchfree.experiments.detection_results import (
    Detection,
    DetectionPoint,
    DetectionResults,
    DetectionRow,
    PicturedScene,
)
from batchfree.experiments.detection_run import PICTURED, DetectionRun
from batchfree.experiments.results import read_row
from batchfree.experiments.store import read_file
from batchfree.train import detection_run

PROVENANCE = {
    "commit": None,
    "versions": {"torch": torch.__version__},
    "machine": {"cpu": "this", "cores": 1, "system": "Linux"},
    "command": "batchfree reproduce",
}
NORMS = ["frozen_bn+gn", "gn-scratch"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    runs = tiny_plan("detection", folder, NORMS)
    return folder, runs, *go(runs, folder, "detection")


def test_a_sweep_trains_backbones_then_detectors_and_writes_it_all(finished):
    folder, runs, results, log = finished
    assert [row.name for row in results.rows] == [r.name for r in runs if hasattr(r, "arm")]
    assert [row.norm for row in results.backbones] == ["bn"]
    assert read_file(folder / "results.json", DetectionResults).rows == results.rows
    assert log.steps == log.done == 6
    assert log.notes == []
    for row in results.rows:
        assert row.failure is None
        assert [point.step for point in row.curve] == [1, 2]
        assert {"train_loss", "loss_mask", "loss_classifier"} <= set(row.curve[0].losses)
        assert len(row.figures) == 24
        assert set(row.per_category["mask"]) == set("0123456789")
        assert row.machine["cores"] >= 1
        assert row.seconds > 0
        assert row.images == 4


@pytest.mark.slow
@pytest.mark.parametrize("experiment", list(ARMS))
def test_every_arm_trains_at_every_batch(tmp_path, experiment):
    runs = tiny_plan(experiment, tmp_path, list(ARMS[experiment]), batches=(2, 1))
    results, _ = go(runs, tmp_path, experiment)
    assert len(results.rows) == 2 * len(ARMS[experiment])
    for row in results.rows:
        assert row.failure is None
        assert (row.images, row.steps) == (4, 4 // row.batch_size)
        assert row.curve[-1].losses["loss_mask"] > 0


def test_the_checkpoints_go_and_the_weights_stay(finished):
    folder, runs, _, _ = finished
    assert list(folder.rglob("*.ckpt")) == []
    for run in runs:
        place = run.output if isinstance(run, DetectionRun) else run.weights.parent
        assert (place / "model.safetensors").is_file()


def test_the_same_sweep_again_trains_nothing(finished):
    folder, runs, results, _ = finished
    again, log = go(runs, folder, "detection")
    assert (log.kept, log.rows) == (len(runs), [])
    assert again.rows == results.rows


def test_a_lost_backbone_is_trained_again_only_where_it_is_needed(finished, tmp_path):
    folder, _, results, _ = finished
    shutil.copytree(folder / "rows", tmp_path / "rows")
    runs = tiny_plan("detection", tmp_path, NORMS)
    _, log = go(runs, tmp_path, "detection")
    assert (log.kept, log.rows) == (3, [])
    (tmp_path / "rows" / f"{runs[1].name}.json").unlink()
    again, log = go(runs, tmp_path, "detection")
    assert log.kept == 1
    assert [type(row).__name__ for row in log.rows] == ["Row", "DetectionRow"]
    assert [row.figures for row in again.rows] == [row.figures for row in results.rows]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda data: data.update(image_check="exist"), 3),
        (lambda data: data.pop("train_annotations"), 3),  # None today
        (lambda data: data.update(flip=0.5), 2),
        (lambda data: data.pop("flip"), 2),
    ],
)
def test_only_a_setting_that_changes_numbers_trains_again(finished, tmp_path, change, kept):
    folder, _, _, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    runs = tiny_plan("detection", tmp_path, NORMS)
    path = tmp_path / "rows" / f"{runs[2].name}.json"
    row = json.loads(path.read_text())
    change(row["config"]["detector"]["data"])
    path.write_text(json.dumps(row))
    _, log = go(runs, tmp_path, "detection")
    assert log.kept == kept
    assert [note.partition(":")[0] for note in log.notes] == [
        "trained again, since its settings have changed"
    ] * (3 - kept)


def test_a_damaged_row_is_named_and_trained_again(finished, tmp_path):
    folder, _, results, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    runs = tiny_plan("detection", tmp_path, NORMS)
    path = tmp_path / "rows" / f"{runs[2].name}.json"
    value = json.loads(path.read_text())
    value["start"] = "afresh"
    path.write_text(json.dumps(value))
    again, log = go(runs, tmp_path, "detection")
    assert [row.name for row in log.rows] == [runs[2].name]
    assert len(log.notes) == 1
    assert "start: expected 'scratch' or 'fine-tuned', got 'afresh'" in log.notes[0]
    assert str(path) in log.notes[0]
    assert again.rows[1].curve == results.rows[1].curve


def test_a_diverged_run_is_a_row_with_its_failure_and_the_sweep_goes_on(tmp_path):
    runs = tiny_plan("scratch", tmp_path, ["gn"], 3, {"optimizer.base_lr": 1e30})
    runs += tiny_plan("scratch", tmp_path, ["ln"])
    results, _ = go(runs, tmp_path, "scratch")
    failed, fine = results.rows
    assert failed.failure.startswith("diverged at step 2: ")
    assert "on images [" in failed.failure
    assert str(tmp_path) not in failed.failure
    assert (failed.figures, failed.per_category, failed.detections) == ({}, {}, ())
    assert [point.step for point in failed.curve] == [1]
    assert fine.failure is None
    _, log = go(runs, tmp_path, "scratch")
    assert log.kept == 2


def test_a_detector_whose_backbone_fails_is_not_begun_and_said_so(tmp_path):
    runs = tiny_plan("detection", tmp_path, NORMS)
    backbone = runs[0].config.replace(model={"name": "resnet_none"})
    object.__setattr__(runs[0], "config", backbone)
    with pytest.raises(SweepError, match=r"2 of 3 runs failed.*resnet_none.*not begun, since it"):
        go(runs, tmp_path, "detection")
    assert len(read_file(tmp_path / "results.json", DetectionResults).rows) == 1


def trained(run, stop_after=None):
    steps = []
    stopping = lambda: stop_after is not None and len(steps) >= stop_after  # noqa: E731
    try:
        return steps, run.train(steps.append, stopping, PROVENANCE)
    except KeyboardInterrupt:
        return steps, None


def test_a_stopped_training_goes_on_where_it_was_and_ends_the_same(tmp_path):
    (whole,) = tiny_plan("scratch", tmp_path / "whole", ["gn"], 6)
    (cut,) = tiny_plan("scratch", tmp_path / "cut", ["gn"], 6)
    _, expected = trained(whole)
    steps, row = trained(cut, stop_after=4)
    assert (steps, row) == ([1, 2, 3, 4], None)
    first = cut.output / "checkpoints" / "last.ckpt"
    assert torch.load(first, weights_only=True)["global_step"] == 5  # the step under way was done
    steps, row = trained(cut)
    assert steps == [6]
    assert row.curve == expected.curve
    assert [point.step for point in row.curve] == [3, 6]
    assert (row.figures, row.detections) == (expected.figures, expected.detections)
    assert row.seconds > 0


def test_a_training_that_ended_before_its_row_was_kept_is_not_repeated(tmp_path):
    (run,) = tiny_plan("scratch", tmp_path, ["gn"])
    _, expected = trained(run)
    steps, row = trained(run)
    assert steps == []
    assert (row.curve, row.figures) == (expected.curve, expected.figures)


@pytest.mark.parametrize("damage", ["settings", "content"])
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_with(tmp_path, damage):
    (run,) = tiny_plan("scratch", tmp_path, ["gn"], 4)
    assert trained(run, stop_after=2)[1] is None
    if damage == "content":
        (run.output / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    else:
        (run,) = tiny_plan("scratch", tmp_path, ["gn"], 4, {"optimizer.base_lr": 0.001})
    steps, row = trained(run)
    assert steps == [1, 2, 3, 4]
    assert row.learning_rate == run.config.learning_rate()


def test_detections_of_the_pictured_scenes_are_kept_with_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr("batchfree.experiments.detection_run.SCORE", 0.0)
    (run,) = tiny_plan("scratch", tmp_path, ["gn"])
    build = detection_run.build_detector

    def lenient(*arguments):
        network, remarks = build(*arguments)
        network.roi_heads.score_thresh = 0.0  # torchvision's leaves nothing of so short a training
        return network, remarks

    monkeypatch.setattr(detection_run, "build_detector", lenient)
    _, row = trained(run)
    assert {d.image_id for d in row.detections} <= set(PICTURED)
    assert len(row.detections) > 10
    one = row.detections[0]
    assert one.segmentation["size"] == [128, 128]
    assert 0 <= one.score <= 1


def test_a_row_comes_back_from_its_file(finished):
    folder, runs, results, _ = finished
    path = folder / "rows" / f"{runs[1].name}.json"
    assert read_row(path, DetectionRow) == results.rows[0]


@pytest.mark.parametrize(
    "kind", [DetectionResults, DetectionRow, DetectionPoint, Detection, PicturedScene]
)
def test_every_field_is_documented(kind):
    text = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text()
    text = text[text.index("batchfree.detection/1") :]
    assert [name for name in kind.__dataclass_fields__ if f"`{name}`" not in text] == []
