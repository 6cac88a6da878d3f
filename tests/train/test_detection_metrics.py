import errno
import json
import math

import coco_cases
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchfree import DataError
from batchfree.data.coco import CocoDataset
from batchfree.data.masks import decode
from batchfree.data.scenes import DigitScenes
from batchfree.train.detection_metrics import FIGURES, CocoEvaluator

TYPES = {"bbox": "box", "segm": "mask"}


def guesses(data, seed=0, most=4):
    """Detections that are partly right: shifted, missed, doubled, of wrong labels, of no object."""
    generator = torch.Generator().manual_seed(seed)
    for _, target in data:
        found = {k: target[k] for k in ("boxes", "labels", "masks")}
        n = len(found["labels"])
        keep = torch.rand(2 * n, generator=generator) < 0.6  # each twice, then some
        found = {k: torch.cat([v, v])[keep] for k, v in found.items()}
        n = len(found["labels"])
        wrong = torch.rand(n, generator=generator) < 0.2
        labels = torch.where(wrong, found["labels"] % 3 + 1, found["labels"])
        shift = torch.randint(-most, most + 1, (n, 4), generator=generator)
        masks = found["masks"].clone()
        for k, (down, right, *_) in enumerate(shift.tolist()):
            masks[k] = masks[k].roll((down, right), (0, 1))
        yield (
            target["image_id"],
            {
                "boxes": found["boxes"] + shift + torch.rand(n, 4, generator=generator),
                "labels": labels,
                "scores": (torch.rand(n, generator=generator) * 20).round() / 20,  # ties
                "masks": masks[:, None].float() * 0.9,
            },
        )


def evaluated(truth, found):
    evaluator = CocoEvaluator(truth)
    for image_id, prediction in found:
        evaluator.update([image_id], [prediction])
    return evaluator


def by_pycocotools(truth_file, results_file, kind, image_ids=None):
    truth = COCO(str(truth_file))
    run = COCOeval(truth, truth.loadRes(str(results_file)), kind)
    if image_ids is not None:
        run.params.imgIds = image_ids
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


@pytest.fixture(params=["scenes", "coco"])
def data(request, tmp_path):
    """Digit scenes; and a folder with a crowd, an empty image, categories 3, 17 and 90."""
    if request.param == "scenes":
        return DigitScenes("test", images=25)
    return CocoDataset(coco_cases.write(tmp_path / "coco"), "val")


# pycocotools 2.0.11 under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_figures_equal_pycocotools_on_the_same_results_file(data, tmp_path, seed):
    most = 4 if isinstance(data, DigitScenes) else 1  # pixels of shift; the folder's are small
    evaluator = evaluated(data, guesses(data, seed, most))
    paths = dict(zip(TYPES, evaluator.write(tmp_path), strict=True))
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(data.ground_truth()))
    figures = evaluator.figures()
    per_category = evaluator.per_category()
    assert len(figures) == 24
    assert 0 < figures["box_AP"] < 100
    assert 0 < figures["mask_AP"] < 100
    assert figures["mask_AP"] != figures["box_AP"]
    for kind, prefix in TYPES.items():
        theirs = by_pycocotools(truth, paths[kind], kind)
        for name, value in zip(FIGURES, theirs.stats, strict=True):
            mine = figures[f"{prefix}_{name}"]
            assert math.isnan(mine) if value == -1 else abs(mine / 100 - value) < 1e-6, name
        precision = theirs.eval["precision"][:, :, :, 0, -1]
        for k, name in enumerate(data.categories.names):
            values = precision[:, :, k][precision[:, :, k] > -1]
            mine = per_category[prefix][name]
            if values.size:
                assert abs(mine / 100 - values.mean()) < 1e-6
            else:
                assert math.isnan(mine)
    # The annotation file itself as the ground truth.
    assert evaluated(truth, guesses(data, seed, most)).figures() == pytest.approx(
        figures, nan_ok=True
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_annotation_of_id_0_counts_though_pycocotools_loses_it(tmp_path):
    data = CocoDataset(coco_cases.write(tmp_path), "val")
    truth = data.ground_truth()
    for k, annotation in enumerate(truth["annotations"]):
        annotation["id"] = k
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    perfect = [(t["image_id"], t | {"scores": torch.ones(len(t["labels"]))}) for _, t in data]
    evaluator = evaluated(path, perfect)
    assert evaluator.figures()["box_AP"] == pytest.approx(100)
    results, _ = evaluator.write(tmp_path)
    assert by_pycocotools(path, results, "bbox").stats[0] < 0.99


@pytest.mark.parametrize("area", [None, "200", 0, -200, float("nan"), float("inf"), "missing"])
@pytest.mark.parametrize("by", ["set", "file"])
def test_an_object_whose_area_is_none_counts_at_the_size_of_its_mask(tmp_path, area, by):
    def spoil(content):
        for annotation in content["annotations"]:
            annotation["area"] = area
            if area == "missing":
                del annotation["area"]

    # Masks are the truth here: 1,600 pixels are medium, 32 * 32 = 1,024 the most that is small.
    def larger(content):
        square = [[20, 20, 60, 20, 60, 60, 20, 60]]
        for record in content["images"]:
            record |= {"height": 80, "width": 90}
        for annotation in content["annotations"]:
            annotation |= {"bbox": [20, 20, 40, 40], "segmentation": square, "area": 1600}

    figures = []
    for name, changes in (("good", [larger]), ("bad", [larger, spoil])):
        content = coco_cases.content()
        for change in changes:
            change(content)
        root = coco_cases.write(tmp_path / name, content)
        for path in (root / "val2017").iterdir():
            Image.new("RGB", (90, 80)).save(path)
        data = CocoDataset(root, "val")
        truth = data if by == "set" else root / "annotations" / "instances_val2017.json"
        perfect = ((t["image_id"], t | {"scores": torch.ones(len(t["labels"]))}) for _, t in data)
        figures.append(evaluated(truth, perfect).figures())
    assert figures[1] == pytest.approx(figures[0], nan_ok=True)
    assert figures[1]["box_APm"] == figures[1]["mask_APm"] == pytest.approx(100)
    assert math.isnan(figures[1]["box_APs"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_figures_over_the_images_seen(tmp_path):
    data = DigitScenes("test", images=10)
    found = list(guesses(data))[:4]
    evaluator = evaluated(data, found)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(data.ground_truth()))
    path, _ = evaluator.write(tmp_path)
    theirs = by_pycocotools(truth, path, "bbox", [i for i, _ in found])
    assert abs(evaluator.figures("seen")["box_AP"] / 100 - theirs.stats[0]) < 1e-6
    assert evaluator.figures("all")["box_AP"] < evaluator.figures("seen")["box_AP"]
    with pytest.raises(ValueError, match="images must be one of 'all', 'seen'"):
        evaluator.figures("some")


def perfect(data):
    for _, target in data:
        yield target["image_id"], target | {"scores": torch.ones(len(target["labels"]))}


def test_the_truth_itself_scores_a_hundred_and_nothing_scores_zero(data):
    figures = evaluated(data, perfect(data)).figures()
    assert figures["box_AP"] == pytest.approx(100)
    assert figures["mask_AP75"] == pytest.approx(100)
    nothing = CocoEvaluator(data)
    for image_id in data.image_ids:
        empty = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "scores": torch.zeros(0),
            "masks": torch.zeros(0, 1, 8, 8),
        }
        nothing.update([image_id], [empty])
    assert nothing.figures()["box_AP"] == 0
    assert nothing.figures()["mask_AR100"] == 0
    assert CocoEvaluator(data).figures()["mask_AP"] == 0  # no image was seen


def test_an_image_counts_once():
    data = DigitScenes("test", images=6)
    found = list(guesses(data))
    once = evaluated(data, found)
    twice = evaluated(data, [*found, found[0], (found[1][0], found[2][1])])
    assert twice.results("bbox") == once.results("bbox")
    assert twice.figures() == pytest.approx(once.figures(), nan_ok=True)
    twice.reset()
    assert twice.image_ids == ()
    assert twice.results("segm") == []


def renumber(content, image=lambda i: i, category=lambda i: i):
    for record in content["images"]:
        record["id"] = image(record["id"])
    for record in content["categories"]:
        record["id"] = category(record["id"])
    for record in content["annotations"]:
        record["image_id"] = image(record["image_id"])
        record["category_id"] = category(record["category_id"])


@pytest.mark.parametrize(
    "ids",
    [
        {"image": lambda i: -i},
        {"image": lambda i: i - 7},  # 0
        {"image": lambda i: i + 2**63},
        {"image": lambda i: i + 10**30, "category": lambda i: i + 10**30},
        {"category": lambda i: -i},
    ],
    ids=["negative", "zero", "past-int64", "huge", "negative-categories"],
)
def test_any_whole_number_is_an_id(tmp_path, ids):
    plain = CocoDataset(coco_cases.write(tmp_path / "plain"), "val")
    content = coco_cases.spoilt(lambda c: renumber(c, **ids))
    data = CocoDataset(coco_cases.write(tmp_path / "mine", content), "val")
    expected = evaluated(plain, perfect(plain))
    mine = evaluated(data, perfect(data))
    assert mine.figures() == pytest.approx(expected.figures(), nan_ok=True)
    assert mine.per_category() == expected.per_category()
    assert {r["image_id"] for r in mine.results("bbox")} <= set(data.image_ids)
    assert {r["category_id"] for r in mine.results("bbox")} == set(data.categories.ids)
    seen = evaluated(data, list(perfect(data))[:2])
    assert seen.figures("seen")["box_AP"] == pytest.approx(100)


def test_categories_of_one_name_have_a_figure_each(tmp_path):
    content = coco_cases.content()
    content["categories"] = [c | {"name": "z"} for c in content["categories"]]
    evaluator = evaluated(content, perfect(CocoDataset(coco_cases.write(tmp_path), "val")))
    for values in evaluator.per_category().values():
        assert list(values) == ["z (id 3)", "z (id 17)", "z (id 90)"]
        assert list(values.values()) == pytest.approx([100] * 3)


def test_annotations_of_nothing_listed_do_not_count(tmp_path):
    content = coco_cases.content()
    content["annotations"] += [
        coco_cases.annotation(50, 999, 3, [0, 0, 9, 9], [[0, 0, 9, 0, 9, 9]]),
        coco_cases.annotation(51, 10, 999, [0, 0, 9, 9], [[0, 0, 9, 0, 9, 9]]),
    ]
    evaluator = evaluated(content, perfect(CocoDataset(coco_cases.write(tmp_path), "val")))
    assert evaluator.figures()["box_AP"] == pytest.approx(100)


def test_results_are_in_cocos_format(tmp_path):
    data = CocoDataset(coco_cases.write(tmp_path), "val")
    evaluator = evaluated(data, perfect(data))
    boxes, masks = (evaluator.results(kind) for kind in TYPES)
    assert [r["image_id"] for r in boxes] == [7, 10, 10, 15, 20, 20]
    assert boxes[1] == {"image_id": 10, "category_id": 90, "bbox": [2, 3, 20, 10], "score": 1.0}
    assert list(masks[1]) == ["image_id", "category_id", "segmentation", "score"]
    assert torch.equal(decode([r["segmentation"] for r in masks[1:3]], 30, 40), data[1][1]["masks"])
    written = evaluator.write(tmp_path / "new")
    assert [p.name for p in written] == ["predictions_bbox.json", "predictions_segm.json"]
    assert json.loads(written[1].read_text()) == masks


def test_detections_of_a_resized_image_are_put_back(tmp_path):
    data = CocoDataset(coco_cases.write(tmp_path), "val")
    evaluator = CocoEvaluator(data)
    for image_id, prediction in perfect(data):
        masks = prediction["masks"][:, None].float()
        height, width = masks.shape[2:]
        big = {
            "boxes": prediction["boxes"] * torch.tensor([3.0, 2.0, 3.0, 2.0]),
            "labels": prediction["labels"],
            "scores": prediction["scores"],
            "masks": masks.repeat_interleave(2, 2).repeat_interleave(3, 3),
        }
        evaluator.update([image_id], [big], frames=[(2 * height, 3 * width)])
    assert evaluator.figures()["box_AP"] == pytest.approx(100)
    assert evaluator.figures()["mask_AP"] == pytest.approx(100)


def test_boxes_alone():
    data = DigitScenes("test", images=3)
    evaluator = CocoEvaluator(data, iou_types=("bbox",))
    for image_id, prediction in perfect(data):
        del prediction["masks"]
        evaluator.update([image_id], [prediction])
    assert set(evaluator.figures()) == {f"box_{name}" for name in FIGURES}
    with pytest.raises(ValueError, match="iou_type must be one of 'bbox', got 'segm'"):
        evaluator.results("segm")
    with pytest.raises(ValueError, match="has no masks"):
        CocoEvaluator(data).update([image_id], [prediction])


def test_a_diverged_network_is_said_to_be_one():
    data = DigitScenes("test", images=2)
    evaluator = CocoEvaluator(data)
    for image_id, prediction in perfect(data):
        prediction["boxes"] = prediction["boxes"].clone()
        prediction["boxes"][0, 2] = math.nan
        evaluator.update([image_id], [prediction])
    with pytest.warns(UserWarning, match="2 detections with a NaN or infinite box or score"):
        figures = evaluator.figures()
    assert figures["box_AP"] < 100
    assert np.isfinite([r["bbox"] for r in evaluator.results("bbox")]).all()


def test_bad_input(tmp_path):
    data = DigitScenes("test", images=2)
    evaluator = CocoEvaluator(data)
    _, prediction = next(perfect(data))
    with pytest.raises(ValueError, match="image 99 is not in the ground truth"):
        evaluator.update([99], [prediction])
    with pytest.raises(ValueError, match="labels are 1 to 10, got"):
        evaluator.update([1], [prediction | {"labels": prediction["labels"] + 10}])
    with pytest.raises(ValueError, match="2 images, 1 predictions"):
        evaluator.update([1, 2], [prediction])
    with pytest.raises(ValueError, match="iou_types must be one of"):
        CocoEvaluator(data, iou_types=("mask",))
    with pytest.raises(DataError, match="cannot be read"):
        CocoEvaluator(tmp_path / "none.json")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="is no annotation file"):
        CocoEvaluator(tmp_path / "results.json")
    content = coco_cases.content()
    content["images"][0]["id"] = "10"
    with pytest.raises(DataError, match="must be whole numbers, got '10'"):
        CocoEvaluator(content)
    content = coco_cases.content()
    del content["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="annotations without a segmentation"):
        CocoEvaluator(content)
    CocoEvaluator(content, iou_types=("bbox",))


def test_a_full_disk_raises_and_leaves_no_part(tmp_path, monkeypatch):
    evaluator = CocoEvaluator(DigitScenes("test", images=1))

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("batchfree._files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        evaluator.write(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def _worker(rank, folder):
    """Evaluates a rank's share, in which the last image is padding: one that rank 0 has too."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    data = DigitScenes("test", images=5)
    found = list(guesses(data))
    evaluator = evaluated(data, [found[i] for i in ((0, 2, 4), (1, 3, 0))[rank]])
    figures = evaluator.figures()
    evaluator.gather()  # once more changes nothing
    assert evaluator.figures() == pytest.approx(figures, nan_ok=True)
    with open(f"{folder}/rank{rank}.json", "w") as file:
        json.dump({"figures": figures, "images": evaluator.image_ids}, file)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_real_workers_count_each_image_once(tmp_path):
    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="spawn")
    data = DigitScenes("test", images=5)
    alone = evaluated(data, guesses(data)).figures()
    for rank in range(2):
        told = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert told["images"] == [1, 2, 3, 4, 5]
        assert told["figures"] == pytest.approx(alone, nan_ok=True)
