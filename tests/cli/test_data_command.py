import errno
import json
from pathlib import Path

import coco_cases
import pytest
from command_line import run

from batchfree.data.coco import CocoDataset


def test_scenes_are_written_and_clean(capsys, tmp_path):
    out = tmp_path / "scenes"
    arguments = ("--images", "5", "--val-images", "2", "--size", "160", "--seed", "3")
    code, printed, _ = run(capsys, "data", "scenes", str(out), *arguments)
    assert code == 0
    assert printed == f"wrote 5 scenes to train and 2 to validate in {out}\n"
    assert CocoDataset(out, "train").sizes == [(160, 160)] * 5
    code, printed, _ = run(capsys, "data", "check", str(out), "--image-check", "decode")
    assert code == 0
    assert printed.count("nothing is wrong") == 2


def test_a_check_that_finds_something_exits_with_1(capsys, tmp_path):
    content = coco_cases.content()
    content["annotations"][0]["category_id"] = 5
    root = coco_cases.write(tmp_path, content)
    report = tmp_path / "report.json"
    code, printed, _ = run(capsys, "data", "check", str(root), "--json", str(report))
    assert code == 1
    assert "1  annotations of categories that are not listed  [unknown_category]" in printed
    assert "annotation 1 of image 10: category 5" in printed
    assert not json.loads(report.read_text())["clean"]


def test_boxes_alone_and_an_image_folder_of_another_name(capsys, tmp_path):
    content = coco_cases.content()
    del content["annotations"][0]["segmentation"]
    root = coco_cases.write(tmp_path, content)
    (root / "val2017").rename(root / "pictures")
    arguments = ("data", "check", str(root), "--images", str(root / "pictures"))
    assert run(capsys, *arguments)[0] == 1
    assert run(capsys, *arguments, "--boxes-only")[0] == 0


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("data chek x", 2, "no command 'chek'; did you mean 'check'"),
        ("data scenes", 2, "the following arguments are required: OUT"),
        ("data scenes OUT --size 64", 2, "size must be 128 to 256 pixels, got 64"),
        ("data scenes OUT --images 0", 2, "images must be positive, got 0"),
        ("data scenes OUT --seed -1", 2, "--seed must not be negative, got -1"),
        ("data scenes OUT --format pgn", 2, "no format 'pgn'; did you mean 'png'"),
        ("data scenes OUT --image 3 --colour", 2, "unknown argument '--colour'"),
        ("data scenes .", 1, "is not empty"),
        ("data check none", 2, "does not exist"),
        ("data check . --image-check all", 2, "no level 'all'"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, tmp_path, monkeypatch, line, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    found, _, err = run(capsys, *line.split())
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_help(capsys):
    code, out, _ = run(capsys, "data")
    assert code == 2
    assert "scenes OUT" in out
    assert run(capsys, "data", "--help")[0] == 0
    assert "train2017" in run(capsys, "data", "scenes", "--help")[1]
    assert "Exits with 0" in run(capsys, "data", "check", "--help")[1]


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run(capsys, "data", "scenes", str(tmp_path / "out"), "--images", "2")
    assert code == 1
    assert "No space left on device; nothing is kept of them: free some space" in err
    assert list(tmp_path.iterdir()) == []
