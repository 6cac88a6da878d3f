"""The talk's main experiment: error over the batch that the norm sees, BN against the others.

Two protocols. `isolated` keeps the SGD batch, the learning rate and the steps and changes only the
number of samples that BN takes its statistics over; a norm that does not look at the batch then is
one and the same training for every size, and is run once. `paper` is that of Wu & He 2018, section
4.1.2: eight workers of n images each, the learning rate times n / 32, the same number of images
seen in all; every norm is run at every size.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.experiments.batch_size_run import BatchSizeRun
from batchfree.experiments.results import Results, Row
from batchfree.recipes import digits_small
from batchfree.train.checks import check_type, validate
from batchfree.train.config import Config, NormKind, field_types, unknown_field

ProtocolName = Literal["isolated", "paper"]

KINDS: dict[str, tuple[NormKind, bool]] = {
    "bn": ("bn", False),
    "gn": ("gn", False),
    "ln": ("ln", False),
    "in": ("in", False),
    "gn+ws": ("gn", True),
}
"""Each norm's name in a report: the kind of layer, and whether convolutions are standardised."""
NORMS = tuple(KINDS)
SIZES = (32, 16, 8, 4, 2)
WORKERS = 8
"""Simulated workers of the paper's protocol."""
PAPER_IMAGES = 32
"""Images per worker for which the learning rate is meant in the paper's protocol."""

_GROUPS = {f"model.{name}": name for name in ("num_groups", "channels_per_group")}
_SET_HERE = {
    "name",
    "seed",
    "batch_size",
    "data.val_samples",
    "model.norm",
    "model.normalization_batch",
    "model.weight_standardization",
}


@dataclass(frozen=True)
class Preset:
    """The scale of the experiment.

    Attributes:
        norms: which norms.
        sizes: normalisation batches, largest first.
        seeds: how many seeds, 0 and up.
        steps: optimizer steps at an SGD batch of 32.
        val_samples: validation images.
        evaluations: how often a run is evaluated; the last five give its error.
    """

    norms: tuple[str, ...] = NORMS
    sizes: tuple[int, ...] = SIZES
    seeds: int = 3
    steps: int = 3000
    val_samples: int = 2985
    evaluations: int = 25


PRESETS = {
    "quick": Preset(("bn", "gn"), (32, 2), 1, 200, 597, 10),
    "demo": Preset(("bn", "gn", "gn+ws"), SIZES, 1, 800, 1194, 25),
    "hour": Preset(),
}


def make_preset(
    name: str = "hour",
    *,
    norms: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
) -> Preset:
    """A preset by name, with other values where they are given.

    Raises:
        ConfigError: an unknown preset or norm, a size below 1 or given twice, seeds or steps below
            1, or no norm at all.

    Example:
        >>> make_preset("demo", sizes=[2, 32]).sizes
        (32, 2)
    """
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{suggest(name, PRESETS)}; known: {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    for norm in norms or ():
        if norm not in NORMS:
            raise ConfigError(
                f"unknown norm {norm!r}{suggest(norm, NORMS)}; known: {', '.join(NORMS)}"
            )
    for what, value in (("seeds", seeds), ("steps", steps), *(("size", s) for s in sizes or ())):
        if value is not None and value < 1:
            raise ConfigError(f"{what} must be at least 1, got {value}")
    if sizes is not None and len(set(sizes)) < len(sizes):
        raise ConfigError(f"each size once, got {' '.join(map(str, sizes))}")
    return replace(
        preset,
        norms=tuple(dict.fromkeys(norms)) if norms else preset.norms,
        sizes=tuple(sorted(sizes, reverse=True)) if sizes else preset.sizes,
        seeds=seeds or preset.seeds,
        steps=steps or preset.steps,
    )


def plan(
    preset: Preset,
    protocol: ProtocolName = "isolated",
    fields: Mapping[str, Any] | None = None,
) -> list[BatchSizeRun]:
    """The trainings of the experiment, seed by seed, the longest first within a seed.

    Args:
        preset: the scale.
        protocol: what a size changes.
        fields: other values of config fields, such as `{"optimizer.base_lr": 0.1}`, for every
            training alike; a number of groups for those that have groups.

    Raises:
        ConfigError: under `isolated`, a normalisation batch above the SGD batch; a field that
            there is not, or that the experiment itself sets, or a value of another type.
    """
    for name, value in (fields or {}).items():
        _check_field(name, value)
    runs = [
        BatchSizeRun(norm, size, _config(preset, protocol, norm, size, seed, fields or {}))
        for norm in preset.norms
        for size in _sizes_to_run(preset, protocol, norm)
        for seed in range(preset.seeds)
    ]
    for run in runs:
        validate(run.config)
    # A sweep that is stopped early then has whole seeds, and no long run is begun last.
    return sorted(
        runs, key=lambda run: (run.config.seed, run.norm != "bn", run.normalization_batch or 0)
    )


def _sizes_to_run(preset: Preset, protocol: str, norm: str) -> tuple[int | None, ...]:
    """Only BN looks at the normalisation batch: without it, one run stands for every size."""
    return preset.sizes if protocol == "paper" or norm == "bn" else (None,)


def _check_field(name: str, value: Any) -> None:
    types = field_types()
    if name not in types:
        raise unknown_field(name)
    if name in _SET_HERE or name.startswith("trainer."):
        raise ConfigError(f"{name} is set by the experiment itself; see its own options")
    check_type(name, value, types[name])


def _config(
    preset: Preset,
    protocol: str,
    norm: str,
    size: int | None,
    seed: int,
    fields: Mapping[str, Any],
) -> Config:
    kind, standardised = KINDS[norm]
    config = digits_small(kind, size if kind == "bn" else None, weight_standardization=standardised)
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if name not in _GROUPS:
            config = config.replace(**{section: {field: value}})
        elif kind == "gn":
            config = config.replace(model={**dict.fromkeys(_GROUPS.values()), field: value})
    batch_size, steps = config.batch_size, preset.steps
    if protocol == "paper":
        assert size is not None
        batch_size = WORKERS * size
        steps = max(1, round(preset.steps * config.batch_size / batch_size))
        config = config.replace(optimizer={"base_batch_size": WORKERS * PAPER_IMAGES})
    elif size is not None and size > batch_size:
        raise ConfigError(
            f"a normalisation batch of {size} is above the SGD batch of {batch_size}; take sizes "
            f"up to it, or --protocol paper, where the SGD batch is {WORKERS} times the size"
        )
    return config.replace(
        seed=seed,
        batch_size=batch_size,
        data={"val_samples": preset.val_samples},
        trainer={
            "max_steps": steps,
            "evaluate_every": max(1, round(steps / preset.evaluations)),
            "accelerator": "cpu",
            "devices": 1,
            "threads": 1,
        },
    )


def results_of(
    rows: tuple[Row, ...],
    *,
    preset: Preset,
    preset_name: str,
    protocol: ProtocolName,
    command: str,
) -> Results:
    """Wraps the rows of the experiment into its Results."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Results("batch-size", protocol, preset_name, preset.sizes, rows, command, created)


def command_line(arguments: Sequence[str]) -> str:
    """The command as a shell takes it, for the record."""
    return shlex.join(["batchfree", *arguments])
