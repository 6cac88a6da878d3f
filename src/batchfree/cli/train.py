"""`batchfree train`: one training from a recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from batchfree._errors import ConfigError
from batchfree.cli.configs import parse_config
from batchfree.cli.parsing import INTERRUPTED, parse_known

if TYPE_CHECKING:
    from batchfree.train import Config, DetectionConfig

_USAGE = (
    "batchfree train NAME [--config FILE] [--FIELD VALUE ...] [--output DIR] [--resume CKPT] "
    "[--quiet] [--print_config] [--list]"
)
_EPILOG = (
    "NAME is a recipe (--list shows them). --output is the run's folder, runs/NAME by default; "
    "--resume continues from a checkpoint or a run's folder; --quiet shows no bar."
)


def train(args: list[str]) -> int:
    """`batchfree train`: one training from a recipe."""
    name = args[0] if args and not args[0].startswith("-") else None
    own = argparse.ArgumentParser(prog="batchfree train", add_help=False, allow_abbrev=False)
    own.add_argument("--list", action="store_true")
    own.add_argument("--output", type=Path)
    own.add_argument("--resume", type=Path)
    own.add_argument("--quiet", action="store_true")
    options, fields = parse_known(own, args[name is not None :])
    if options.list:
        return _list_recipes()
    if name is None and not any(f.split("=")[0] in ("--config", "-h", "--help") for f in fields):
        raise ConfigError(
            "train needs the name of a recipe (batchfree train --list names them) or --config FILE"
        )
    config = parse_config(name, fields, _USAGE, _EPILOG)
    resume = _checkpoint(options.resume)
    output = options.output or _output(config, resume)

    from batchfree.train import TrainingInterrupted, fit

    try:
        result = fit(config, output=output, resume=resume, progress=not options.quiet)
    except TrainingInterrupted as e:
        print(_how_to_resume(args, output, e.checkpoint), file=sys.stderr)
        return INTERRUPTED
    print(f"{config.name}: {result}; weights in {output / 'model.safetensors'}")
    return 0


def _list_recipes() -> int:
    from batchfree.recipes import RECIPES

    width = max(map(len, RECIPES)) + 2
    for name, recipe in RECIPES.items():
        print(f"{name:<{width}}{(recipe.__doc__ or '').splitlines()[0]}")
    return 0


def _checkpoint(resume: Path | None) -> Path | None:
    """The checkpoint file; of a run's folder its last."""
    return resume / "checkpoints" / "last.ckpt" if resume and resume.is_dir() else resume


def _output(config: Config | DetectionConfig, resume: Path | None) -> Path:
    """The folder of the run that is resumed, or a new one."""
    if resume is not None:
        if resume.parent.name != "checkpoints":
            raise ConfigError(f"{str(resume)!r} lies in no run's folder: name one with --output")
        return resume.parent.parent
    folder, number = Path("runs") / config.name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{config.name}-{number}"
    return folder


def _how_to_resume(args: list[str], output: Path, checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "training was interrupted, and no checkpoint could be written"
    kept, skip = [], False
    for a in args:
        if not skip and a.split("=")[0] not in ("--output", "--resume"):
            kept.append(a)
        skip = not skip and a in ("--output", "--resume")
    if checkpoint.parent.parent != output:
        kept += ["--output", str(output)]
    command = shlex.join(["batchfree", "train", *kept, "--resume", str(checkpoint)])
    return f"training was interrupted; to resume it:\n  {command}"
