"""faster-coco-eval on ids of any size. Needs `batchfree[detect]`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster

from batchfree.data.detection import Categories

IouType = Literal["bbox", "segm"]


def compare(
    kind: IouType,
    sizes: Mapping[int, tuple[int, int]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Categories,
    results: Sequence[Mapping[str, Any]],
    image_ids: Collection[int],
) -> Any:
    """The library's evaluation, run: `stats` has the twelve figures, `eval` the precisions.

    It is given ids of its own, 1 to n in the order of the file's: it holds 64 bits without a sign,
    and takes an annotation's 0 for "unmatched". Nothing that is passed in is changed.

    Args:
        kind: of boxes or of masks.
        sizes: (height, width) of every image of the ground truth, by its id.
        annotations: the ground truth in COCO's format; those of an image or a category that is not
            listed do not count.
        categories: of the ground truth.
        results: detections in COCO's results format.
        image_ids: the images to evaluate on.
    """
    images = {id: k for k, id in enumerate(sorted(sizes), start=1)}
    labels = {id: k for k, id in enumerate(categories.ids, start=1)}

    def numbered(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        known = (r for r in records if r["image_id"] in images and r["category_id"] in labels)
        return [
            {
                "iscrowd": 0,
                **r,
                "id": k,
                "image_id": images[r["image_id"]],
                "category_id": labels[r["category_id"]],
            }
            for k, r in enumerate(known, start=1)
        ]

    truth = COCO(
        {
            "images": [
                {"id": k, "height": sizes[id][0], "width": sizes[id][1]} for id, k in images.items()
            ],
            "annotations": numbered(annotations),
            "categories": [
                {"id": k, "name": name} for k, name in enumerate(categories.unique_names, start=1)
            ],
        }
    )
    run = COCOeval_faster(truth, truth.loadRes(numbered(results)), kind)
    run.params.imgIds = sorted(images[id] for id in image_ids)
    run.run()
    return run
