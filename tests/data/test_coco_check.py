import json

import coco_cases
import pytest
from PIL import Image

from batchfree import DataError
from batchfree.data.coco import CocoDataset
from batchfree.data.coco_check import check_coco
from batchfree.data.coco_report import KINDS


def kinds(report):
    (file,) = report.files
    return {f.kind: f.count for f in file.findings}


def test_a_good_folder_is_clean(tmp_path):
    report = check_coco(coco_cases.write(tmp_path), image_check="decode")
    assert report.clean
    (file,) = report.files
    assert (file.images, file.annotations, file.categories) == (5, 6, 3)
    assert (file.crowds, file.empty) == (1, 1)
    text = report.to_text()
    assert "5 images (1 without an annotation), 6 annotations (1 of crowds), 3 categories" in text
    assert "nothing is wrong" in text


def at(kind, **change):
    """Edits the first record of a list."""

    def edit(content):
        content[kind][0].update(change)

    return edit


def lacking(kind, key):
    def edit(content):
        del content[kind][0][key]

    return edit


def twice(kind):
    def edit(content):
        content[kind].append(dict(content[kind][0]))

    return edit


WHOLE = [[2, 3, 22, 3, 22, 13, 2, 13]]
ODD = [  # none of which may end in a traceback
    {"size": [30.5, 40], "counts": [1200]},
    {"size": [30, True], "counts": [1200]},
    {"size": [None, 40], "counts": [1200]},
    {"size": [30.0, 40.0], "counts": [1199.5, 0.5]},
    {"size": [30.0, 40.0], "counts": [float("nan"), 1]},
    {"size": [30.0, 40.0], "counts": [float("inf")]},
    {"size": [30.0, 40.0], "counts": [-1.0, 1201.0]},
    {"size": [30, 40], "counts": [[1200]]},
    {"size": [30, 40], "counts": "\u00e9"},
    {"size": [30, 40], "counts": 1200},
    {"size": "30x40", "counts": "1"},
    {"size": {"h": 30}, "counts": [1200]},
    [[], [1, 2]],
    [None],
    [[1, 2, 3, 4, 5, 6, 7]],
    "polygon",
    7,
]
SHORT = [[1, 2, 3, 4]]
OUTSIDE = [[100, 100, 120, 100, 120, 120]]
NOTHING = {"size": [30, 40], "counts": [1200]}
FAULTS = [
    ("bad_category", at("categories", id="3"), "category 0 of the list"),
    ("bad_category", lacking("categories", "name"), "category 0 of the list"),
    ("duplicate_category", twice("categories"), "category 90: 'toothbrush'"),
    ("duplicate_name", at("categories", name="cat"), "categories 17, 90: 'cat'"),
    ("bad_image", lacking("images", "id"), "image 0 of the list has no whole number as id"),
    ("bad_image", at("images", id="10"), "image 0 of the list has no whole number as id"),
    ("bad_image", at("images", height=0), "image 10: height 0 is no positive whole number"),
    ("bad_image", at("images", width=40.5), "image 10: width 40.5 is no positive whole number"),
    ("bad_image", at("images", width="40"), "image 10: width '40' is no positive whole number"),
    ("bad_image", lacking("images", "file_name"), "image 10: file_name None names no file"),
    ("duplicate_image", twice("images"), "image 10: 'a.png'"),
    ("unsafe_path", at("images", file_name="../../etc/passwd"), "'../../etc/passwd'"),
    ("unsafe_path", at("images", file_name="/etc/passwd"), "'/etc/passwd'"),
    ("missing_image", at("images", file_name="no.png"), "no.png"),
    ("bad_annotation", lacking("annotations", "id"), "annotation 0 of the list"),
    ("bad_annotation", at("annotations", image_id=None), "annotation 1: image_id None is no"),
    ("bad_annotation", at("annotations", category_id="car"), "annotation 1: category_id 'car' is"),
    ("bad_annotation", at("annotations", iscrowd=2), "iscrowd 2 is not 0 or 1"),
    ("duplicate_annotation", twice("annotations"), "annotation 1 of image 10"),
    ("unknown_image", at("annotations", image_id=999), "annotation 1 of image 999"),
    ("unknown_category", at("annotations", category_id=4), "annotation 1 of image 10: category 4"),
    ("bad_box", lacking("annotations", "bbox"), "annotation 1 of image 10: None"),
    ("bad_box", at("annotations", bbox=[1, 2, 3]), "[1, 2, 3]"),
    ("bad_box", at("annotations", bbox=[1, 2, 3, float("nan")]), "nan"),
    ("bad_box", at("annotations", bbox=[1, 2, 3, "4"]), "'4'"),
    ("no_segmentation", lacking("annotations", "segmentation"), "annotation 1 of image 10"),
    ("no_segmentation", at("annotations", segmentation=[]), "annotation 1 of image 10"),
    ("bad_segmentation", at("annotations", segmentation=SHORT), "a polygon of 4 numbers"),
    *(("bad_segmentation", at("annotations", segmentation=s), "annotation 1") for s in ODD),
    ("empty_mask", at("annotations", segmentation=[[5, 5, 5, 5, 5, 5]]), "annotation 1 of image"),
    ("empty_mask", at("annotations", segmentation=OUTSIDE), "annotation 1 of image 10"),
    ("empty_mask", at("annotations", segmentation=NOTHING), "annotation 1 of image 10"),
    ("box_off_mask", at("annotations", bbox=[22, 13, 9, 9]), "its mask is in [2, 3, 20, 10]"),
    ("zero_area", at("annotations", bbox=[1, 2, 3, 0]), "box [1, 2, 3, 0]"),
    ("bad_area", at("annotations", area=0), "area 0"),
    ("bad_area", at("annotations", area=None), "area None"),
    ("bad_area", at("annotations", area="1600"), "area '1600'"),
    ("bad_area", at("annotations", area=float("nan")), "area nan"),
    ("bad_area", at("annotations", area=float("inf")), "area inf"),
    ("bad_area", at("annotations", area=-1), "area -1"),
    ("short_polygon", at("annotations", segmentation=[*WHOLE, [1, 2, 3, 4], []]), "10: 2 of 3"),
    ("box_outside", at("annotations", bbox=[2, 3, 39, 10]), "[2, 3, 39, 10] in 40 x 30 pixels"),
    ("box_outside", at("annotations", bbox=[-2, 3, 22, 10]), "[-2, 3, 22, 10]"),
]


@pytest.mark.parametrize(("kind", "change", "example"), FAULTS)
def test_each_fault_is_named_counted_and_shown(tmp_path, kind, change, example):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(change))
    report = check_coco(root)
    found = kinds(report)
    assert found[kind] == 1
    # A category or an image of another id leaves its annotations without one.
    consequences = {"bad_category": {"unknown_category"}, "bad_image": {"unknown_image"}}
    assert set(found) - {kind} <= consequences.get(kind, set())
    (finding,) = (f for f in report.files[0].findings if f.kind == kind)
    assert example in finding.examples[0]
    assert f"[{kind}]" in report.to_text()
    assert not report.clean
    usable = finding.effect in ("cleaned", "doubtful")
    assert bool(report.files[0].errors) == (not usable or len(found) > 1)
    assert bool(report.files[0].doubts) == (finding.effect == "doubtful")


def test_every_kind_has_a_test():
    by_file = {"bad_json", "corrupt_image", "image_size", "orientation", "box_corners"}
    assert {kind for kind, _, _ in FAULTS} | by_file == set(KINDS)


def whole_numbers_as_floats(content):
    for record in content["images"]:
        record |= {k: float(record[k]) for k in ("id", "height", "width")}
    for record in content["annotations"]:
        record |= {k: float(record[k]) for k in ("id", "image_id", "category_id")}
    for record in content["categories"]:
        record["id"] = float(record["id"])


def test_a_whole_number_may_be_written_with_a_point(tmp_path):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(whole_numbers_as_floats))
    assert check_coco(root, image_check="decode").clean
    mine, plain = (
        CocoDataset(coco_cases.write(tmp_path / name, content), "val").ground_truth()
        for name, content in (
            ("mine", coco_cases.spoilt(whole_numbers_as_floats)),
            ("plain", coco_cases.content()),
        )
    )
    assert json.dumps(mine) == json.dumps(plain)


def tagged(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def test_orientations_that_the_size_does_not_settle_are_found(tmp_path):
    root = coco_cases.write(tmp_path)
    tagged(root / "val2017" / "a.png", 3)  # upside down: 40 x 30 either way
    tagged(root / "val2017" / "empty.png", 6)  # a quarter turn of 20 x 20
    tagged(root / "val2017" / "b.png", 6)  # settled: as stored
    Image.new("RGB", (32, 48)).save(root / "val2017" / "pixel.jpg")
    tagged(root / "val2017" / "pixel.jpg", 8)  # settled: turned
    for level in ("size", "decode"):
        report = check_coco(root, image_check=level)
        assert kinds(report) == {"orientation": 2}
        assert not report.files[0].errors
    assert "40 x 30 pixels either way; it is taken as stored" in report.to_text()
    tagged(root / "val2017" / "crowd.png", 6)
    Image.new("RGB", (24, 23)).save(root / "val2017" / "crowd.png")
    assert kinds(check_coco(root, image_check="size")) == {"orientation": 2, "image_size": 1}


def test_progress_is_told_of_the_images_looked_into(tmp_path):
    root = coco_cases.write(tmp_path)
    told = []
    check_coco(root, image_check="size", progress=lambda *at: told.append(at))
    assert told == [(5, 5)]


def test_two_categories_of_a_name_are_told_apart(tmp_path):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(at("categories", name="cat")))
    with pytest.warns(UserWarning, match=r"taken as it stands .*categories 17, 90: 'cat'"):
        data = CocoDataset(root, "val")
    assert data.categories.unique_names == ("car", "cat (id 17)", "cat (id 90)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "it may be cut short"),
        ("", "it may be cut short"),
        ("[]", "holds a list, not an object; a list is a results file"),
        ('{"images": [], "annotations": []}', "has no list of 'categories'"),
        ('{"images": [], "annotations": {}, "categories": []}', "has no list of 'annotations'"),
        ("[" * 100_000, "cut short"),
    ],
)
def test_a_file_that_is_no_annotation_file(tmp_path, text, message):
    report = check_coco(coco_cases.write(tmp_path, text))
    assert kinds(report) == {"bad_json": 1}
    assert message in report.files[0].findings[0].examples[0]


def test_damaged_images_are_found_where_they_are_opened(tmp_path):
    root = coco_cases.write(tmp_path)
    coco_cases.truncate(root / "val2017" / "a.png")
    (root / "val2017" / "b.png").write_bytes(b"no image")
    assert check_coco(root).clean
    assert kinds(check_coco(root, image_check="size")) == {"corrupt_image": 1}
    report = check_coco(root, image_check="decode")
    assert kinds(report) == {"corrupt_image": 2}
    assert "b.png" in report.files[0].findings[0].examples[1]


def test_an_image_of_another_size(tmp_path):
    root = coco_cases.write(tmp_path)
    Image.new("RGB", (40, 31)).save(root / "val2017" / "a.png")
    report = check_coco(root, image_check="size")
    assert kinds(report) == {"image_size": 1}
    assert "40 x 31 pixels, the annotation file says 40 x 30" in report.to_text()


def test_counts_go_on_where_examples_end(tmp_path):
    def edit(content):
        for k in range(20):
            content["annotations"].append(content["annotations"][0] | {"id": 100 + k, "bbox": []})

    report = check_coco(coco_cases.write(tmp_path, coco_cases.spoilt(edit)))
    (finding,) = report.files[0].findings
    assert (finding.count, len(finding.examples)) == (20, 5)
    assert "and 15 more" in report.to_text()
    assert json.loads(json.dumps(report.to_dict()))["files"][0]["findings"][0]["count"] == 20


def test_boxes_alone_need_no_segmentation(tmp_path):
    root = coco_cases.write(tmp_path, coco_cases.spoilt(lacking("annotations", "segmentation")))
    assert not check_coco(root).clean
    assert check_coco(root, segmentations=False).clean


def test_both_splits_one_file_and_folders_of_other_names(tmp_path):
    coco_cases.write(tmp_path)
    coco_cases.write(tmp_path, split="train")
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    assert len(check_coco(tmp_path).files) == 2
    file = tmp_path / "annotations" / "instances_val2017.json"
    assert check_coco(file).clean
    (tmp_path / "val2017").rename(tmp_path / "pictures")
    assert kinds(check_coco(file)) == {"missing_image": 5}
    assert check_coco(file, images=tmp_path / "pictures").clean


def test_nothing_to_check(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        check_coco(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no annotation file: .*instances_train2017.json"):
        check_coco(tmp_path)
    coco_cases.write(tmp_path)
    with pytest.raises(DataError, match="no image folder"):
        check_coco(tmp_path, images=tmp_path / "none")
    with pytest.raises(ValueError, match="image_check must be one of"):
        check_coco(tmp_path, image_check="all")
