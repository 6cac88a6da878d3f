"""Folders of images on the command line, read as everywhere else."""

import numpy as np
import pytest
from command_line import run
from PIL import Image
from torch import nn

from batchfree._errors import DataError
from batchfree.cli.images import evaluation_images


def clean():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))


def test_16_bit_grey_is_what_it_is_in_8_bits(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for bits, pixels in ((8, grey), (16, grey.astype(np.uint16) * 257)):
        (tmp_path / str(bits)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(bits) / "a.png")
    eight, sixteen = (evaluation_images(tmp_path / bits, 1, 16) for bits in ("8", "16"))
    assert (eight == sixteen).all()
    assert eight.std() > 0.5


def test_a_broken_image_is_named(capsys, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"c\.png' cannot be read"):
        evaluation_images(tmp_path, 3, 16)
    line = ("--data", str(tmp_path), "--batch", "3", "--size", "16", "--quiet")
    code, _, err = run(capsys, "audit", f"{__name__}:clean", *line)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert "c.png' cannot be read" in err
