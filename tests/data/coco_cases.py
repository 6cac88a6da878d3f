"""A small COCO folder with what real ones have, and every way to spoil it."""

import copy
import json

import numpy as np
from PIL import Image

# Not contiguous, not in order.
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]


def content():
    """Five images: polygons and run lengths, a crowd, one empty, boxes of a pixel and outside."""
    images = [
        {"id": 10, "file_name": "a.png", "height": 30, "width": 40},
        {"id": 7, "file_name": "b.png", "height": 40, "width": 30},
        {"id": 12, "file_name": "empty.png", "height": 20, "width": 20},
        {"id": 15, "file_name": "crowd.png", "height": 20, "width": 24},
        {"id": 20, "file_name": "pixel.jpg", "height": 32, "width": 48},
    ]
    annotations = [
        # A square with a hole beside it: two polygons of one object.
        annotation(
            1, 10, 90, [2, 3, 20, 10], [[2, 3, 12, 3, 12, 13, 2, 13], [15, 3, 22, 3, 22, 9]]
        ),
        annotation(2, 10, 3, [30, 20, 8, 8], [[30, 20, 38, 20, 38, 28, 30, 28]]),
        # Uncompressed run lengths, by columns: column 5, rows 4 to 9.
        annotation(5, 7, 17, [5, 4, 1, 6], {"size": [40, 30], "counts": [204, 6, 990]}),
        annotation(6, 15, 3, [0, 0, 2, 20], {"size": [20, 24], "counts": [0, 40, 440]}, iscrowd=1),
        annotation(8, 20, 3, [47, 31, 1, 1], [[47, 31, 48, 31, 48, 32, 47, 32]], area=1),
        annotation(9, 20, 90, [4, 4, 10, 10], [[4, 4, 14, 4, 14, 14, 4, 14]]),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def annotation(id, image_id, category_id, bbox, segmentation, iscrowd=0, area=None):
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "segmentation": segmentation,
        "iscrowd": iscrowd,
        "area": bbox[2] * bbox[3] if area is None else area,
    }


def write(root, written=None, split="val"):
    """Writes the folder and returns it."""
    written = content() if written is None else written
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for record in content()["images"]:
        pixels = generator.integers(0, 256, (record["height"], record["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / record["file_name"])
    file = root / "annotations" / f"instances_{split}2017.json"
    file.write_text(written if isinstance(written, str) else json.dumps(written))
    return root


def spoilt(change):
    """The content with a change, a function that edits it or returns another."""
    out = copy.deepcopy(content())
    changed = change(out)
    return out if changed is None else changed


def truncate(path):
    """Cuts an image file in half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
