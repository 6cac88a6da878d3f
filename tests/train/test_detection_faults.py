"""Detection training when images, losses, processes, disks or configs are bad."""

import os
import signal

import pytest
import torch
from detection_runs import losses, same_weights, tiny

from batchfree import ConfigError, DataError
from batchfree._errors import NonFiniteLoss
from batchfree.data.detection import DetectionSet
from batchfree.data.scenes import DigitScenes
from batchfree.train import Config, OutputError, fit


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


def test_a_disk_that_fills_costs_no_training(tmp_path, monkeypatch, capfd):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    def fill(step):
        if step == 1:
            monkeypatch.setattr(os, "fsync", no_space)

    config = tiny(trainer={"checkpoint_every": 1})
    with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
        fit(config, output=tmp_path, progress=False, on_step=fill)
    monkeypatch.undo()
    assert same_weights(caught.value.result, fit(tiny(), progress=False))
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
