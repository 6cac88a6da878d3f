"""What is wrong with a detector's BatchNorm, before it trains."""

import pytest

from batchfree.recipes import get_recipe
from batchfree.recipes.lint import lint
from batchfree.train.detection_build import build_random


def found(name, **sections):
    config = get_recipe(name).replace(**sections)
    return {(f.rule, f.field): f for f in lint(config) if f.rule != "frozen-from-scratch"}


def test_the_failing_backbone_is_found_where_the_machine_chooses_the_devices():
    findings = found("coco_r50_bn_2x")
    assert set(findings) == {
        ("small-batch", "model.norm"),
        ("other-experiment", "trainer.devices"),
    }
    small, other = findings.values()
    assert (
        "over 2 images (trainer.devices is 'auto': as 2 on a device) in the back" in small.message
    )
    assert "on one device it is 16 images, where the paper's rows have 2" in other.message
    assert "set trainer.devices 8" in other.advice


def test_the_named_experiment_is_two_images_a_device():
    eight = found("coco_r50_bn_2x", trainer={"devices": 8})
    assert set(eight) == {("small-batch", "model.norm")}
    assert "over 2 images in the backbone" in eight["small-batch", "model.norm"].message
    assert set(found("coco_r50_bn_2x", trainer={"devices": 1, "accumulate": 8})) == set(eight)
    one = found("coco_r50_bn_2x", trainer={"devices": 1})
    assert set(one) == {("other-experiment", "trainer.devices")}
    message = one["other-experiment", "trainer.devices"].message
    assert message == "BatchNorm's batch is 16 images, where the paper's rows have 2"
    single = found("coco_r50_bn_2x", trainer={"devices": 16})
    assert "over 1 image in the backbone" in single["small-batch", "model.norm"].message


def test_the_failing_head_is_found_with_its_regions():
    findings = found("coco_r50_frozen_bn_head_bn_2x", model={"weights": "w.pth"})
    assert set(findings) == {
        ("bn-in-roi-head", "model.box_norm"),
        ("other-experiment", "trainer.devices"),
    }
    message = findings["bn-in-roi-head", "model.box_norm"].message
    assert "over up to 512 regions of each of 2 images (trainer.devices is 'auto'" in message


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ({"box_norm": "bn", "box_head": "2fc"}, []),  # has no convolution to normalise
        ({"mask_norm": "bn", "box_head": "2fc"}, ["bn-in-roi-head model.mask_norm"]),
        ({"fpn_norm": "bn"}, ["small-batch model.fpn_norm"]),
        (
            {"norm": "bn", "neck": "c4", "fpn_norm": "bn", "box_norm": "bn"},
            ["small-batch model.norm", "bn-in-roi-head model.norm"],
        ),
        ({"norm": "sync_bn"}, []),  # over 16
    ],
)
def test_each_part_is_seen_where_it_has_a_norm(model, fields):
    base = {"norm": "gn", "fpn_norm": "none", "box_norm": "none", "mask_norm": "none"}
    findings = found("coco_r50_gn_2x", model={**base, **model}, trainer={"devices": 8})
    assert [" ".join(key) for key in findings] == fields


def test_sync_bn_is_counted_over_all_devices():
    findings = found("coco_r50_sync_bn_2x", trainer={"devices": 8})
    assert (
        "regions of each of 16 images, of all devices"
        in findings["bn-in-roi-head", "model.box_norm"].message
    )
    findings = found("coco_r50_sync_bn_2x", batch_size=8, trainer={"devices": 4})
    assert "over 8 images, of all devices," in findings["small-batch", "model.norm"].message
    assert ("small-batch", "model.norm") not in found("coco_r50_sync_bn_2x")


def test_scenes_are_no_row_of_the_paper():
    assert ("other-experiment", "trainer.devices") not in found("scenes_bn")
    assert "over 1 image in" in found("scenes_bn_batch1")["small-batch", "model.norm"].message


@pytest.mark.parametrize(
    "name",
    ["coco_r50_gn_2x", "coco_r50_gn_scratch_9x", "coco_r50_frozen_bn_head_gn_2x", "scenes_gn"],
)
def test_without_batch_norm_nothing_is_said_of_its_batch(name):
    assert found(name) == {}


def test_the_networks_heads_are_not_named_twice():
    config = get_recipe("scenes_bn")
    rules = [f.rule for f in lint(config, build_random(config.model, 10))]
    assert rules.count("bn-in-roi-head") == 2  # box and mask head


def test_a_changed_batch_with_the_recipes_schedule_is_found():
    recipe = get_recipe("coco_r50_gn_2x")
    changed = recipe.replace(batch_size=4)
    (finding,) = (f for f in lint(changed, recipe=recipe) if f.rule == "schedule")
    assert finding.message == (
        "trainer.max_steps and schedule.milestones are the recipe's, of 16 images a step: with 4 "
        "they come after 0.25 times the images"
    )
    wish = "set trainer.max_steps 720000, schedule.milestones [480000, 640000]"
    assert finding.advice == wish
    assert lint(recipe, recipe=recipe) == lint(recipe)
    half = changed.replace(trainer={"max_steps": 720_000})
    (finding,) = (f for f in lint(half, recipe=recipe) if f.rule == "schedule")
    assert finding.advice == "set schedule.milestones [480000, 640000]"
    followed = half.replace(schedule={"milestones": [480_000, 640_000]})
    assert "schedule" not in [f.rule for f in lint(followed, recipe=recipe)]
    digits = get_recipe("digits_small_gn")
    assert "schedule" in [f.rule for f in lint(digits.replace(batch_size=8), recipe=digits)]
