"""Reading image files: every kind as 8-bit RGB, and which way up."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from batchfree._errors import DataError

Fit = Literal["stored", "upright", "either", "neither"]

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = (5, 6, 7, 8)


def load_image(path: Path) -> Image.Image:
    """The image in RGB as its pixels are stored, whatever EXIF says of its orientation.

    Raises:
        DataError: it cannot be read; the message names the file and the remedy.
    """
    return _load(path, lambda image: False)


def load_upright(path: Path) -> Image.Image:
    """The image in RGB, turned as EXIF says; for images that no annotation file describes.

    Raises:
        DataError: it cannot be read.
    """
    return _load(path, lambda image: True)


def load_fitting(path: Path, height: int, width: int) -> Image.Image:
    """The image in RGB, turned as EXIF says where that is what gives it the size annotated.

    Boxes and masks are drawn on what the annotator's program showed, and the size that an
    annotation file gives tells which: pixels as stored (pycocotools, torchvision), or turned
    (detectron2). Where both have that size it is taken as stored, and so where neither has.

    Args:
        path: the file.
        height: by the annotation file, pixels.
        width: by the annotation file, pixels.

    Raises:
        DataError: it cannot be read.
    """
    return _load(path, lambda image: fit(image, height, width) == "upright")


def fit(image: Image.Image, height: int, width: int) -> Fit:
    """Which way up an image has a size: as stored, turned by EXIF, either or neither way.

    Without an orientation in EXIF there is but one way, `"stored"`.

    Example:
        >>> fit(Image.new("RGB", (40, 30)), 30, 40), fit(Image.new("RGB", (40, 30)), 40, 30)
        ('stored', 'neither')
    """
    stored = image.size == (width, height)
    orientation = _orientation(image)
    if orientation == 1:
        return "stored" if stored else "neither"
    upright = (image.size[::-1] if orientation in _SWAP_SIDES else image.size) == (width, height)
    if stored and upright:
        return "either"
    return "stored" if stored else "upright" if upright else "neither"


def examine(path: Path, height: int, width: int, decode: bool) -> tuple[Fit, tuple[int, int]]:
    """How an image file fits a size, and the width and height that it has as stored.

    Args:
        path: the file.
        height: expected, pixels.
        width: expected, pixels.
        decode: whether to read it to its end rather than its header alone.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            _check_range(image)
            size = image.size
            if not decode:
                return fit(image, height, width), size
            found = fit(image, height, width)
            # Every byte is read, but a JPEG's pixels are made at an eighth of the size: a quarter
            # of the time.
            image.draft("L", (1, 1))
            image.load()
            return found, size
    except Exception as e:
        raise _unreadable(path, e) from e


def frames(path: Path) -> int:
    """How many pictures a file that can be read holds: pages of a TIFF, frames of an animation.

    A camera's JPEG with a preview or a depth map behind it (MPO) holds one.
    """
    with no_word_of_size(), Image.open(path) as image:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


@contextmanager
def no_word_of_size() -> Iterator[None]:
    """Without PIL's warning of an image so large that it may be an attack; in one thread alone.

    It is of 89 megapixels, which a camera or a scanner makes; from twice that on PIL refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; of 16-bit grey the upper eight bits, as of 16-bit colour.

    Raises:
        ValueError: pixels of 32 bits, whose range no format fixes.
    """
    _check_range(image)
    if image.mode.startswith("I"):  # PIL's own conversion takes all that is above 255 for white
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGB")


def _load(path: Path, turned: Any) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()  # a PNG's EXIF may come after its pixels
            turn = _TURN.get(_orientation(image)) if turned(image) else None
            rgb = to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn)
    except Exception as e:  # PIL's decoders raise whatever a damaged file leads them to
        raise _unreadable(path, e) from e


def _orientation(image: Image.Image) -> int:
    try:
        if image.format == "PNG" and "exif" not in image.info:
            return 1  # PIL would read the whole file for it
        if image.format == "TIFF":
            return 1  # PIL turns it by itself: the orientation is the format's own
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to do without the image
        return 1
    return value if value in _TURN else 1


def _check_range(image: Image.Image) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(
            f"its pixels have 32 bits (mode {image.mode}) and no fixed range: save it with 8 or 16"
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, Image.DecompressionBombError):
        numbers = [int(n) for n in re.findall(r"\d+", str(error))]
        pixels, limit = numbers if len(numbers) == 2 else (0, 2 * (Image.MAX_IMAGE_PIXELS or 0))
        has = f"has {pixels:,} pixels" if pixels else "has too many pixels"
        return DataError(
            f"the image {str(path)!r} {has}, and at most {limit:,} are read: scale it down"
        )
    return DataError(
        f"the image {str(path)!r} cannot be read ({error}); replace or remove the file"
    )
