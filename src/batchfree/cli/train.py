"""`batchfree train`: one training from a recipe."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfree._errors import ConfigError
from batchfree.cli.parsing import INTERRUPTED, one_line, parse_known

if TYPE_CHECKING:
    from batchfree.train import Config

_USAGE = (
    "batchfree train NAME [--config FILE] [--FIELD VALUE ...] [--output DIR] [--resume CKPT] "
    "[--quiet] [--print_config] [--list]"
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
    config = _parse_config(name, fields)
    resume = _checkpoint(options.resume)
    output = options.output or _output(config, resume)

    from batchfree.train import TrainingInterrupted, fit

    try:
        result = fit(config, output=output, resume=resume, progress=not options.quiet)
    except TrainingInterrupted as e:
        print(_how_to_resume(args, output, e.checkpoint), file=sys.stderr)
        return INTERRUPTED
    print(
        f"{config.name}: validation error {result.val_error:.2f}%, training error "
        f"{result.train_error:.2f}% (median of the last {min(5, len(result.curve))} evaluations), "
        f"{result.seconds:.0f} s; weights in {output / 'model.safetensors'}"
    )
    return 0


def _list_recipes() -> int:
    from batchfree.recipes import RECIPES

    width = max(map(len, RECIPES)) + 2
    for name, recipe in RECIPES.items():
        print(f"{name:<{width}}{(recipe.__doc__ or '').splitlines()[0]}")
    return 0


def _parse_config(name: str | None, fields: list[str]) -> Config:
    """The recipe's config, a --config file's values over it, single fields' over both."""
    import jsonargparse

    from batchfree.recipes import get_recipe
    from batchfree.train import Config

    recipe = Config() if name is None else get_recipe(name)
    parser = jsonargparse.ArgumentParser(
        usage=_USAGE,
        epilog="NAME is a recipe (--list shows them). --output is the run's folder, runs/NAME by "
        "default; --resume continues from a checkpoint or a run's folder; --quiet shows no bar.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML or JSON file of these fields")
    parser.add_class_arguments(Config)
    parser.set_defaults(dict(_flat(recipe.to_dict())))
    try:
        values = parser.parse_args(fields).as_dict()
    except argparse.ArgumentError as e:
        raise _worded(e) from None
    values.pop("config", None)
    return Config.from_dict(values)


def _flat(settings: dict[str, Any], prefix: str = "") -> Any:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _worded(error: argparse.ArgumentError) -> ConfigError:
    """jsonargparse's message in our words, with the nearest valid name."""
    from batchfree.train.checks import check_type
    from batchfree.train.config import field_types, unknown_field

    text = str(error)
    if match := re.search(r"unrecognized arguments: (\S+)", text):
        word = match[1]
        if not word.startswith("--"):
            return ConfigError(f"unexpected argument {word!r}; a field is given as --FIELD VALUE")
        return unknown_field(word[2:].split("=")[0])
    if match := re.search(r"Group '(.+?)' does not accept option '(.+?)'", text):
        return unknown_field(f"{match[1]}.{match[2]}")
    if match := re.search(r"Option '(.+?)' is not accepted", text):
        return unknown_field(match[1])
    if match := re.search(r'Parser key "config": File does not exist: (.+)', text):
        return ConfigError(f"there is no config file {match[1]}")
    match = re.search(r'Parser key "(.+?)":.*Got value: (.*)', text, re.DOTALL)
    if match and match[1] in field_types():
        try:
            check_type(match[1], match[2], field_types()[match[1]])
        except ConfigError as e:
            return e
    return ConfigError(one_line(error))


def _checkpoint(resume: Path | None) -> Path | None:
    """The checkpoint file; of a run's folder its last."""
    return resume / "checkpoints" / "last.ckpt" if resume and resume.is_dir() else resume


def _output(config: Config, resume: Path | None) -> Path:
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
