import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batchfree import DataError
from batchfree.data.detection import Categories
from batchfree.train.predict import find_images, passed_over, predict, read_image

CATEGORIES = Categories((3, 90), ("car", "toothbrush"))


class Seer(torch.nn.Module):
    """Sees a toothbrush in the left half of every image, and a car that it doubts."""

    def forward(self, images):
        height, width = images[0].shape[1:]
        masks = torch.zeros(2, 1, height, width)
        masks[0, 0, :, : width // 2] = 0.9
        boxes = torch.tensor([[0.0, 0.0, width / 2, height], [1.0, 1.0, 3.0, 3.0]])
        scores, labels = torch.tensor([0.9, 0.2]), torch.tensor([2, 1])
        return [{"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}]


def save(path, mode="RGB", size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 200 if mode in "LP" else None).save(path, **options)
    return path


def test_images_of_files_and_folders(tmp_path):
    a, b = save(tmp_path / "x" / "a.PNG"), save(tmp_path / "x" / "deep" / "b.jpg")
    c = save(tmp_path / "c.png")
    (tmp_path / "x" / "notes.txt").write_text("")
    found = find_images([tmp_path / "x", c, c])
    assert [(p, str(n)) for p, n in found] == [(a, "a.PNG"), (b, "deep/b.jpg"), (c, "c.png")]


def test_the_output_in_a_folder_of_images_is_not_predicted_on(tmp_path, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "photos" / "out"
    save(photos / "a.png")
    save(photos / "outer" / "b.jpg")
    first = find_images([photos], out)
    list(predict(Seer(), CATEGORIES, first, out))
    assert (out / "a.png").is_file()
    monkeypatch.chdir(tmp_path)
    for given, to in ((photos, out), (Path("photos"), Path("photos/../photos/out"))):
        found = find_images([given], to)
        assert [name for _, name in found] == [Path("a.png"), Path("outer/b.jpg")]
        assert passed_over([given], to) == {}
    assert passed_over([photos]) == {".json": 2}
    # The output named as the images is what was asked for.
    assert [str(name) for _, name in find_images([out], out)] == ["a.png", "outer/b.png"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    suffix = {"CMYK": "jpg"}.get(mode, "png")
    image = read_image(save(tmp_path / f"a.{suffix}", mode))
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8


def test_an_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    image = read_image(save(tmp_path / "a.jpg", exif=exif))
    assert image.shape == (3, 40, 30)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n cut"])
def test_a_broken_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)


def test_what_is_drawn_and_recorded(tmp_path):
    path = save(tmp_path / "a.png")
    (found,) = predict(Seer(), CATEGORIES, [(path, path.relative_to(tmp_path))], tmp_path / "out")
    assert (found.detections, found.error) == (1, None)
    picture = np.asarray(Image.open(found.drawn))
    left, right = picture[15:20, 5:15], picture[15:20, 25:35]
    assert left.any()  # the mask's colour over black
    assert not right.any()


def test_an_image_with_nothing_in_it(tmp_path):
    class Blind(torch.nn.Module):
        def forward(self, images):
            none = torch.zeros(0)
            size = images[0].shape[1:]
            return [
                {
                    "boxes": none.reshape(0, 4),
                    "labels": none.long(),
                    "scores": none,
                    "masks": torch.zeros(0, 1, *size),
                }
            ]

    path = save(tmp_path / "a.png")
    (found,) = predict(Blind(), CATEGORIES, [(path, path.relative_to(tmp_path))], tmp_path / "out")
    assert found.detections == 0
    assert (tmp_path / "out" / "predictions.json").read_text() == "[]"


def test_a_full_disk_is_the_systems_error(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    path = save(tmp_path / "a.png")
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        list(predict(Seer(), CATEGORIES, [(path, path.relative_to(tmp_path))], tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


class Choosy(Seer):
    """Raises at an image narrower than 8 pixels, as an image that is scaled to nothing does."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, images):
        if images[0].shape[1] < 8:
            raise self.error
        return super().forward(images)


def three(tmp_path):
    sizes = {"a.png": (40, 30), "b.png": (2000, 3), "c.png": (30, 40)}
    for name, size in sizes.items():
        save(tmp_path / "in" / name, size=size)
    return find_images([tmp_path / "in"])


def recorded(folder):
    listed = json.loads((folder / "images.json").read_text())["images"]
    results = json.loads((folder / "predictions.json").read_text())
    return [i["file_name"] for i in listed], sorted({r["image_id"] for r in results})


def test_an_image_that_the_network_cannot_take_is_named_and_the_rest_is_done(tmp_path):
    error = RuntimeError("Input and output sizes should be greater than 0")
    out = tmp_path / "out"
    found = list(predict(Choosy(error), CATEGORIES, three(tmp_path), out))
    assert [f.error is None for f in found] == [True, False, True]
    assert "b.png" in found[1].error
    assert "2000 x 3 pixels (Input and output sizes" in found[1].error
    assert recorded(out) == (["a.png", "c.png"], [1, 3])
    assert not (out / "b.png").exists()


def test_what_is_done_outlives_ctrl_c(tmp_path):
    images, out = three(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        list(predict(Choosy(KeyboardInterrupt()), CATEGORIES, images, out))
    assert recorded(out) == (["a.png"], [1])
    assert not list(out.glob(".*"))


def test_what_is_done_outlives_a_consumer_that_stops(tmp_path):
    findings = predict(Seer(), CATEGORIES, three(tmp_path), tmp_path / "out")
    next(findings)
    findings.close()
    assert recorded(tmp_path / "out") == (["a.png"], [1])


def test_what_is_done_outlives_an_error_of_the_disk(tmp_path, monkeypatch):
    images, out = three(tmp_path), tmp_path / "out"
    findings = predict(Seer(), CATEGORIES, images, out)
    next(findings)
    (out / "b.png").mkdir()  # a folder where the next picture belongs
    with pytest.raises(OSError, match=r"b\.png"):
        next(findings)
    assert recorded(out) == (["a.png"], [1])


def test_nothing_done_writes_nothing(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    (found,) = predict(Seer(), CATEGORIES, find_images([path]), tmp_path / "out")
    assert "a.png" in found.error
    assert not list((tmp_path / "out").iterdir())


def test_an_output_that_is_a_file_is_named(tmp_path):
    out = tmp_path / "out"
    out.write_text("")
    with pytest.raises(NotADirectoryError, match="out' is a file, and a folder is needed"):
        list(predict(Seer(), CATEGORIES, three(tmp_path), out))


def test_a_link_to_nothing_is_named_and_other_files_are_counted(tmp_path):
    pics = tmp_path / "pics"
    save(pics / "a.png")
    (pics / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    for name in ("b.gif", "c.GIF", "notes", ".hidden"):
        (pics / name).write_text("")
    images = find_images([pics])
    assert [str(name) for _, name in images] == ["a.png", "lost.jpg"]
    found = list(predict(Seer(), CATEGORIES, images, tmp_path / "out"))
    assert "lost.jpg" in found[1].error
    assert passed_over([pics, pics / "a.png"]) == {"": 1, ".gif": 2}
    with pytest.raises(DataError, match=r"lost\.jpg', a link to '.*gone\.jpg'"):
        find_images([pics / "lost.jpg"])
