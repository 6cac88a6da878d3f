import pytest
import torch
from coco_cases import annotation, spoilt, truncate, write
from detection_runs import tiny
from PIL import Image

from batchfree import ConfigError, DataError
from batchfree.train import fit
from batchfree.train.detection_config import DetectionDataConfig
from batchfree.train.detection_data import DetectionLoader, build_detection_data


@pytest.fixture
def folder(tmp_path):
    """A COCO folder with a training and a validation split, of polygons, runs, crowds, pixels."""
    return write(write(tmp_path), split="train")


def on_coco(folder, **data):
    settings = {"kind": "coco", "root": str(folder), "flip": 0.5, "val_samples": None, **data}
    return tiny(model={"min_size": [48, 64], "max_size": 96}, data=settings)


def test_a_coco_set_trains_and_evaluates(folder, tmp_path):
    result = fit(on_coco(folder, workers=1), output=tmp_path / "run", progress=False)
    assert result.curve[-1]["train_loss"] > 0
    assert 0 <= result.figures["mask_AR100"] <= 100
    logits = result.model.roi_heads.box_predictor.cls_score
    assert logits.out_features == 1 + 3


def test_a_thin_image_trains_and_evaluates(folder):
    content = spoilt(thin)
    for split in ("train", "val"):
        write(folder, content, split=split)
        Image.new("RGB", (2000, 3)).save(folder / f"{split}2017" / "thin.png")
    result = fit(on_coco(folder))
    assert 0 <= result.figures["box_AR100"] <= 100


def thin(content):
    """2000 pixels by 3, as the only image with annotations."""
    record = {"id": 1, "file_name": "thin.png", "height": 3, "width": 2000}
    box = [100, 1, 800, 2]
    content["images"] = [record]
    content["annotations"] = [
        annotation(k, 1, 3, box, [[100, 1, 900, 1, 900, 3, 100, 3]]) for k in (1, 2)
    ]


def test_sets_by_config(folder):
    data = build_detection_data(DetectionDataConfig(kind="coco", root=str(folder)), 0)
    assert data.train.image_ids == [7, 10, 20]  # neither the empty nor the crowd's
    assert data.validation.image_ids == [7, 10, 12, 15, 20]
    assert data.val_samples == 5
    few = DetectionDataConfig(kind="coco", root=str(folder), val_samples=2)
    assert build_detection_data(few, 0, train=False).train is None
    assert build_detection_data(few, 0, train=False).val_samples == 2


def test_scenes_of_validation_do_not_depend_on_the_seed():
    config = DetectionDataConfig(train_samples=2, val_samples=2)
    a, b = (build_detection_data(config, seed) for seed in (0, 1))
    assert torch.equal(a.validation[0][0], b.validation[0][0])
    assert not torch.equal(a.train[0][0], b.train[0][0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_part_of_the_validation_set_is_evaluated_as_if_it_were_all(folder, accumulate):
    config = on_coco(folder, val_samples=2)
    result = fit(config.replace(trainer={"accumulate": accumulate, "max_steps": 1}))
    assert result.curve[-1]["step"] == 1


def test_the_loader_goes_on_from_any_batch(folder):
    data = build_detection_data(DetectionDataConfig(kind="coco", root=str(folder), flip=0.5), 0)
    whole = [[t["image_id"] for t in targets] for _, targets in DetectionLoader(data.train, 6, 2)]
    later = DetectionLoader(data.train, 6, 2)
    later.load_state_dict({"batches": 4})
    assert [[t["image_id"] for t in targets] for _, targets in later] == whole[4:]
    assert len(whole) == 6


def test_a_corrupt_image_stops_by_name_before_the_first_step_or_is_skipped(folder):
    """Cut short, but with a header: nothing short of decoding finds it."""
    truncate(folder / "train2017" / "a.png")
    steps = []
    with pytest.raises(DataError, match=r"a\.png"):
        fit(on_coco(folder), on_step=steps.append)
    assert steps == []
    for level in ("decode", "exist"):  # left out at the start, or replaced as it is read
        with pytest.warns(UserWarning, match=r"a\.png"):
            result = fit(on_coco(folder, on_bad="skip", image_check=level))
        assert result.curve[-1]["step"] == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_as_it_is_read_where_files_are_not_checked(folder, workers):
    truncate(folder / "train2017" / "a.png")
    with pytest.raises(DataError, match=r"a\.png"):
        fit(on_coco(folder, workers=workers, image_check="exist"))


def test_a_long_check_says_how_far_it_is(folder, capsys, monkeypatch):
    monkeypatch.setattr("batchfree.train.detection_data._TELL_EVERY", 0)
    build_detection_data(DetectionDataConfig(kind="coco", root=str(folder)), 0)
    line = "checking image files: 5 of 5 (data.image_check)\n"
    assert capsys.readouterr().err == 2 * line


def test_files_of_other_names_are_fields(folder, tmp_path):
    moved = tmp_path / "labels"
    (folder / "annotations").rename(moved)
    (folder / "train2017").rename(folder / "pictures")
    (folder / "val2017").rename(folder / "more")
    files = {
        "train_annotations": str(moved / "instances_train2017.json"),
        "train_images": "pictures",
        "val_annotations": str(moved / "instances_val2017.json"),
        "val_images": str(folder / "more"),
    }
    data = build_detection_data(DetectionDataConfig(kind="coco", root=str(folder), **files), 0)
    assert len(data.train) == 3
    assert len(data.validation) == 5
    without = on_coco(folder, **files | {"train_images": str(folder / "pictures")})
    assert fit(without.replace(data={"root": None})).curve[-1]["step"] == 5
    with pytest.raises(ConfigError, match=r"data.root is missing: .*--data.val_annotations FILE"):
        fit(without.replace(data={"root": None, "val_annotations": None}))
    with pytest.raises(ConfigError, match=r"data.train_annotations='.*' is of data.kind 'coco'"):
        fit(without.replace(data={"kind": "scenes"}))


def test_evaluating_on_the_training_set_is_asked_for(folder):
    file = (folder / "annotations" / "instances_train2017.json").rename(
        folder / "train2017" / "_annotations.coco.json"
    )
    alone = {"kind": "coco", "root": str(folder / "train2017")}
    with pytest.raises(DataError, match="is all there is, to train and to evaluate on"):
        build_detection_data(DetectionDataConfig(**alone), 0)
    assert len(build_detection_data(DetectionDataConfig(**alone), 0, train=False).validation) == 5
    both = {"train_annotations": str(file), "val_annotations": str(file)}
    data = build_detection_data(DetectionDataConfig(**alone, **both), 0)
    assert (len(data.train), len(data.validation)) == (3, 5)


def drop_segmentation(content):
    del content["annotations"][0]["segmentation"]


def test_an_annotation_without_segmentation_stops_before_training_or_is_skipped(folder):
    write(folder, spoilt(drop_segmentation), split="train")
    steps = []
    with pytest.raises(DataError, match="segmentation"):
        fit(on_coco(folder), on_step=steps.append)
    assert steps == []
    with pytest.warns(UserWarning, match="segmentation"):
        fit(on_coco(folder, on_bad="skip"), on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5]


def other_names(content):
    content["categories"] = [{**c, "name": c["name"] + "s"} for c in content["categories"]]


def test_other_categories_in_validation_are_refused(folder):
    write(folder, spoilt(other_names), split="val")
    with pytest.raises(DataError, match="other categories than expected"):
        fit(on_coco(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        fit(on_coco(tmp_path / "nowhere"))
