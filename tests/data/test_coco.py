import warnings

import coco_cases
import pytest
import torch
import torchvision
from coco_cases import CATEGORIES
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from batchfree import DataError
from batchfree.data import masks as mask_tools
from batchfree.data.coco import CocoDataset
from batchfree.data.detection import Categories, detection_collate, detection_transform
from batchfree.data.detection_batches import detection_loader, evaluation_batches


@pytest.fixture
def root(tmp_path):
    return coco_cases.write(tmp_path)


def by_id(data):
    return {target["image_id"]: (image, target) for image, target in data}


# pycocotools 2.0.11 under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_items_equal_torchvisions_dataset_and_wrapper(root, capsys):
    theirs = torchvision.datasets.wrap_dataset_for_transforms_v2(
        torchvision.datasets.CocoDetection(
            str(root / "val2017"),
            str(root / "annotations" / "instances_val2017.json"),
            transforms=v2.ToImage(),
        ),
        target_keys={"boxes", "labels", "masks", "image_id", "iscrowd"},
    )
    mine = CocoDataset(root, "val")
    assert len(mine) == len(theirs) == 5
    for (image, target), (their_image, their_target) in zip(mine, theirs, strict=True):
        assert torch.equal((image * 255).round().to(torch.uint8), their_image)
        assert target["image_id"] == their_target["image_id"]
        if "boxes" not in their_target:
            assert len(target["boxes"]) == 0
            continue
        assert torch.equal(target["boxes"], their_target["boxes"].float())
        assert torch.equal(target["masks"], their_target["masks"])
        assert target["iscrowd"].tolist() == their_target["iscrowd"]
        ids = [mine.categories.id(label) for label in target["labels"].tolist()]
        assert ids == their_target["labels"].tolist()


def test_labels_are_contiguous_whatever_the_category_ids(root):
    data = CocoDataset(root, "val")
    assert data.categories == Categories((3, 17, 90), ("car", "cat", "toothbrush"))
    items = by_id(data)
    assert items[10][1]["labels"].tolist() == [3, 1]
    assert items[7][1]["labels"].tolist() == [2]
    assert data.categories.name(2) == "cat"
    with pytest.raises(ValueError, match="labels are 1 to 3, got 0"):
        data.categories.id(0)


def test_crowds_and_empty_images_are_kept_to_evaluate_and_left_out_to_train(root):
    coco_cases.write(root, split="train")
    val, train = CocoDataset(root, "val"), CocoDataset(root, "train")
    assert val.image_ids == [7, 10, 12, 15, 20]
    assert by_id(val)[15][1]["iscrowd"].tolist() == [1]
    assert train.image_ids == [7, 10, 20]
    assert train.left_out == 2
    both = CocoDataset(root, "train", keep_empty=True)
    _, target = by_id(both)[15]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 20, 24)
    assert target["labels"].dtype == torch.int64
    crowds = CocoDataset(root, "train", keep_crowd=True)
    assert crowds.image_ids == [7, 10, 15, 20]
    truth = both.ground_truth()
    assert sum(a["iscrowd"] for a in truth["annotations"]) == 1


def test_a_box_of_one_pixel_is_kept_and_one_of_none_is_not(root):
    _, target = by_id(CocoDataset(root, "val"))[20]
    assert target["boxes"].tolist()[0] == [47, 31, 48, 32]
    assert target["area"].tolist() == [1, 100]
    shrunk = CocoDataset(root, "val", transforms=detection_transform(short_sides=[16]))
    _, target = by_id(shrunk)[20]
    assert target["boxes"].tolist() == [[2, 2, 7, 7]]

    def degenerate(content):
        content["annotations"][4]["bbox"] = [47, 31, 0, 1]
        content["annotations"][5]["bbox"] = [-6, 4, 20, 10]  # past the left edge

    coco_cases.write(root, coco_cases.spoilt(degenerate))
    data = CocoDataset(root, "val")
    _, target = by_id(data)[20]
    assert target["boxes"].tolist() == [[0, 4, 14, 14]]
    assert [f.kind for f in data.report.findings] == ["zero_area", "box_outside"]
    assert len(data.ground_truth()["annotations"]) == 6  # the metric gets what the file says


def corners(content):
    """The boxes of an exporter that writes x1, y1, x2, y2, each reaching out of its image."""
    content["annotations"] = content["annotations"][:1]
    shape = [[22, 16, 36, 16, 36, 28, 22, 28]]
    content["annotations"][0] |= {"bbox": [22, 16, 36, 28], "segmentation": shape, "area": 168}


def test_boxes_of_two_corners_are_warned_of_where_all_reach_over_an_edge(tmp_path):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(corners))
    with pytest.warns(UserWarning, match="do not fit their mask .*fits as x1, y1, x2, y2"):
        data = CocoDataset(root, "val")
    assert [f.kind for f in data.report.findings] == ["box_off_mask", "box_outside"]
    with pytest.warns(UserWarning, match="boxes outside that look like x1, y1, x2, y2"):
        data = CocoDataset(root, "val", masks=False)
    assert [f.kind for f in data.report.findings] == ["box_corners", "box_outside"]


@pytest.mark.parametrize("area", [None, "1600", 0, -1600, float("nan"), float("inf"), "missing"])
@pytest.mark.parametrize("masks", [True, False])
def test_an_area_that_is_none_is_the_masks_or_else_the_boxs(tmp_path, area, masks):
    def edit(content):
        for k in (0, 1):
            content["annotations"][k]["area"] = area
            if area == "missing":
                del content["annotations"][k]["area"]
        if not masks:
            del content["annotations"][0]["segmentation"]

    data = CocoDataset(coco_cases.write(tmp_path, coco_cases.spoilt(edit)), "val", masks=masks)
    found = {f.kind: f.count for f in data.report.findings}
    assert found == ({} if area == "missing" else {"bad_area": 2})
    truth = {a["bbox"][0]: a for a in data.ground_truth()["annotations"] if a["image_id"] == 10}
    shape = coco_cases.content()["annotations"][0]["segmentation"]
    assert truth[2]["area"] == (mask_tools.area(shape, 30, 40) if masks else 200)
    assert truth[30]["area"] == 64


def test_run_lengths_of_floats_and_a_polygon_without_an_inside_are_mended(tmp_path):
    def edit(content):
        shapes = content["annotations"]
        shapes[0]["segmentation"] += [[1, 1, 5, 5], [], [3.0]]
        shapes[2]["segmentation"] = {"size": [40.0, 30.0], "counts": [204.0, 6, 990.0]}
        crowd = mask_tools.decode([shapes[3]["segmentation"]], 20, 24)
        code = mask_tools.encode(crowd)[0]
        shapes[3]["segmentation"] = {"size": [20.0, 24], "counts": code["counts"]}

    root = coco_cases.write(tmp_path / "spoilt", coco_cases.spoilt(edit))
    data = CocoDataset(root, "val")
    assert {f.kind: f.count for f in data.report.findings} == {"short_polygon": 1}
    assert "annotation 1 of image 10: 3 of 5" in data.report.findings[0].examples
    plain = CocoDataset(coco_cases.write(tmp_path / "plain"), "val")
    for id in (7, 10, 15):
        assert torch.equal(by_id(data)[id][1]["masks"], by_id(plain)[id][1]["masks"])
    shapes, expected = (d.ground_truth()["annotations"][:3] for d in (data, plain))
    assert shapes == expected


def test_transforms_move_image_boxes_and_masks_alike(root):
    data = CocoDataset(root, "val", transforms=detection_transform(flip=1.0))
    plain = by_id(CocoDataset(root, "val"))
    for id, (image, target) in by_id(data).items():
        expected, expected_target = plain[id]
        assert torch.equal(image, expected.flip(2))
        assert torch.equal(target["masks"], expected_target["masks"].flip(2))
        width = image.shape[2]
        assert torch.equal(target["boxes"][:, 0], width - expected_target["boxes"][:, 2])
    jitter = detection_transform(short_sides=(40, 60), max_size=70, flip=0.5)
    data = CocoDataset(root, "val", transforms=jitter)
    shapes = {tuple(data.draw(1, seed)[0].shape[1:]) for seed in range(20)}
    assert shapes == {(40, 53), (52, 70)}
    image, target = data.draw(1, 3)
    assert target["masks"].shape[1:] == image.shape[1:]
    again, same = data.draw(1, 3)
    assert torch.equal(image, again)
    assert torch.equal(target["boxes"], same["boxes"])


@pytest.mark.parametrize("shape", [(3, 2000), (2000, 3)])
def test_scale_jitter_leaves_every_image_a_pixel(shape):
    image = tv_tensors.Image(torch.zeros(3, *shape, dtype=torch.uint8))
    out = detection_transform(short_sides=(96,), max_size=96)(image)
    assert sorted(out.shape[1:]) == [1, 96]


def test_bad_transform_arguments():
    with pytest.raises(ValueError, match="short_sides must be positive"):
        detection_transform(short_sides=[])
    with pytest.raises(ValueError, match="flip must be a probability"):
        detection_transform(flip=2)


def test_boxes_alone(root):
    _, target = CocoDataset(root, "val", masks=False)[1]
    assert "masks" not in target
    assert target["area"].tolist() == [200, 64]


def test_images_in_other_modes_become_rgb(root):
    Image.new("L", (40, 30), 7).save(root / "val2017" / "a.png")
    image, _ = by_id(CocoDataset(root, "val"))[10]
    assert image.shape == (3, 30, 40)
    assert torch.allclose(image, torch.tensor(7 / 255))


def test_a_corrupt_image_stops_or_is_replaced(root):
    coco_cases.truncate(root / "val2017" / "a.png")
    data = CocoDataset(root, "val")
    with pytest.raises(DataError, match=r"a\.png' cannot be read .*replace or remove the file"):
        data[1]
    data = CocoDataset(root, "val", on_bad="skip")
    with pytest.warns(UserWarning, match=r"a\.png.*; the next image takes its place"):
        _, target = data[1]
    assert target["image_id"] == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        assert data[1][1]["image_id"] == 12
    coco_cases.write(root)
    coco_cases.truncate(root / "val2017" / "pixel.jpg")
    with pytest.warns(UserWarning, match=r"pixel\.jpg"):
        assert CocoDataset(root, "val", on_bad="skip")[4][1]["image_id"] == 7  # past the end


def test_the_annotated_size_says_which_way_up_an_image_is(root):
    path, exif = root / "val2017" / "a.png", Image.Exif()
    with Image.open(path) as picture:
        picture.load()
    expected, _ = by_id(CocoDataset(root, "val"))[10]
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    image, _ = by_id(CocoDataset(root, "val"))[10]
    assert torch.equal(image, expected)  # the file says 30 high, 40 wide: turned
    picture.save(path, exif=exif)
    image, _ = by_id(CocoDataset(root, "val"))[10]
    assert torch.equal(image, expected)  # as stored


def unseen(content):
    content["annotations"][0]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    content["annotations"][2]["segmentation"] = [[100, 100, 120, 100, 120, 120]]
    content["annotations"][4]["bbox"] = [47, 31, 0, 1]
    content["annotations"][1]["bbox"] = [90, 20, 8, 8]


def test_what_cannot_be_seen_is_left_out_and_no_image_stays_for_it(tmp_path):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(unseen))
    coco_cases.write(tmp_path, coco_cases.spoilt(unseen), split="train")
    train = CocoDataset(root, "train")
    assert train.image_ids == [20]  # 7 and 10 had no other
    assert [len(target["labels"]) for _, target in train] == [1]
    found = {f.kind: f.count for f in train.report.findings}
    assert found == {"empty_mask": 2, "zero_area": 1, "box_outside": 1}
    # The metric gets what the file says, or what items hold.
    assert len(CocoDataset(root, "val").ground_truth()["annotations"]) == 6
    skipping = CocoDataset(root, "val", on_bad="skip")
    truth = skipping.ground_truth()["annotations"]
    assert len(truth) == sum(len(target["labels"]) for _, target in skipping) == 2
    # Boxes alone are whole.
    boxes = CocoDataset(root, "val", masks=False, on_bad="skip")
    assert len(boxes.ground_truth()["annotations"]) == 4


def test_an_epoch_ends_whatever_becomes_of_the_files(root):
    """Images are damaged and deleted once the data set stands."""
    data = CocoDataset(root, "val", on_bad="skip")
    coco_cases.truncate(root / "val2017" / "a.png")
    (root / "val2017" / "b.png").unlink()
    Image.new("RGB", (3, 3)).save(root / "val2017" / "empty.png")
    loader = detection_loader(data, evaluation_batches(len(data)))
    with pytest.warns(UserWarning, match="takes its place") as said:
        ids = [t["image_id"] for _, targets in loader for t in targets]
    assert ids == [15, 15, 15, 15, 20]
    assert len(said) == 3
    assert "is 3 x 3 pixels, but instances_val2017.json says 20 x 20" in str(said[2].message)
    for path in (root / "val2017").iterdir():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="takes its place"),
        pytest.raises(DataError, match="none of the 5 images"),
    ):
        data[0]


def no_segmentation(content):
    del content["annotations"][0]["segmentation"]


def missing_file(content):
    content["images"][0]["file_name"] = "gone.png"


@pytest.mark.parametrize(
    ("change", "message", "ids", "annotations"),
    [
        (no_segmentation, "1 annotations without a segmentation", [7, 10, 12, 15, 20], 5),
        (missing_file, "1 images that are not in the image folder", [7, 12, 15, 20], 4),
    ],
)
def test_what_the_check_finds_stops_or_is_left_out(tmp_path, change, message, ids, annotations):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(change))
    with pytest.raises(DataError, match=f"{message}.*`batchfree data check` lists more"):
        CocoDataset(root, "val")
    with pytest.warns(UserWarning, match=f"left out of .*{message}") as said:
        data = CocoDataset(root, "val", on_bad="skip")
    assert len(said) == 1
    assert data.image_ids == ids
    assert len(data.ground_truth()["annotations"]) == annotations
    assert len(list(data)) == len(ids)


def test_corrupt_images_found_before_training_leave_their_place(root):
    coco_cases.truncate(root / "val2017" / "a.png")
    with pytest.raises(DataError, match="1 image files that cannot be read"):
        CocoDataset(root, "val", image_check="decode")
    with pytest.warns(UserWarning, match="image files that cannot be read"):
        data = CocoDataset(root, "val", image_check="decode", on_bad="skip")
    assert data.image_ids == [7, 12, 15, 20]


def test_files_that_cannot_be_used_stop_in_either_case(tmp_path):
    root = coco_cases.write(tmp_path, '{"images": [')
    for on_bad in ("stop", "skip"):
        with pytest.raises(DataError, match=r"cannot be used: .*cut short"):
            CocoDataset(root, "val", on_bad=on_bad)
    with pytest.raises(DataError, match="has no annotation file for 'train'; looked for"):
        CocoDataset(root, "train")
    coco_cases.write(tmp_path, {"images": [], "annotations": [], "categories": CATEGORIES})
    with pytest.raises(DataError, match="leaves no image to use, of 0"):
        CocoDataset(root, "val")
    with pytest.raises(ValueError, match="on_bad must be one of 'stop', 'skip', got 'stpo'"):
        CocoDataset(root, "val", on_bad="stpo")
    with pytest.raises(DataError, match="no annotation file at"):
        CocoDataset(root, "val", annotations=root / "none.json")


def test_validation_needs_the_categories_of_training(root):
    mine = CocoDataset(root, "val").categories
    assert CocoDataset(root, "val", categories=mine).categories == mine
    fewer = Categories((3, 17), ("car", "cat"))
    with pytest.raises(DataError, match=r"other categories than expected: has \['toothbrush'\]"):
        CocoDataset(root, "val", categories=fewer)
    renumbered = Categories((1, 2, 3), mine.names)
    with pytest.raises(DataError, match=r"ids \[3, 17, 90\] for \[1, 2, 3\]"):
        CocoDataset(root, "val", categories=renumbered)


def test_files_of_other_names(root):
    file = (root / "annotations" / "instances_val2017.json").rename(root / "mine.json")
    (root / "val2017").rename(root / "pictures")
    data = CocoDataset(root, "val", annotations=file, images=root / "pictures")
    assert len(data) == 5
    (root / "pictures").rename(root / "val")
    file.rename(root / "annotations" / "instances_val.json")
    assert len(CocoDataset(root, "val")) == 5


def test_torchvisions_detector_trains_and_predicts_on_a_batch(root):
    """A batch with crowds, an empty image and a one-pixel box goes through Mask R-CNN."""
    loader = DataLoader(CocoDataset(root, "val"), batch_size=5, collate_fn=detection_collate)
    images, targets = next(iter(loader))
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=32, max_size=64
    )
    losses = model(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
