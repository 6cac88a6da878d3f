import errno
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from batchfree import DataError
from batchfree.data.coco import CocoDataset
from batchfree.data.coco_check import check_coco
from batchfree.data.scenes import DigitScenes
from batchfree.data.scenes_folder import write_scenes


@pytest.mark.parametrize(("split", "digits", "count"), [("train", "train", 6), ("val", "test", 3)])
def test_scenes_read_back_are_those_made_in_memory(tmp_path, split, digits, count):
    out = write_scenes(tmp_path / "out", images=6, val_images=3, seed=5, instances=(0, 6))
    on_disk = CocoDataset(out, split, keep_empty=True)
    in_memory = DigitScenes(digits, images=count, seed=5, instances=(0, 6))
    assert len(on_disk) == len(in_memory) == count
    assert on_disk.categories == in_memory.categories
    assert on_disk.sizes == in_memory.sizes
    for (image, target), (expected, expected_target) in zip(on_disk, in_memory, strict=True):
        assert torch.equal(image, expected)
        assert list(target) == list(expected_target)
        for name, value in expected_target.items():
            if name == "image_id":
                assert target[name] == value
            else:
                assert target[name].dtype == value.dtype
                assert torch.equal(target[name], value), name
    truths = [d.ground_truth()["annotations"] for d in (on_disk, in_memory)]
    assert truths[0] == truths[1]
    assert check_coco(out, image_check="decode").clean


def test_the_same_command_gives_the_same_bytes(tmp_path):
    folders = [write_scenes(tmp_path / name, images=3, val_images=1) for name in ("a", "b")]
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 6
    for name in files[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_jpeg(tmp_path):
    out = write_scenes(tmp_path / "out", images=2, format="jpeg")
    assert sorted(p.name for p in (out / "train2017").iterdir()) == [
        "000000000001.jpg",
        "000000000002.jpg",
    ]
    with Image.open(out / "train2017" / "000000000001.jpg") as image:
        assert image.format == "JPEG"
    image, target = CocoDataset(out, "train")[0]
    expected, expected_target = DigitScenes("train", images=2)[0]
    assert (image - expected).abs().mean() < 0.05
    assert torch.equal(target["masks"], expected_target["masks"])


def test_a_fifth_is_for_validation_and_progress_is_told(tmp_path):
    told = []
    out = write_scenes(tmp_path / "new" / "out", images=10, progress=lambda *p: told.append(p))
    assert told == [(k, 12) for k in range(1, 13)]
    content = json.loads((out / "annotations" / "instances_val2017.json").read_text())
    assert len(content["images"]) == 2
    assert content["categories"][0] == {"id": 1, "name": "0", "supercategory": "digit"}


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match=r"is not empty, it holds mine.txt; name another"):
        write_scenes(tmp_path, images=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="is a file"):
        write_scenes(tmp_path / "mine.txt", images=1)
    with pytest.raises(ValueError, match="format must be one of 'png', 'jpeg', got 'gif'"):
        write_scenes(tmp_path / "out", format="gif")
    with pytest.raises(ValueError, match="images must be positive, got 0"):
        write_scenes(tmp_path / "out", images=0)


def test_an_empty_folder_is_filled(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_scenes(out, images=1)
    assert len(list((out / "train2017").iterdir())) == 1


@pytest.mark.parametrize("ending", [".png", ".json", "annotations"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, ending):
    """Wherever the disk runs full: at the third image, at the annotations, at the first folder."""
    write, mkdir, calls = Path.write_bytes, Path.mkdir, []

    def full(path):
        calls.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def write_bytes(self, data):
        return full(self) if self.name.endswith(f"3{ending}") else write(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    if ending == ".json":
        monkeypatch.setattr(
            "batchfree.data.scenes_folder.write_atomically", lambda path, data: full(path)
        )
    if ending == "annotations":
        monkeypatch.setattr(
            Path,
            "mkdir",
            lambda self, *a, **k: full(self) if self.name == ending else mkdir(self, *a, **k),
        )
    with pytest.raises(DataError, match="No space left on device; nothing is kept") as raised:
        write_scenes(tmp_path / "out", images=4)
    assert calls
    assert "free some space" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", images=4, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
