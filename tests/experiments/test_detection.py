"""The plans of the detection experiments."""

import pytest

from batchfree import ConfigError
from batchfree.experiments.detection import ARMS, PRESETS, make_preset, pictured_scenes, plan
from batchfree.experiments.detection_results import FINE_TUNED, SCRATCH, Arm
from batchfree.experiments.detection_run import BackboneRun, DetectionRun


def planned(experiment, tmp_path, fields=None, **preset):
    runs = plan(experiment, make_preset(experiment, **preset), tmp_path, "cpu", fields)
    detectors = [run for run in runs if isinstance(run, DetectionRun)]
    return runs, detectors, [run for run in runs if isinstance(run, BackboneRun)]


def test_scratch_is_norm_by_batch_by_seed_without_backbones(tmp_path):
    runs, detectors, backbones = planned("scratch", tmp_path)
    assert backbones == []
    assert [(r.arm.norm, r.arm.batch_size, r.config.seed) for r in detectors] == [
        (norm, batch, seed) for seed in (0, 1) for batch in (2, 1) for norm in ("gn", "bn")
    ]
    assert all(r.arm.start == SCRATCH and r.config.model.weights is None for r in detectors)
    assert [r.steps for r in detectors[:4]] == [3000, 3000, 6000, 6000]
    assert len({r.name for r in runs}) == len(runs)


def test_detection_is_the_papers_arms_after_their_own_backbones(tmp_path):
    _, detectors, backbones = planned("detection", tmp_path)
    assert {run.arm for run in detectors} == {
        Arm(*arm, batch_size=batch) for arm in ARMS["detection"].values() for batch in (2, 1)
    }
    assert [b.name for b in backbones] == [
        f"backbone-{norm}-seed{seed}" for seed in (0, 1) for norm in ("gn", "bn")
    ]
    for run in detectors:
        if run.arm.start == FINE_TUNED:
            norm = "gn" if run.arm.norm == "gn" else "bn"
            assert run.needs == (f"backbone-{norm}-seed{run.config.seed}",)
        else:
            assert run.needs == ()


def test_a_sweep_that_is_stopped_early_has_whole_seeds(tmp_path):
    for experiment in ARMS:
        runs, _, _ = planned(experiment, tmp_path, seeds=3)
        seeds = [run.config.seed for run in runs]
        assert seeds == sorted(seeds)


@pytest.mark.parametrize("experiment", list(ARMS))
def test_every_norm_has_the_same_budget_and_hyper_parameters(experiment, tmp_path):
    _, detectors, _ = planned(experiment, tmp_path, norms=list(ARMS[experiment]))

    def shared(run):
        model = dict.fromkeys(("norm", "fpn_norm", "box_norm", "mask_norm"), "gn")
        steps = run.config.replace(
            name="", seed=0, batch_size=2, model={**model, "channels_per_group": 8}
        )
        parts = {"schedule": detectors[0].config.schedule, "trainer": detectors[0].config.trainer}
        return steps.replace(**parts)

    assert all(shared(run) == shared(detectors[0]) for run in detectors)
    for run in detectors:
        config = run.config
        assert run.steps * config.batch_size == detectors[0].steps * detectors[0].config.batch_size
        assert config.learning_rate() == pytest.approx(0.01 * config.batch_size)
        assert config.schedule.milestones == [round(run.steps * 2 / 3), round(run.steps * 8 / 9)]


def test_the_head_norm_is_that_of_fpn_box_and_mask_head(tmp_path):
    _, detectors, _ = planned("detection", tmp_path)
    for run in detectors:
        model = run.config.model
        assert model.norm == run.arm.norm
        assert {model.fpn_norm, model.box_norm, model.mask_norm} == {run.arm.head_norm}


def test_the_settings_of_a_run_name_its_backbone_and_no_place(tmp_path):
    _, detectors, _ = planned("detection", tmp_path, norms=["gn"], batches=[2], seeds=1)
    (run,) = detectors
    assert str(tmp_path) not in str(run.settings)
    assert run.settings["backbone"]["trainer"]["max_steps"] == 3000
    assert run.complete_config().model.weights == str(run.backbone.weights)


def test_fields_hold_for_every_detector_and_groups_for_those_that_have_them(tmp_path):
    fields = {"model.rois_per_image": 256, "model.num_groups": 4}
    _, detectors, backbones = planned("detection", tmp_path, fields)
    assert {run.config.model.rois_per_image for run in detectors} == {256}
    for run in detectors:
        grouped = "gn" in (run.arm.norm, run.arm.head_norm)
        assert run.config.model.num_groups == (4 if grouped else None)
    assert {run.config.model.num_groups for run in backbones} == {4, None}


def test_budgets_in_images_and_in_steps():
    assert make_preset("scratch", images=100).images == 100
    assert make_preset("scratch", steps=100).images == 200
    assert make_preset("scratch", batches=[1, 2, 4]).batches == (4, 2, 1)
    assert all(preset.seeds >= 2 for preset in (p["hour"] for p in PRESETS.values()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(name="hours"), "unknown preset 'hours'; did you mean 'hour'"),
        (dict(norms=["gm"]), "unknown norm 'gm'; did you mean 'gn'"),
        (dict(seeds=0), "seeds must be at least 1, got 0"),
        (dict(batches=[2, 0]), "batch must be at least 1, got 0"),
        (dict(batches=[2, 2]), "each batch once"),
        (dict(images=-1), "images must be at least 1"),
        (dict(images=8, steps=4), "give one"),
    ],
)
def test_a_wrong_preset_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        make_preset("scratch", **change)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.rois_per_imge", 8, "did you mean 'model.rois_per_image'"),
        ("model.rois_per_image", "many", "must be a whole number, got 'many'"),
        ("model.rois_per_image", -8, "must be a positive number, got -8"),
        ("model.box_norm", "bn", "set by the experiment itself"),
        ("data.val_samples", 5, "set by the experiment itself"),
        ("trainer.max_steps", 5, "set by the experiment itself"),
    ],
)
def test_a_wrong_field_is_refused(tmp_path, name, value, words):
    with pytest.raises(ConfigError, match=words):
        planned("scratch", tmp_path, {name: value})


def test_a_batch_beyond_the_training_and_a_missing_gpu_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="batch of 4 is larger than the training of 2 images"):
        planned("scratch", tmp_path, batches=[4], images=2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no GPU.*--accelerator cpu"):
        plan("scratch", make_preset("scratch"), tmp_path, "gpu")


def test_the_pictured_scenes_are_the_first_and_known_by_their_pixels():
    scenes = pictured_scenes(128, 3)
    assert [scene.image_id for scene in scenes] == [1, 2, 3]
    assert len({scene.sha256 for scene in scenes}) == 3
    assert pictured_scenes(128, 400)[:3] == scenes
