import json
import shlex

import pytest
import torch
import yaml
from command_line import run
from detection_runs import tiny
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image

from batchfree.data.masks import decode
from batchfree.data.scenes import DigitScenes
from batchfree.recipes import get_recipe
from batchfree.train import DetectionConfig, fit
from batchfree.train.config import field_types
from batchfree.train.detection_build import load_detector

SHORT = shlex.split(
    "--data.val_samples 2 --data.train_samples 4 --trainer.max_steps 2 --trainer.evaluate_every 2"
    " --trainer.accelerator cpu --trainer.threads 1 --quiet"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny detector; it knows nothing, so that it has many weak detections."""
    folder = tmp_path_factory.mktemp("trained")
    fit(tiny(trainer={"max_steps": 1}), output=folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def pictures(tmp_path):
    """A folder of two images and one that is none, in a sub-folder."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "deep/b.jpg")):
        image = (DigitScenes("test", 2).scene(i).image).permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / name)
    (folder / "deep" / "c.png").write_bytes(b"\x89PNG\r\n cut short")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_train_and_evaluate_a_detection_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", "scenes_gn", *SHORT, "--output", "run")
    assert (code, err) == (0, "")
    assert "scenes_gn: box AP" in out
    assert "weights in run/model.safetensors" in out
    assert DetectionConfig.from_dict(yaml.safe_load((tmp_path / "run/config.yaml").read_text()))
    figures = json.loads((tmp_path / "run/history.json").read_text())["curve"][-1]
    for file in ("run/model.safetensors", "run/checkpoints/last.ckpt"):
        code, out, err = run(
            capsys, "evaluate", "scenes_gn", *SHORT[:-1], "--checkpoint", file, "--output", "out"
        )
        assert (code, err) == (0, "")
        assert "box_AP/7" in out
        found = json.loads((tmp_path / "out" / "figures.json").read_text())
        assert found["box_AR100"] == pytest.approx(figures["box_AR100"], abs=1e-3)
        results = json.loads((tmp_path / "out" / "predictions_bbox.json").read_text())
        assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in results)


def test_evaluate_refuses_another_network_and_takes_a_test_scale(capsys, tmp_path, trained):
    (tmp_path / "c.yaml").write_text((trained / "config.yaml").read_text())
    line = ["--config", str(tmp_path / "c.yaml"), "--checkpoint", f"{trained}/model.safetensors"]
    code, out, err = run(capsys, "evaluate", *line, "--model.channels_per_group", "2")
    assert (code, out) == (2, "")
    assert "model.channels_per_group is 4 there and 2 here" in err
    assert err.count("\n") == 1
    code, out, err = run(capsys, "evaluate", *line, "--model.min_size=[96]", "--model.max_size=96")
    assert code == 0
    assert "box_AP" in out
    assert "note: model.min_size is [96], as asked for" in err
    # A recipe's own size is no wish.
    code, out, err = run(capsys, "evaluate", "coco_r50_gn_2x", "--data.root", "r", *line[2:])
    assert (code, out) == (2, "")
    assert "model.min_size is [128] there and [800] here" in err


def test_a_config_file_says_that_it_is_of_detection(capsys, tmp_path):
    code, out, _ = run(capsys, "train", "scenes_bn", "--batch_size", "1", "--print_config")
    assert code == 0
    assert DetectionConfig.from_dict(yaml.safe_load(out)) == get_recipe("scenes_bn").replace(
        batch_size=1
    )
    path = tmp_path / "c.yaml"
    path.write_text(out)
    again = run(capsys, "train", "--config", str(path), "--print_config")[1]
    assert yaml.safe_load(again) == yaml.safe_load(out)


def test_evaluate_a_classifier(capsys, tmp_path):
    line = shlex.split(
        "digits_small_gn --model.width 4 --batch_size 8 --data.val_samples 20"
        " --trainer.accelerator cpu"
    )
    run(capsys, "train", *line, "--trainer.max_steps", "2", "--quiet", "--output", f"{tmp_path}/r")
    error = json.loads((tmp_path / "r" / "history.json").read_text())["curve"][-1]["val_error"]
    file = str(tmp_path / "r" / "model.safetensors")
    code, out, _ = run(capsys, "evaluate", *line, "--checkpoint", file)
    assert code == 0
    assert float(out.split()[1]) == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train scenes_gn --model.nrom bn", "'model.nrom'; did you mean 'model.norm'"),
        ("train scenes_gn --model.min_size 64", "a list of numbers, got '64'; write [64] for one"),
        ("train scenes_gn --model.norm gm", "got 'gm'; did you mean 'gn'"),
        ("train scenes_gn --model.normalization_batch 2", "no field 'model.normalization_batch'"),
        ("train coco_r50_gn_2x --model.weights w", "data.root is missing"),
        ("train coco_r50_frozen_bn_2x", "data.root is missing"),
        ("train scenes_frozen_bn_finetuned", "name model.weights"),
        ("evaluate", "evaluate needs the name of a recipe"),
        ("evaluate scenes_gn", "evaluate needs --checkpoint FILE"),
        ("predict w.safetensors", "the following arguments are required: IMAGE"),
        ("predict w.safetensors a.png", "required: -o/--output"),
        ("predict w a.png -o out --threshold 2", "--threshold must be 0 to 1, got 2.0"),
        ("predict w a.png -o out --treshold 0.2", "did you mean '--threshold'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, line, message):
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_predict_draws_writes_and_skips(capsys, tmp_path, trained, pictures):
    out = tmp_path / "out"
    model = trained / "model.safetensors"
    code, said, err = run(
        capsys, "predict", str(model), str(pictures), "-o", str(out), "--threshold", "0.06"
    )
    assert code == 1
    (skipped,) = [line for line in err.splitlines() if line.startswith("skipped")]
    assert "c.png" in skipped
    assert "cannot be" in skipped
    assert said.startswith("2 images, ")
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {"a.png", "deep/b.png", "predictions.json", "images.json"}
    listed = json.loads((out / "images.json").read_text())
    assert [i["file_name"] for i in listed["images"]] == ["a.png", "deep/b.jpg"]
    assert [c["name"] for c in listed["categories"]] == list("0123456789")
    results = json.loads((out / "predictions.json").read_text())
    assert results
    ids = {i["id"] for i in listed["images"]}
    for record in results:
        assert record["image_id"] in ids
        assert 1 <= record["category_id"] <= 10
        assert len(record["bbox"]) == 4
        assert decode([record["segmentation"]], 128, 128).shape == (1, 128, 128)
    drawn, original = (Image.open(p).convert("RGB") for p in (out / "a.png", pictures / "a.png"))
    assert drawn.size == original.size
    assert list(drawn.get_flattened_data()) != list(original.get_flattened_data())


def test_predictions_are_the_models(capsys, tmp_path, trained, pictures):
    out = tmp_path / "out"
    code, said, _ = run(
        capsys,
        "predict",
        str(trained / "checkpoints" / "last.ckpt"),
        str(pictures / "a.png"),
        "-o",
        str(out),
        "--threshold",
        "1",
        "--quiet",
    )
    assert (code, said) == (0, "")
    model, _, categories = load_detector(trained / "model.safetensors")
    with torch.no_grad():
        (found,) = model([DigitScenes("test", 2).scene(0).image / 255])
    results = json.loads((out / "predictions.json").read_text())
    assert [r["score"] for r in results] == pytest.approx(found["scores"].tolist())
    assert [r["category_id"] for r in results] == [
        categories.id(label) for label in found["labels"].tolist()
    ]
    # Nothing scores 1, so nothing is drawn.
    drawn, original = (Image.open(p).convert("RGB") for p in (out / "a.png", pictures / "a.png"))
    assert list(drawn.get_flattened_data()) == list(original.get_flattened_data())


def test_images_of_one_name_keep_apart(capsys, tmp_path, trained, pictures):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((pictures / "a.png").read_bytes())
    line = [str(trained / "model.safetensors"), str(pictures / "a.png"), str(other / "a.png")]
    code, _, _ = run(capsys, "predict", *line, "-o", str(tmp_path / "out"))
    assert code == 0
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"a.png", "a-2.png"}


@pytest.mark.parametrize(
    ("checkpoint", "images", "code", "message"),
    [
        ("none.safetensors", "pictures", 1, "no checkpoint at"),
        ("run/model.safetensors", "nothing.png", 1, "no image or folder at"),
        ("run/model.safetensors", "empty", 1, "there are no images"),
        ("run/config.yaml", "pictures", 1, "no weights that can be read safely"),
        ("other.pth", "pictures", 2, "is no detector of batchfree train"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    capsys, tmp_path, trained, pictures, checkpoint, images, code, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(trained)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    got, out, err = run(
        capsys,
        "predict",
        str(tmp_path / checkpoint),
        str(tmp_path / images),
        "-o",
        str(tmp_path / "out"),
    )
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_thin_image_is_seen(capsys, tmp_path, trained):
    Image.new("RGB", (2000, 3)).save(tmp_path / "thin.png")
    model, out = str(trained / "model.safetensors"), tmp_path / "out"
    code, _, err = run(capsys, "predict", model, str(tmp_path / "thin.png"), "-o", str(out))
    assert (code, err) == (0, "")
    (listed,) = json.loads((out / "images.json").read_text())["images"]
    assert (listed["width"], listed["height"]) == (2000, 3)


def test_an_image_that_fails_alone_leaves_no_results(capsys, tmp_path, trained, monkeypatch):
    from batchfree.train import predict as module

    def fail(*_):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(module, "_see", fail)
    Image.new("RGB", (20, 30)).save(tmp_path / "large.png")
    model, out = str(trained / "model.safetensors"), tmp_path / "out"
    code, said, err = run(capsys, "predict", model, str(tmp_path / "large.png"), "-o", str(out))
    assert (code, said) == (1, "")
    assert "large.png: the network fails at its 20 x 30 pixels (not enough memory)" in err
    assert "no image of 1 could be predicted: nothing is written" in err
    assert not list(out.iterdir())


def test_ctrl_c_keeps_what_is_done(capsys, tmp_path, trained, pictures, monkeypatch):
    from batchfree.train import predict as module

    def read(path):
        if path.name == "b.jpg":
            raise KeyboardInterrupt
        return read_image(path)

    read_image = module.read_image
    monkeypatch.setattr(module, "read_image", read)
    model, out = str(trained / "model.safetensors"), tmp_path / "out"
    code, said, err = run(capsys, "predict", model, str(pictures), "-o", str(out))
    assert (code, said) == (130, "")
    assert f"interrupted after 1 of 3 images; their results are in {out}" in err
    listed = json.loads((out / "images.json").read_text())
    assert [i["file_name"] for i in listed["images"]] == ["a.png"]
    assert (out / "predictions.json").exists()


def test_what_is_passed_over_is_counted(capsys, tmp_path, trained, pictures):
    (pictures / "b.gif").write_bytes(b"GIF89a")
    (pictures / "lost.jpg").symlink_to(pictures / "gone.jpg")
    line = [str(trained / "model.safetensors"), str(pictures), "-o", str(tmp_path / "out")]
    code, _, err = run(capsys, "predict", *line)
    assert code == 1
    assert "passed over, as no images: 1 .gif, 1 .txt\n" in err
    assert "lost.jpg" in err


def test_predict_runs_again_where_its_output_lies_among_the_images(
    capsys, trained, pictures, monkeypatch
):
    (pictures / "deep" / "c.png").unlink()
    pages = [Image.new("RGB", (40, 30), k) for k in (0, 90)]
    pages[0].save(pictures / "pages.tif", save_all=True, append_images=pages[1:])
    Image.new("RGB", (30, 10)).save(pictures / "wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 128 * 128 - 1)  # PIL warns of a.png and b.jpg
    line = [str(trained / "model.safetensors"), str(pictures), "-o", str(pictures / "out")]
    first, second = (run(capsys, "predict", *line) for _ in range(2))
    assert first == second
    code, out, err = second
    assert code == 0
    assert out.startswith("4 images, ")
    assert err == (
        "predicted on the first frame alone, of several, of "
        f"{pictures / 'pages.tif'}\npassed over, as no images: 1 .txt\n"
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    code, out, err = run(capsys, "predict", *line)
    assert code == 1
    assert out.startswith("2 images, ")
    assert "a.png' has 16,384 pixels, and at most 2,000 are read: scale it down\n" in err
    assert "Warning" not in err


def test_evaluate_prints_once_whatever_the_ranks(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("batchfree.train.evaluate.evaluate", lambda *_, **__: {"box_AP": 5.0})
    line = ("evaluate", "scenes_gn", "--checkpoint", "w", "--output", str(tmp_path / "out"))
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    assert run(capsys, *line) == (0, "", "")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert run(capsys, *line) == (0, "box_AP                  5.000\n", "")
    assert (tmp_path / "out" / "figures.json").is_file()


def test_an_output_that_cannot_be_is_refused_in_words(capsys, tmp_path, trained, pictures):
    (tmp_path / "file").write_text("")
    line = [str(trained / "model.safetensors"), str(pictures), "-o"]
    code, _, err = run(capsys, "predict", *line, str(tmp_path / "file"))
    assert code == 2
    assert "file' is a file: name a folder with -o" in err
    before = (pictures / "a.png").read_bytes()
    code, _, err = run(capsys, "predict", *line, str(pictures))
    assert code == 2
    assert "would replace the image" in err
    assert (pictures / "a.png").read_bytes() == before


def test_a_device_that_is_not_there(capsys, tmp_path, trained, pictures):
    line = [str(trained / "model.safetensors"), str(pictures), "-o", str(tmp_path / "out")]
    code, _, err = run(capsys, "predict", *line, "--device", "tpu")
    assert code == 2
    assert "--device tpu is not to be had here" in err


def test_lint_of_detection_recipes(capsys):
    assert run(capsys, "lint", "scenes_gn")[0] == 0
    code, out, _ = run(capsys, "lint", "scenes_bn", "--optimizer.decay_norm_parameters", "true")
    assert code == 1
    for rule in ("norm-decay", "small-batch", "bn-in-roi-head"):
        assert f"{rule}:" in out
    code, out, _ = run(
        capsys,
        "lint",
        "coco_r50_gn_scratch_3x",
        "--model.freeze_at",
        "2",
        "--model.zero_init_residual",
        "true",
        "--schedule.warmup",
        "0",
    )
    for rule in ("frozen-from-scratch", "zero-init", "warm-up", "frozen-stem"):
        assert f"{rule}:" in out
    for name, rule in (
        ("coco_r50_bn_2x", "small-batch: model.norm"),
        ("coco_r50_frozen_bn_head_bn_2x", "bn-in-roi-head: model.box_norm"),
    ):
        code, out, _ = run(capsys, "lint", name, "--model.weights", "w.pth")
        assert code == 1
        assert f"{rule}: BatchNorm" in out
        assert "other-experiment: trainer.devices" in out
    code, out, _ = run(capsys, "lint", "scenes_gn", "--batch_size", "4")
    assert code == 1
    assert (
        "schedule: trainer.max_steps: trainer.max_steps and schedule.milestones are the recipe's"
        in out
    )
    # Fine-tuned, what is frozen is no mistake.
    assert run(capsys, "lint", "coco_r50_frozen_bn_2x", "--model.weights", "w.pth")[0] == 0


def test_the_fields_of_detection_have_types():
    types = field_types(DetectionConfig)
    assert types["model.freeze_at"] is int
    assert types["optimizer.base_lr"] is float
