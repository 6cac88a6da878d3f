"""A checkpoint is evaluated as what it was trained as, or not at all."""

import json

import pytest
import torch
from detection_runs import MODEL, tiny
from safetensors import safe_open
from safetensors.torch import save_file

from batchfree import ConfigError, DataError
from batchfree._weights import METADATA_KEY
from batchfree.data.detection import Categories
from batchfree.data.scenes import DigitScenes
from batchfree.train import Config, fit
from batchfree.train.evaluate import evaluate

SHORT = {"max_steps": 1}
DIGITS = Config().replace(
    batch_size=8,
    model={"width": 4, "channels_per_group": 2},
    data={"val_samples": 20},
    trainer={"max_steps": 1, "accelerator": "cpu", "devices": 1},
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    fit(tiny(trainer=SHORT), output=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    fit(DIGITS, output=folder, progress=False)
    return folder


def retold(path, new, change):
    """The same weights, saying something else of themselves."""
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(told)
    save_file(weights, new, metadata={METADATA_KEY: json.dumps(told)})
    return new


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/last.ckpt"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"channels_per_group": 2}, "model.channels_per_group is 4 there and 2 here"),
        (
            {"channels_per_group": None, "num_groups": 2},
            "model.num_groups is None there and 2 here; model.channels_per_group is 4 there and",
        ),
        ({"norm": "ln"}, "model.norm is 'gn' there and 'ln' here"),
        ({"box_norm": "ln", "mask_norm": "in"}, "model.box_norm is 'gn' there and 'ln' here; mod"),
        ({"image_mean": [0.5] * 3}, r"model.image_mean is \[0.45, 0.45, 0.45\] there and \[0.5"),
        ({"image_std": [1.0] * 3}, r"model.image_std is .* there and \[1.0, 1.0, 1.0\] here"),
        ({"anchor_sizes": [8, 16, 32, 64, 128]}, r"model.anchor_sizes is \[12, 20, 32, 48, 64\]"),
        (
            {"min_size": [64]},
            r"model.min_size is \[128\] there and \[64\] here.*write model.min_size on the",
        ),
        ({"test_proposals": 31}, "model.test_proposals is 30 there and 31 here"),
    ],
)
def test_a_detector_that_differs_from_the_checkpoint_is_refused(detector, file, model, message):
    with pytest.raises(ConfigError, match=f"holds another network than the config: {message}"):
        evaluate(tiny(trainer=SHORT, model={**MODEL, **model}), detector / file)


def test_what_shapes_training_alone_may_differ(detector, capsys):
    same = evaluate(tiny(trainer=SHORT), detector / "model.safetensors")
    other = tiny(
        batch_size=1,
        model={**MODEL, "rois_per_image": 8, "anchors_per_image": 8, "min_size": [64, 128]},
        trainer={"max_steps": 7},
    )
    figures = evaluate(other, detector / "model.safetensors")
    assert figures == pytest.approx(same, nan_ok=True)
    assert capsys.readouterr().err == ""


def test_the_test_scale_differs_where_it_is_asked_for(detector, capsys):
    config = tiny(trainer=SHORT, model={**MODEL, "min_size": [64], "max_size": 64})
    path = detector / "model.safetensors"
    with pytest.raises(ConfigError, match=r"model\.max_size is 128 there and 64 here"):
        evaluate(config, path, overrides=["model.min_size"])
    figures = evaluate(config, path, overrides=["model.min_size", "model.max_size"])
    assert "box_AP" in figures
    err = capsys.readouterr().err
    assert "note: model.min_size is [64], as asked for" in err
    assert "note: model.max_size is 64, as asked for; model.safetensors was trained with 128" in err
    with pytest.raises(ConfigError, match=r"model\.norm cannot be another than the checkpoint's"):
        evaluate(config, path, overrides=["model.norm"])


def test_weights_that_say_nothing_are_taken_with_a_note(detector, tmp_path, capsys):
    with safe_open(detector / "model.safetensors", framework="pt") as file:
        torch.save({k: file.get_tensor(k) for k in file.keys()}, tmp_path / "w.pth")  # noqa: SIM118
    figures = evaluate(tiny(trainer=SHORT), tmp_path / "w.pth")
    same = evaluate(tiny(trainer=SHORT), detector / "model.safetensors")
    assert figures == pytest.approx(same, nan_ok=True)
    assert "note: w.pth does not say which network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"channels_per_group": None, "num_groups": 2}, "model.num_groups is None there and 2"),
        ({"channels_per_group": None, "norm": "ln"}, "model.norm is 'gn' there and 'ln' here"),
        ({"weight_standardization": True}, "weight_standardization is False there and True here"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/last.ckpt"])
def test_a_classifier_that_differs_from_the_checkpoint_is_refused(classifier, file, model, message):
    with pytest.raises(ConfigError, match=f"holds another network than the config: .*{message}"):
        evaluate(DIGITS.replace(model=model), classifier / file)


def test_a_classifiers_conventions_are_compared(classifier, tmp_path):
    path = classifier / "model.safetensors"
    assert evaluate(DIGITS.replace(model={"zero_init_residual": False}), path)["val_error"] > 0
    for change, message in (
        ({"mean": [0.1] * 3}, r"the mean of its images is \(0.1, 0.1, 0.1\) there and"),
        ({"eps": 1e-3}, "the eps of its norms is 0.001 there and 1e-05 here"),
        ({"num_groups": {"bn1": 1}}, "bn1 has 1 groups there and 2 here"),
    ):
        told = retold(
            path, tmp_path / "w.safetensors", lambda t, c=change: t["conventions"].update(c)
        )
        with pytest.raises(ConfigError, match=message):
            evaluate(DIGITS, told)


def test_a_checkpoint_of_another_task_or_version_is_refused(detector, classifier, tmp_path):
    with pytest.raises(ConfigError, match="is a checkpoint of detection, the config is one of cla"):
        evaluate(DIGITS, detector / "model.safetensors")
    with pytest.raises(ConfigError, match="is a checkpoint of classification, the config is one"):
        evaluate(tiny(trainer=SHORT), classifier / "model.safetensors")
    newer = retold(
        detector / "model.safetensors",
        tmp_path / "newer.safetensors",
        lambda told: told["config"]["model"].update(new_field=1),
    )
    with pytest.raises(ConfigError, match=r"another version of batchfree: .*model\.new_field"):
        evaluate(tiny(trainer=SHORT), newer)


@pytest.mark.parametrize(
    ("ids", "names", "message"),
    [
        (range(1, 11), [*"abc", *"3456789"], "it lacks 1 '0', 2 '1', 3 '2' and it has 1 'a', 2"),
        (range(2, 12), [*"0123456789"], "it lacks 1 '0', .* and 5 more and it has 2 '0', .* besid"),
        (range(1, 10), [*"012345678"], "it lacks 10 '9'; labels"),
    ],
)
def test_a_set_of_other_categories_is_refused(detector, monkeypatch, ids, names, message):
    make = DigitScenes.__init__

    def other(self, *args, **options):
        make(self, *args, **options)
        self.categories = Categories(tuple(ids), tuple(names))

    monkeypatch.setattr(DigitScenes, "__init__", other)
    with pytest.raises(DataError, match=f"other categories than .* was trained on: {message}"):
        evaluate(tiny(trainer=SHORT), detector / "model.safetensors")
