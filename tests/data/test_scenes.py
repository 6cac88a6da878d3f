import numpy as np
import pytest
import torch

from batchfree.data import scenes as scenes_module
from batchfree.data.digits_in_the_wild import split_digits
from batchfree.data.masks import tight_boxes
from batchfree.data.scenes import DigitScenes


@pytest.fixture(scope="module")
def some():
    data = DigitScenes("train", images=60)
    return [data.scene(i) for i in range(len(data))]


def test_a_scene_depends_on_its_seed_split_and_index_alone():
    data = DigitScenes("train", images=50, seed=3)
    first = data.scene(7)
    data.scene(20)
    torch.rand(3)
    again = DigitScenes("train", images=9, seed=3).scene(7)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.masks, again.masks)
    assert torch.equal(first.labels, again.labels)
    for other in (
        DigitScenes("train", images=50, seed=4).scene(7),
        DigitScenes("test", images=50, seed=3).scene(7),
        data.scene(8),
    ):
        assert not torch.equal(first.image, other.image)


def test_loading_processes_give_the_same():
    data = DigitScenes("test", images=6)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    for (image, target), (expected, expected_target) in zip(loader, data, strict=True):
        assert torch.equal(image, expected)
        assert torch.equal(target["masks"], expected_target["masks"])


def test_masks_are_disjoint_and_boxes_are_tight(some):
    overlaps = 0
    for scene in some:
        assert scene.masks.sum(0).max() <= 1
        assert (scene.masks.sum((1, 2)) > 0).all()
        assert torch.equal(scene.boxes, tight_boxes(scene.masks))
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= 128
        left, top, right, bottom = scene.boxes.unbind(1)
        width = torch.minimum(right[:, None], right) - torch.maximum(left[:, None], left)
        height = torch.minimum(bottom[:, None], bottom) - torch.maximum(top[:, None], top)
        overlaps += int(((width > 0) & (height > 0)).triu(1).sum())
    assert overlaps > 20  # boxes do overlap, only masks do not


def test_number_and_scale_of_digits_vary(some):
    counts = {len(scene.labels) for scene in some}
    assert counts == {1, 2, 3, 4, 5, 6}
    sides = torch.cat([(s.boxes[:, 2:] - s.boxes[:, :2]).amax(1) for s in some])
    assert sides.min() < 32
    assert sides.max() > 60
    assert torch.cat([s.labels for s in some]).unique().tolist() == list(range(1, 11))


def test_pixels_off_every_digit_are_the_photograph_and_on_it_its_negative(some):
    data = DigitScenes("train", images=60)
    crops = data._crops.float()
    both = torch.cat([crops, crops.flip(3)])
    for scene in some[:5]:
        # Far enough from every stroke that no soft margin reaches.
        any_digit = scene.masks.amax(0).float()
        far = torch.nn.functional.max_pool2d(any_digit[None], 11, 1, 5)[0] == 0
        off = (both[:, :, far] - scene.image[:, far].float()).abs().amax((1, 2))
        assert off.min() == 0
        photo = both[off.argmin()]
        inside = torch.nn.functional.max_pool2d(1 - any_digit[None], 5, 1, 2)[0] == 0
        assert inside.sum() > 20
        negative = (photo[:, inside] - 255).abs()
        assert (negative - scene.image[:, inside].float()).abs().mean() < 40


def test_every_digit_stays_mostly_in_sight(monkeypatch):
    """The covered part of a stroke, found by painting the same digits without a cover."""
    data = DigitScenes("train", images=40, instances=(6, 6))
    warped, whole = scenes_module._warped, []

    def spy(*args):
        out = warped(*args)
        whole.append(int((out[0] >= 0.5).sum()))
        return out

    monkeypatch.setattr(scenes_module, "_warped", spy)
    parts = []
    for i in range(len(data)):
        whole.clear()
        scene = data.scene(i)
        if len(scene.labels) == len(whole):  # none was left out, so that they stand side by side
            parts += [s / w for s, w in zip(scene.masks.sum((1, 2)).tolist(), whole, strict=True)]
    assert len(parts) > 50
    assert 0.6 <= min(parts) < 0.9
    assert max(parts) == 1


def test_test_digits_are_unseen_in_training():
    train, test = DigitScenes("train", images=1), DigitScenes("test", images=1)
    assert torch.equal(train._digits, split_digits("train")[0])
    assert torch.equal(test._digits, split_digits("test")[0])
    seen = {d.numpy().tobytes() for d in train._digits}
    assert not seen & {d.numpy().tobytes() for d in test._digits}
    assert (len(train._digits), len(test._digits)) == (1200, 597)


def test_items_are_what_torchvisions_detectors_take():
    data = DigitScenes("test", images=5, size=192)
    image, target = data[4]
    assert (image.shape, image.dtype) == ((3, 192, 192), torch.float32)
    assert 0 <= image.min() < image.max() <= 1
    n = len(target["labels"])
    assert {k: (v.dtype, tuple(v.shape)) for k, v in target.items() if k != "image_id"} == {
        "boxes": (torch.float32, (n, 4)),
        "labels": (torch.int64, (n,)),
        "masks": (torch.uint8, (n, 192, 192)),
        "area": (torch.float32, (n,)),
        "iscrowd": (torch.int64, (n,)),
    }
    assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor
    assert target["image_id"] == 5
    assert data.categories.name(int(target["labels"][0])) in "0123456789"
    assert data.sizes == [(192, 192)] * 5
    assert np.array_equal(target["area"], target["masks"].sum((1, 2)))


def test_scenes_without_a_digit():
    data = DigitScenes("train", images=3, instances=(0, 0))
    _, target = data[0]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 128, 128)
    assert data.ground_truth()["annotations"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of 'train', 'test', got 'val'"),
        ({"size": 64}, "size must be 128 to 256 pixels, got 64"),
        ({"images": 0}, "images must be positive, got 0"),
        ({"instances": (4, 2)}, "the fewest and the most"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**arguments)
    with pytest.raises(IndexError, match="out of range for 2 images"):
        DigitScenes(images=2)[2]
