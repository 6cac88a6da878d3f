"""The talk's detection experiments on digit scenes, after Wu & He 2018, section 4.2.

`scratch`: one norm everywhere, batches of 2 and 1, random weights. `detection`: backbone x head
norm, fine-tuned from classifiers that the experiment trains first. One network, one budget of
images and one set of hyper-parameters hold for every run; the learning rate is linear in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.experiments.detection_results import (
    FINE_TUNED,
    SCRATCH,
    Arm,
    DetectionResults,
    DetectionRow,
    PicturedScene,
)
from batchfree.experiments.detection_run import PICTURED, BackboneRun, DetectionRun
from batchfree.experiments.results import Row
from batchfree.recipes import scenes, scenes_backbone
from batchfree.train.checks import check_type, validate
from batchfree.train.config import NormKind, field_types, unknown_field
from batchfree.train.detection_config import DetectionConfig

ExperimentName = Literal["detection", "scratch"]
Accelerator = Literal["auto", "cpu", "gpu"]

ARMS: dict[ExperimentName, dict[str, tuple[NormKind, NormKind, str]]] = {
    "detection": {
        "gn": ("gn", "gn", FINE_TUNED),
        "frozen_bn": ("frozen_bn", "none", FINE_TUNED),
        "frozen_bn+gn": ("frozen_bn", "gn", FINE_TUNED),
        "frozen_bn+bn": ("frozen_bn", "bn", FINE_TUNED),
        "bn": ("bn", "bn", FINE_TUNED),
        "gn-scratch": ("gn", "gn", SCRATCH),
    },
    "scratch": {norm: (norm, norm, SCRATCH) for norm in ("gn", "bn", "ln", "none")},
}
"""What `--norms` names, by experiment: the norm of the backbone, that of FPN and heads, and how the
detector starts."""

_SET_HERE = {"name", "seed", "batch_size", "data.kind", "data.val_samples", "model.weights"}
_GROUPS = {f"model.{name}": name for name in ("num_groups", "channels_per_group")}
_NORM_FIELDS = {f"model.{part}norm" for part in ("", "fpn_", "box_", "mask_")}


@dataclass(frozen=True)
class DetectionPreset:
    """The scale of a detection experiment.

    Attributes:
        norms: names in `ARMS`.
        batches: images in a step, largest first.
        seeds: how many seeds, 0 and up.
        images: images of a detector's training, over all its steps.
        val_samples: validation scenes.
        evaluations: how often a run is evaluated.
        backbone_steps: steps of 32 images of the classifiers that detectors start from.
    """

    norms: tuple[str, ...]
    batches: tuple[int, ...]
    seeds: int = 2
    images: int = 6000
    val_samples: int = 200
    evaluations: int = 6
    backbone_steps: int = 3000


PRESETS: dict[ExperimentName, dict[str, DetectionPreset]] = {
    "detection": {
        "quick": DetectionPreset(("gn", "frozen_bn", "frozen_bn+bn"), (2,), 1, 200, 20, 2, 200),
        # Half of what `scratch` trains, as the talk gives fine-tuning the shorter schedules.
        "hour": DetectionPreset(tuple(ARMS["detection"]), (2, 1), images=3000),
    },
    "scratch": {
        "quick": DetectionPreset(("gn", "bn"), (2,), 1, 200, 20, 2),
        "hour": DetectionPreset(("gn", "bn"), (2, 1)),
    },
}


def make_preset(
    experiment: ExperimentName,
    name: str = "hour",
    *,
    norms: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    seeds: int | None = None,
    images: int | None = None,
    steps: int | None = None,
) -> DetectionPreset:
    """A preset by name, with other values where they are given.

    Args:
        experiment: which.
        name: `"quick"`, minutes, or `"hour"`, hours on two cores.
        norms: names in `ARMS`.
        batches: images in a step.
        seeds: how many.
        images: images of a training, over all its steps.
        steps: the same as steps of 2 images.

    Raises:
        ConfigError: an unknown preset or norm, a number below 1, a batch given twice, or images
            and steps both.

    Example:
        >>> make_preset("scratch", steps=100).images
        200
    """
    presets = PRESETS[experiment]
    _check_known(name, presets, "preset")
    for norm in norms or ():
        _check_known(norm, ARMS[experiment], "norm")
    given = {"seeds": seeds, "images": images, "steps": steps}
    for what, value in (*given.items(), *(("batch", b) for b in batches or ())):
        if value is not None and value < 1:
            raise ConfigError(f"{what} must be at least 1, got {value}")
    if batches is not None and len(set(batches)) < len(batches):
        raise ConfigError(f"each batch once, got {' '.join(map(str, batches))}")
    if images is not None and steps is not None:
        raise ConfigError(
            "images and steps both say how long a training is (steps are of 2 images): give one"
        )
    preset = presets[name]
    return replace(
        preset,
        norms=tuple(dict.fromkeys(norms)) if norms else preset.norms,
        batches=tuple(sorted(batches, reverse=True)) if batches else preset.batches,
        seeds=seeds or preset.seeds,
        images=images or (2 * steps if steps else preset.images),
    )


def plan(
    experiment: ExperimentName,
    preset: DetectionPreset,
    folder: Path,
    accelerator: Accelerator = "auto",
    fields: Mapping[str, Any] | None = None,
) -> list[BackboneRun | DetectionRun]:
    """The trainings of an experiment, seed by seed, so that one stopped early has whole seeds.

    Args:
        experiment: which.
        preset: the scale.
        folder: where weights and checkpoints go.
        accelerator: the device; `"auto"` is a GPU where there is one.
        fields: other values of fields of a `DetectionConfig`, such as
            `{"model.rois_per_image": 256}`, for every detector alike.

    Raises:
        ConfigError: a field that there is not, or that the experiment itself sets, or a value of
            another type; a batch that is larger than the training; no GPU where one is asked for.
    """
    for name, value in (fields or {}).items():
        _check_field(name, value)
    device = _device(accelerator)
    runs: list[BackboneRun | DetectionRun] = []
    for seed in range(preset.seeds):
        backbones: dict[str, BackboneRun] = {}
        detectors = []
        for batch in preset.batches:
            for name in preset.norms:
                norm, head, start = ARMS[experiment][name]
                config = _config(preset, norm, head, batch, seed, device, fields or {})
                backbone = None
                if start == FINE_TUNED:
                    origin: NormKind = "bn" if norm == "frozen_bn" else norm
                    if origin not in backbones:
                        backbones[origin] = _backbone(preset, origin, seed, device, config, folder)
                    backbone = backbones[origin]
                arm = Arm(norm, head, start, batch)
                detectors.append(DetectionRun(arm, config, folder, backbone))
        runs += [*backbones.values(), *detectors]
    for run in runs:
        # A frozen BatchNorm is refused without weights, which are yet to be trained.
        validate(run.complete_config() if isinstance(run, DetectionRun) else run.config)
    return runs


def results_of(
    rows: Sequence[Row | DetectionRow],
    runs: Sequence[BackboneRun | DetectionRun],
    *,
    experiment: ExperimentName,
    preset_name: str,
    command: str,
) -> DetectionResults:
    """Wraps the rows of an experiment's runs into its results."""
    detectors = [run for run in runs if isinstance(run, DetectionRun)]
    return DetectionResults(
        experiment=experiment,
        preset=preset_name,
        planned=tuple(run.name for run in detectors),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        rows=tuple(row for row in rows if isinstance(row, DetectionRow)),
        backbones=tuple(row for row in rows if isinstance(row, Row)),
        scenes=pictured_scenes(detectors[0].config.data.size, detectors[0].config.data.val_samples),
    )


@lru_cache(maxsize=1)
def pictured_scenes(size: int, val_samples: int | None) -> tuple[PicturedScene, ...]:
    """The test scenes of that size whose detections are kept."""
    from batchfree.data.scenes import DigitScenes

    data = DigitScenes("test", val_samples, size, 0)
    return tuple(
        PicturedScene(image_id, size, scene_digest(data.scene(image_id - 1).image))
        for image_id in PICTURED
        if image_id <= len(data)
    )


def scene_digest(image: Any) -> str:
    """The SHA-256 of an image, uint8 (3, H, W), in hexadecimal."""
    return sha256(image.contiguous().numpy().tobytes()).hexdigest()


def _config(
    preset: DetectionPreset,
    norm: NormKind,
    head: NormKind,
    batch: int,
    seed: int,
    device: str,
    fields: Mapping[str, Any],
) -> DetectionConfig:
    if batch > preset.images:
        raise ConfigError(
            f"a batch of {batch} is larger than the training of {preset.images} images; take a "
            "smaller batch or more images"
        )
    config = scenes(norm, head, batch_size=batch, images=preset.images, seed=seed)
    steps = preset.images // batch
    every = max(1, steps // preset.evaluations)
    config = config.replace(
        data={"val_samples": preset.val_samples},
        trainer={
            "evaluate_every": every,
            "checkpoint_every": max(1, min(200, every)),
            "accelerator": device,
            "devices": 1,
            "threads": 1,
        },
    )
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if name not in _GROUPS:
            config = config.replace(**{section: {field: value}})
        elif "gn" in (norm, head):
            config = config.replace(model={**dict.fromkeys(_GROUPS.values()), field: value})
    return config


def _backbone(
    preset: DetectionPreset,
    norm: NormKind,
    seed: int,
    device: str,
    detector: DetectionConfig,
    folder: Path,
) -> BackboneRun:
    steps = preset.backbone_steps
    shared = ["width", "blocks_per_stage", "stem", *(_GROUPS.values() if norm == "gn" else ())]
    config = scenes_backbone(norm, steps=steps, seed=seed).replace(
        model={name: getattr(detector.model, name) for name in shared},
        trainer={
            "evaluate_every": max(1, steps // preset.evaluations),
            "accelerator": device,
            "devices": 1,
            "threads": 1,
        },
    )
    return BackboneRun(config, folder)


def _device(accelerator: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise ConfigError(
            "there is no GPU that PyTorch can use here: take --accelerator cpu, or install a "
            "PyTorch with CUDA"
        )
    return "gpu" if accelerator != "cpu" and available else "cpu"


def _check_field(name: str, value: Any) -> None:
    types = field_types(DetectionConfig)
    if name not in types:
        raise unknown_field(name, DetectionConfig)
    if name in _SET_HERE | _NORM_FIELDS or name.startswith("trainer."):
        raise ConfigError(f"{name} is set by the experiment itself; see its own options")
    check_type(name, value, types[name])


def _check_known(name: str, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise ConfigError(
            f"unknown {what} {name!r}{suggest(name, known)}; known: {', '.join(known)}"
        )
