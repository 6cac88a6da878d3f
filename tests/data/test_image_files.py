import numpy as np
import pytest
from PIL import Image, ImageOps

from batchfree import DataError
from batchfree.data.image_files import (
    examine,
    frames,
    load_fitting,
    load_image,
    load_upright,
    no_word_of_size,
)
from batchfree.train.predict import read_image

WIDE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)  # 6 wide, 4 high


def save(path, orientation=None, pixels=WIDE, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_keeps_its_upper_eight_bits(tmp_path, ending, byteorder):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=f"{byteorder}u2")
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    grey = np.array([[0, 0, 1], [128, 254, 255]], dtype=np.uint8)
    predicted_on = read_image(tmp_path / f"a.{ending}").permute(1, 2, 0).numpy()
    assert np.array_equal(predicted_on, np.repeat(grey[..., None], 3, axis=2))
    for load in (load_image, load_upright, lambda p: load_fitting(p, 2, 3)):
        picture = load(tmp_path / f"a.{ending}")
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), np.repeat(grey[..., None], 3, axis=2))


def test_16_bit_grey_is_as_bright_as_the_same_in_8_bits(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    a, b = (np.asarray(load_image(tmp_path / f"{bits}.png")) for bits in (8, 16))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_fixed_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif' cannot be read .*32 bits.*save it with 8 or 16"):
        load_image(tmp_path / "a.tif")
    with pytest.raises(DataError, match="32 bits"):
        examine(tmp_path / "a.tif", 4, 4, decode=False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp"])
def test_the_annotated_size_says_whether_an_image_is_turned(tmp_path, orientation, ending):
    path = save(tmp_path / f"a.{ending}", orientation, lossless=True)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(load_image(path)), WIDE)
    assert np.array_equal(np.asarray(load_upright(path)), upright)
    assert np.array_equal(np.asarray(load_fitting(path, 4, 6)), WIDE)
    swaps = orientation >= 5
    tall = np.asarray(load_fitting(path, 6, 4))
    assert np.array_equal(tall, upright if swaps else WIDE)
    for decode in (False, True):
        told = {size: examine(path, *size, decode) for size in ((4, 6), (6, 4), (5, 5))}
        as_stored = "either" if orientation in (2, 3, 4) else "stored"
        assert told[4, 6] == (as_stored, (6, 4))
        assert told[6, 4] == ("upright" if swaps else "neither", (6, 4))
        assert told[5, 5] == ("neither", (6, 4))


@pytest.mark.parametrize("orientation", [2, 6])
def test_of_a_square_image_it_cannot_be_told(tmp_path, orientation):
    path = save(tmp_path / "a.png", orientation, WIDE[:, :4])
    assert examine(path, 4, 4, decode=False)[0] == "either"
    assert np.array_equal(np.asarray(load_fitting(path, 4, 4)), WIDE[:, :4])


def test_a_jpeg_is_examined_to_its_end_at_its_own_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", 8, pixels)
    assert examine(path, 60, 90, decode=True) == ("upright", (60, 90))
    assert load_fitting(path, 60, 90).size == (90, 60)
    data = path.read_bytes()
    for kept in (0.5, 0.9, 0.98):
        path.write_bytes(data[: int(len(data) * kept)])
        assert examine(path, 60, 90, decode=False)[0] == "upright"
        for read in (lambda: examine(path, 60, 90, decode=True), lambda: load_image(path)):
            with pytest.raises(DataError, match=r"cannot be read .*truncated"):
                read()


def test_a_tiff_is_turned_by_its_own_tag_whoever_reads_it(tmp_path):
    path = save(tmp_path / "a.tif", 6)
    assert examine(path, 6, 4, decode=False) == ("stored", (4, 6))
    for load in (load_image, load_upright, lambda p: load_fitting(p, 6, 4)):
        assert np.array_equal(np.asarray(load(path)), np.rot90(WIDE, -1))


def test_an_image_of_too_many_pixels_says_how_many_and_what_to_do(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 24 are there: PIL warns
    with no_word_of_size():
        assert examine(path, 4, 6, decode=True)[0] == "stored"
        assert load_upright(path).size == (6, 4)
    assert read_image(path).shape == (3, 4, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    for read in (lambda: examine(path, 4, 6, decode=False), lambda: read_image(path)):
        with pytest.raises(DataError, match=r"a\.png' has 24 pixels, .* most 22 .*: scale it down"):
            read()


def test_frames_are_counted(tmp_path):
    pages = [Image.fromarray(np.roll(WIDE, k, axis=0)) for k in range(3)]
    for name in ("a.tif", "a.gif", "a.webp", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert frames(tmp_path / name) == 3
    pages[0].save(tmp_path / "a.mpo", save_all=True, append_images=pages[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "phone.jpg")
    assert frames(tmp_path / "phone.jpg") == frames(save(tmp_path / "b.jpg")) == 1


def test_damaged_exif_is_passed_over(tmp_path):
    Image.fromarray(WIDE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(load_upright(tmp_path / "a.png")), WIDE)
    assert examine(tmp_path / "a.png", 4, 6, decode=True)[0] == "stored"
