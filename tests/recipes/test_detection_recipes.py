import pytest
import torch
from detection_runs import MODEL

from batchfree import ConfigError
from batchfree.recipes import RECIPES, coco, get_recipe, scenes
from batchfree.recipes.coco import SCHEDULES
from batchfree.train import DetectionConfig, fit
from batchfree.train.detection_build import build_detector, build_random
from batchfree.train.loop import plan

DETECTION = [n for n in RECIPES if isinstance(get_recipe(n), DetectionConfig)]
SMALL = {
    k: MODEL[k]
    for k in (
        *("fpn_channels", "head_channels", "fc_channels", "min_size", "max_size"),
        *("rois_per_image", "anchors_per_image", "train_proposals", "test_proposals"),
    )
}


def shrunk(name, tmp_path):
    """The recipe at 64 channels and 128 pixels on two images; its backbone's depth where small."""
    config = get_recipe(name)
    kind = config.model
    gn = "gn" in (kind.norm, kind.fpn_norm, kind.box_norm, kind.mask_norm)
    model = {**SMALL, "num_groups": None, "channels_per_group": 4 if gn else None}
    if kind.backbone in ("resnet101", "resnext152_32x8d"):  # minutes on a CPU; built below
        model["backbone"] = "resnet50"
    trainer = {"max_steps": 2, "evaluate_every": 2, "accelerator": "cpu", "devices": 1}
    return config.replace(
        batch_size=2,
        model=model,
        data={"kind": "scenes", "val_samples": 1, "train_samples": 4, "workers": 0, "flip": 0.0},
        trainer={**trainer, "threads": 1},
    )


def weights(config, path):
    """A classifier's checkpoint that fits the backbone, with random weights."""
    state = build_random(config.model, 10).backbone.body.state_dict()
    if config.model.neck == "c4":
        stage = build_random(config.model, 10).roi_heads.box_head[0].state_dict()
        state |= {f"layer4.{k}": v for k, v in stage.items()}
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", DETECTION)
def test_a_detection_recipe_takes_two_steps(name, tmp_path):
    config = shrunk(name, tmp_path)
    if "--model.weights" in RECIPES[name].__doc__:
        file = weights(config, tmp_path / "w.pth")
        config = config.replace(model={"weights": file, "adopt_conventions": True})
    result = fit(config)
    assert result.curve[-1]["step"] == 2
    assert result.curve[-1]["train_loss"] > 0
    assert 0 <= result.figures["box_AP"] <= 100


@pytest.mark.parametrize("name", DETECTION)
def test_a_detection_recipe_builds_at_its_full_size(name):
    config = get_recipe(name)
    with torch.device("meta"):
        model = build_random(config.model, 80 if config.data.kind == "coco" else 10)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (config.model.freeze_at > 0)
    assert not config.optimizer.decay_norm_parameters
    assert config.trainer.gradient_clip is None


@pytest.mark.parametrize(
    ("name", "norms", "box_head", "row"),
    [  # norms of backbone, FPN, box head, mask head
        ("coco_r50_frozen_bn_2x", "frozen_bn none none none", "2fc", "38.6 box AP, 34.5 mask"),
        ("coco_r101_frozen_bn_2x", "frozen_bn none none none", "2fc", "40.9 box AP, 36.4 mask"),
        ("coco_r50_frozen_bn_3x", "frozen_bn none none none", "2fc", "no such row"),
        ("coco_r101_frozen_bn_3x", "frozen_bn none none none", "2fc", "no such row"),
        ("coco_r50_bn_2x", "bn none none none", "2fc", "about 6 below 38.6 box AP"),
        (
            "coco_r50_frozen_bn_4conv1fc_2x",
            "frozen_bn none none none",
            "4conv1fc",
            "38.6 box AP, 34.2 mask AP",
        ),
        (
            "coco_r50_frozen_bn_head_gn_2x",
            "frozen_bn none gn none",
            "4conv1fc",
            "39.5 box AP, 34.4 mask AP",
        ),
        ("coco_r50_gn_head_gn_2x", "gn none gn none", "4conv1fc", "40.0 box AP, 34.8 mask AP"),
        (
            "coco_r50_frozen_bn_head_bn_2x",
            "frozen_bn none bn none",
            "4conv1fc",
            "about 9 below 38.6 box AP",
        ),
        ("coco_r50_gn_2x", "gn gn gn gn", "4conv1fc", "40.3 box AP, 35.7 mask AP"),
        ("coco_r101_gn_2x", "gn gn gn gn", "4conv1fc", "41.8 box AP, 36.8 mask AP"),
    ],
)
def test_the_row_that_a_recipe_names_is_what_it_builds(name, norms, box_head, row):
    config = get_recipe(name)
    assert row in RECIPES[name].__doc__.splitlines()[0]
    model = config.model
    assert [model.norm, model.fpn_norm, model.box_norm, model.mask_norm] == norms.split()
    assert config.name == name
    with torch.device("meta"):
        head = build_random(model, 80).roi_heads.box_head
    kinds = [type(m).__name__ for m in head.modules()]
    convolutions = kinds.count("Conv2d")
    assert (kinds[0] == "TwoMLPHead", convolutions) == (
        (True, 0) if box_head == "2fc" else (False, 4)
    )
    in_head = {"gn": "GroupNorm", "bn": "BatchNorm2d"}.get(model.box_norm)
    found = [k for k in kinds if k in ("GroupNorm", "BatchNorm2d")]
    assert found == [in_head] * (4 if in_head else 0)


def test_the_two_plain_rows_with_the_4conv1fc_head_are_named():
    doc = RECIPES["coco_r50_frozen_bn_4conv1fc_2x"].__doc__
    assert "38.8 box AP, 34.4 mask AP" in doc


@pytest.mark.parametrize("name", [n for n in DETECTION if n.startswith("coco")])
def test_a_recipes_run_has_its_name_and_a_command_with_it(name):
    assert get_recipe(name).name == name
    assert f"batchfree train {name} --data.root" in RECIPES[name].__doc__


def test_recipes_need_what_they_start_from():
    with pytest.raises(ConfigError, match=r"name model\.weights"):
        fit(get_recipe("scenes_frozen_bn_finetuned"))


@pytest.mark.parametrize(
    ("times", "steps", "falls"),
    [
        ("1x", 90_000, [60_000, 80_000]),
        ("2x", 180_000, [120_000, 160_000]),
        ("3x", 270_000, [210_000, 250_000]),
        ("6x", 540_000, [480_000, 520_000]),
        ("9x", 810_000, [750_000, 790_000]),
    ],
)
def test_the_papers_schedules(times, steps, falls):
    config = coco(times=times)
    schedule = plan(config, 118_287).schedule
    assert schedule.total == config.trainer.max_steps == steps
    assert list(schedule.milestones) == falls
    assert [schedule.factor(s) for s in (0, 250, 500)] == pytest.approx([1 / 3, 2 / 3, 1])
    factors = [schedule.factor(f + d) for f in falls for d in (-1, 0)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])
    assert set(SCHEDULES) == {"1x", "2x", "3x", "6x", "9x"}


def test_another_batch_keeps_the_images_and_scales_the_rate():
    config = coco(batch_size=4)
    assert config.trainer.max_steps == 4 * 180_000
    assert config.schedule.milestones == [480_000, 640_000]
    assert config.learning_rate() == pytest.approx(0.005)
    assert config.schedule.warmup == 500


def test_from_scratch_nothing_is_frozen_and_no_gamma_starts_at_zero():
    for name in DETECTION:
        config = get_recipe(name)
        if "scratch" in name or name.startswith("scenes"):
            assert config.model.freeze_at == 0
        assert not config.model.zero_init_residual


def test_the_embedded_twins_differ_in_what_is_compared_only():
    gn, bn = scenes("gn"), scenes("bn")
    assert bn.replace(name=gn.name, model=gn.model) == gn
    kinds = {k: "gn" for k in ("norm", "fpn_norm", "box_norm", "mask_norm")}
    assert bn.replace(model={**kinds, "channels_per_group": 8}).model == gn.model
    one, two = scenes("gn", batch_size=1), scenes("gn")
    assert one.trainer.max_steps == 2 * two.trainer.max_steps
    assert one.learning_rate() == two.learning_rate() / 2


def test_the_embedded_network_is_small():
    model = build_random(get_recipe("scenes_gn").model, 10)
    assert sum(p.numel() for p in model.parameters()) < 6e6


def test_the_embedded_classifier_is_the_detectors_backbone(tmp_path):
    for norm, detector in (("gn", "scenes_gn_finetuned"), ("bn", "scenes_frozen_bn_finetuned")):
        classifier = get_recipe(f"scenes_backbone_{norm}").replace(
            batch_size=2,
            data={"val_samples": 2},
            trainer={"max_steps": 1, "accelerator": "cpu"},
        )
        trained = fit(classifier, output=tmp_path / norm, progress=False)
        config = get_recipe(detector).replace(
            model={"weights": str(tmp_path / norm / "model.safetensors"), **SMALL},
            data={"val_samples": 1, "train_samples": 2},
            trainer={"max_steps": 1, "accelerator": "cpu", "threads": 1},
        )
        network, remarks = build_detector(config.model, 10)
        assert remarks == []
        state = trained.model.state_dict()
        body = network.backbone.body.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in body.items() if k in state)
