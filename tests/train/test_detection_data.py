import pytest
import torch
from coco_cases import spoilt, truncate, write
from detection_runs import tiny

from batchfree import DataError
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


def test_a_corrupt_image_stops_by_name_or_is_skipped(folder):
    truncate(folder / "train2017" / "a.png")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"a\.png"):
            fit(on_coco(folder, workers=workers))
    with pytest.warns(UserWarning, match=r"a\.png"):
        result = fit(on_coco(folder, on_bad="skip"))
    assert result.curve[-1]["step"] == 5


def test_a_corrupt_image_can_be_found_before_training(folder):
    truncate(folder / "train2017" / "a.png")
    steps = []
    with pytest.raises(DataError, match=r"a\.png"):
        fit(on_coco(folder, image_check="decode"), on_step=steps.append)
    assert steps == []


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
