import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycocotools_mask

from batchfree.data.masks import (
    area,
    decode,
    encode,
    extent,
    has_pixel,
    mask_areas,
    problem,
    tight_boxes,
)


# pycocotools 2.0.11 under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings(deadline=None, max_examples=50)
@given(st.integers(0, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_masks_come_back_from_json_as_they_were(count, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(count, height, width, generator=generator) > 0.5).to(torch.uint8)
    codes = json.loads(json.dumps(encode(masks)))
    back = decode(codes, height, width)
    assert back.dtype == torch.uint8
    assert back.is_contiguous()
    assert torch.equal(back, masks)
    assert [area(c, height, width) for c in codes] == masks.sum((1, 2)).tolist()
    assert torch.equal(mask_areas(masks), masks.sum((1, 2)))
    assert all(problem(c, height, width) is None for c in codes)
    for code, mask in zip(codes, masks, strict=True):
        assert torch.equal(torch.from_numpy(pycocotools_mask.decode(code)), mask)


def test_polygons_and_both_run_lengths_are_one_mask():
    polygon = [[2, 1, 5, 1, 5, 4, 2, 4]]
    mask = torch.zeros(6, 8, dtype=torch.uint8)
    mask[1:4, 2:5] = 1
    runs = [13, 3, 3, 3, 3, 3, 20]
    found = decode([polygon, {"size": [6, 8], "counts": runs}, *encode(mask[None])], 6, 8)
    assert torch.equal(found, mask.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "a polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[0, 0, 5, 5, 1, float("nan")]], "no finite number"),
        ([[0, 0, 5, 5, 1, 1e300]], "no finite number"),
        ([["0", 0, 5, 5, 1, 1]], "no finite number"),
        ([3, 4], "a polygon of type int"),
        ("text", "a segmentation of type str"),
        ({"counts": "22"}, "without its size"),
        ({"size": [8, 8]}, "without its size and counts"),
        ({"size": [8, 9], "counts": [72]}, "8 x 9 pixels for an image of 8 x 8"),
        ({"size": [8, 8], "counts": [60]}, "of 60 pixels for 64"),
        ({"size": [8, 8], "counts": [70, -6]}, "no number of pixels"),
        ({"size": [8, 8], "counts": "0"}, "cannot be read"),
        ({"size": [8, 8], "counts": "zzzz"}, "cannot be read"),
        ({"size": [8, 8], "counts": "é"}, "cannot be read"),
        ({"size": [8, 8], "counts": ""}, "cannot be read"),
    ],
)
def test_problems_are_named(segmentation, message):
    assert message in problem(segmentation, 8, 8)


def test_boxes_around_masks():
    masks = torch.zeros(3, 5, 7, dtype=torch.uint8)
    masks[0, 4, 6] = 1  # one pixel in the corner
    masks[1, 1:3, 2] = 1
    assert tight_boxes(masks).tolist() == [[6, 4, 7, 5], [2, 1, 3, 3], [0, 0, 0, 0]]
    assert tight_boxes(masks[:0]).shape == (0, 4)


def test_the_quick_answer_is_the_drawn_one():
    """Polygons of every thickness, in the image and across its edges."""
    generator = np.random.default_rng(0)
    answers = {True: 0, False: 0}
    for _ in range(2000):
        centre, size = generator.uniform(-4, 44, 2), generator.uniform(0, 12) ** 1.5
        points = centre + generator.normal(size=(int(generator.integers(3, 9)), 2)) * (
            size,
            generator.uniform(0, 2),
        )
        polygon = [[float(v) for v in points.ravel()]]
        drawn = area(polygon, 40, 40) > 0
        assert has_pixel(polygon, 40, 40) == drawn
        answers[drawn] += 1
    assert min(answers.values()) > 100


@pytest.mark.parametrize("form", ["polygon", "counts", "compressed"])
def test_extents_are_those_of_the_mask(form):
    mask = torch.zeros(1, 20, 30, dtype=torch.uint8)
    mask[:, 4:9, 7:12] = 1
    (compressed,) = encode(mask)
    segmentation = {
        "polygon": [[7, 4, 12, 4, 12, 9, 7, 9]],
        "counts": {"size": [20, 30], "counts": [144, 5, 15, 5, 15, 5, 15, 5, 15, 5, 371]},
        "compressed": compressed,
    }[form]
    assert torch.equal(decode([segmentation], 20, 30), mask)
    assert extent(segmentation, 20, 30) == tuple(tight_boxes(mask)[0].tolist())
    assert has_pixel(segmentation, 20, 30)
