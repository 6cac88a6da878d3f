"""`batchfree evaluate`: a trained network on its recipe's validation set."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree._files import write_atomically
from batchfree.cli.configs import parse_config
from batchfree.cli.parsing import parse_known

_USAGE = (
    "batchfree evaluate NAME --checkpoint FILE [--config FILE] [--FIELD VALUE ...] [--output DIR]"
)
_EPILOG = (
    "NAME is the recipe that was trained, with the fields that it was trained with, FILE its "
    "model.safetensors or a checkpoint; a network that differs from the checkpoint's is refused. "
    "--model.min_size, max_size, test_proposals and detections_per_image may differ where they are "
    "given here. --output takes figures.json and, of a detector, its detections in COCO's results "
    "format."
)


def evaluate(args: list[str]) -> int:
    """`batchfree evaluate NAME --checkpoint FILE`."""
    name = args[0] if args and not args[0].startswith("-") else None
    own = argparse.ArgumentParser(prog="batchfree evaluate", add_help=False, allow_abbrev=False)
    own.add_argument("--checkpoint", type=Path)
    own.add_argument("--output", type=Path)
    options, fields = parse_known(own, args[name is not None :])
    asks = any(f in ("-h", "--help") for f in fields)
    if name is None and not any(f.split("=")[0] == "--config" for f in fields) and not asks:
        raise ConfigError(
            "evaluate needs the name of a recipe (batchfree train --list names them) or --config "
            "FILE"
        )
    config = parse_config(name, fields, _USAGE, _EPILOG)
    if options.checkpoint is None:
        raise ConfigError(
            "evaluate needs --checkpoint FILE: model.safetensors of a run, or a .ckpt"
        )

    from batchfree.train import DetectionConfig
    from batchfree.train.evaluate import evaluate as run
    from batchfree.train.evaluate_checks import TEST_FIELDS

    given = {f.removeprefix("--").partition("=")[0] for f in fields if f.startswith("--")}
    detects = isinstance(config, DetectionConfig)
    figures = run(
        config,
        options.checkpoint,
        predictions=options.output if detects else None,
        overrides=given & set(TEST_FIELDS) if detects else (),
    )
    from lightning_utilities.core.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:  # Lightning runs this command once for each rank
        return 0
    for figure, value in figures.items():
        print(f"{figure:<20} {value:8.3f}")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        kept = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        write_atomically(options.output / "figures.json", json.dumps(kept, indent=1).encode())
    return 0
