import json

import coco_cases
import pytest

from batchfree import DataError
from batchfree.data.coco import CocoDataset
from batchfree.data.coco_check import check_coco
from batchfree.data.coco_files import all_files, slashed, split_files

# The annotation file and the image folder of each split.
LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017"),
    "no year in the folder": ("annotations/instances_{}2017.json", "{}"),
    "no year in the file": ("annotations/instances_{}.json", "{}2017"),
    "another year": ("annotations/instances_{}2014.json", "{}2014"),
    "no prefix": ("annotations/{}.json", "{}"),
    "folders in images": ("annotations/instances_{}2017.json", "images/{}2017"),
    "one folder of images": ("annotations/{}.json", "images"),
    "images beside the file": ("annotations/{}.json", "annotations"),
    "images in the root": ("annotations/{}.json", "."),
    "files in the root": ("instances_{}2017.json", "{}2017"),
    "keypoints": ("annotations/person_keypoints_{}2017.json", "{}2017"),
    "a name alone in the root": ("{}.json", "{}"),
    "a folder each": ("{}/annotations.json", "{}/images"),
    "fiftyone, a folder each": ("{}/labels.json", "{}/data"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
}


def lay_out(root, annotations, images, content=None):
    """coco_cases' folder with its two parts in other places."""
    coco_cases.write(root / "made", content)
    (root / images).mkdir(parents=True, exist_ok=True)
    for path in (root / "made" / "val2017").iterdir():
        path.rename(root / images / path.name)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / "made" / "annotations" / "instances_val2017.json").rename(root / annotations)
    for folder in ("annotations", "val2017", "."):
        (root / "made" / folder).rmdir()
    return root


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_check_and_training_find_the_same_files(tmp_path, layout, val):
    for name in ("train", val):
        lay_out(tmp_path, *(part.format(name) for part in layout))
    report = check_coco(tmp_path, image_check="decode")
    assert report.clean
    assert len(report.files) == 2
    for split in ("train", "val"):
        data = CocoDataset(tmp_path, split)
        assert data.report in check_coco(tmp_path).files
        assert data[0][0].shape == (3, 40, 30)
    by_file = check_coco(tmp_path / layout[0].format(val))
    assert by_file.clean


def test_a_folder_that_is_one_split(tmp_path):
    lay_out(tmp_path, "_annotations.coco.json", ".")
    assert check_coco(tmp_path).clean
    assert len(CocoDataset(tmp_path, "val")) == 5
    assert len(CocoDataset(tmp_path, "train")) == 3


@pytest.mark.parametrize("capitals", [str.capitalize, str.upper])
def test_capitals_of_a_split_do_not_count(tmp_path, capitals):
    """As CVAT writes its subsets `Train` and `Validation`."""
    for name in ("train", "validation"):
        file = f"annotations/instances_{capitals(name)}.json"
        lay_out(tmp_path, file, f"images/{name.capitalize()}")
    for split in ("train", "val"):
        data = CocoDataset(tmp_path, split)
        assert data.report in check_coco(tmp_path).files
        assert data.report.annotation_file.name[10:].lower().startswith(split)
    lay_out(tmp_path, "annotations/instances_tRaIn.json", "images/Train")
    with pytest.raises(DataError, match="several annotation files for 'train'"):
        split_files(tmp_path, "train")
    lay_out(tmp_path, "annotations/instances_train.json", "images/Train")
    assert split_files(tmp_path, "train").annotations.name == "instances_train.json"


WHOLE = {
    "labelme2coco": ("annotations.json", "JPEGImages", "JPEGImages/"),
    "label studio": ("result.json", "images", "images\\"),
    "fiftyone": ("labels.json", "data", ""),
    "cvat": ("annotations/instances_default.json", "images/default", ""),
    "any name": ("mine.json", "images", ""),
}


@pytest.mark.parametrize("layout", WHOLE.values(), ids=WHOLE)
def test_the_only_file_of_a_folder_is_any_split_unless_it_is_called_one(tmp_path, layout):
    file, folder, before = layout
    content = coco_cases.content()
    for record in content["images"]:
        record["file_name"] = before + record["file_name"]
    lay_out(tmp_path, file, folder, content)
    (tmp_path / "package.json").write_text('{"images": [], "name": "no annotations"}')
    (tmp_path / "empty.json").write_text("")
    report = check_coco(tmp_path, image_check="decode")
    assert report.clean
    assert [f.annotation_file for f in report.files] == [tmp_path / file]
    assert len(list(CocoDataset(tmp_path, "val"))) == 5
    assert len(CocoDataset(tmp_path, "train")) == 3
    (tmp_path / file).rename(tmp_path / "minitrain.json")
    with pytest.raises(DataError, match=r"for 'val'; .*there is minitrain\.json\. A file of"):
        CocoDataset(tmp_path, "val")


def test_backslashes_are_slashes_unless_a_file_is_called_so(tmp_path):
    content = coco_cases.content()
    for record in content["images"]:
        record["file_name"] = f"val2017\\{record['file_name']}"
    root = lay_out(tmp_path, "annotations/instances_val2017.json", "val2017", content)
    assert check_coco(root, image_check="decode").clean
    assert len(list(CocoDataset(root, "val"))) == 5
    (root / "val2017" / "a.png").rename(root / "val2017\\a.png")
    assert slashed(root, "val2017\\a.png") == "val2017\\a.png"
    content["images"][1]["file_name"] = "..\\..\\secret.png"
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    assert "unsafe_path" in {f.kind for f in check_coco(root).files[0].findings}


def test_json_files_that_are_not_taken_are_named(tmp_path):
    for name in ("a.json", "deep/b.json", "deep/annotations.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    files = r"its JSON files are a\.json, deep/annotations\.json, deep/b\.json"
    with pytest.raises(DataError, match=rf"{files}; name one itself, .*--images FOLDER"):
        check_coco(tmp_path)
    with pytest.raises(DataError, match=rf"for 'train'; .*{files}\. .*data\.train_annotations"):
        CocoDataset(tmp_path, "train")


def test_file_names_may_hold_the_folder(tmp_path):
    content = coco_cases.content()
    for record in content["images"]:
        record["file_name"] = f"val2017/{record['file_name']}"
    root = lay_out(tmp_path, "annotations/instances_val2017.json", "val2017", content)
    assert check_coco(root, image_check="decode").clean
    assert len(list(CocoDataset(root, "val"))) == 5


def test_the_folder_that_holds_the_images_is_taken(tmp_path):
    lay_out(tmp_path, "annotations/instances_val2017.json", "images")
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "other.png").write_bytes(b"")
    (report,) = check_coco(tmp_path).files
    assert report.clean
    assert report.image_folder == tmp_path / "images"


def test_files_of_other_names_are_given_from_here_or_in_the_root(tmp_path, monkeypatch):
    lay_out(tmp_path, "labels/mine.json", "pictures")
    with pytest.raises(DataError, match=r"no annotation file for 'val'; looked for .*val_annot"):
        split_files(tmp_path, "val")
    monkeypatch.chdir(tmp_path.parent)
    for place in (tmp_path, tmp_path.relative_to(tmp_path.parent)):
        for prefix in ("", f"{place}/"):
            files = {"annotations": f"{prefix}labels/mine.json", "images": f"{prefix}pictures"}
            assert len(CocoDataset(place, "val", **files)) == 5
    assert len(CocoDataset(None, "val", **files)) == 5
    with pytest.raises(DataError, match=r"no annotation file at .*none\.json"):
        split_files(tmp_path, "val", annotations="none.json")
    with pytest.raises(DataError, match=r"no image folder at .*none"):
        split_files(tmp_path, "val", annotations="labels/mine.json", images="none")
    with pytest.raises(DataError, match="neither a folder nor an annotation file"):
        split_files(None, "val")


def test_which_of_several_files_is_meant(tmp_path):
    for year in (2014, 2015):
        lay_out(tmp_path, f"annotations/instances_val{year}.json", f"val{year}")
    with pytest.raises(DataError, match=r"several annotation files for 'val', .*2014.*2015"):
        split_files(tmp_path, "val")
    assert split_files(tmp_path, "val2014").annotations.name == "instances_val2014.json"
    lay_out(tmp_path, "annotations/instances_val2017.json", "val2017")
    assert split_files(tmp_path, "val").annotations.name == "instances_val2017.json"
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps({}))
    assert len(all_files(tmp_path)) == 3
    with pytest.raises(DataError, match=r"for 'train'; .*there is annotations/instances_val2014"):
        split_files(tmp_path, "train")
