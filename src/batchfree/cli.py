"""The command line: parsing only. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfree import __version__
from batchfree._checks import suggest
from batchfree._errors import BackendError, ConfigError, DataError, ResultsError

if TYPE_CHECKING:
    from batchfree.train import Config

USAGE, RUNTIME, INTERRUPTED = 2, 1, 130


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        help: what it does, in a line.
        run: takes the arguments after its name, returns the exit code; may raise what `main` words.
    """

    help: str
    run: Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `batchfree COMMAND ...`.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0, 1 for a failure at run time, 2 for a wrong command line or config, 130
        after Ctrl-C. An expected error is one line on stderr.

    Example:
        >>> from batchfree.cli import main
        >>> main(["--version"])
        batchfree 0.1.0
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except ConfigError as e:
        return _fail(e, USAGE)
    except (DataError, ResultsError, BackendError, OSError) as e:
        return _fail(e, RUNTIME)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as e:  # argparse's own: --help, --print_config
        return e.code if isinstance(e.code, int) else (0 if e.code is None else RUNTIME)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else USAGE
    if args[0] in ("-V", "--version"):
        print(f"batchfree {__version__}")
        return 0
    if args[0] not in COMMANDS:
        hint = suggest(args[0], COMMANDS) or f"; commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"there is no command {args[0]!r}{hint}")
    return COMMANDS[args[0]].run(args[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: batchfree COMMAND ...",
            "",
            "Normalisation that does not depend on the batch.",
            "",
            *lines,
            "",
            "batchfree COMMAND --help says more; batchfree --version names the version.",
        ]
    )


def _fail(error: BaseException, code: int) -> int:
    print(f"batchfree: error: {one_line(error)}", file=sys.stderr)
    return code


def one_line(error: BaseException) -> str:
    """An error's message as one line; of a loading process's traceback, its last line."""
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _parse(parser: argparse.ArgumentParser, args: list[str]) -> tuple[Any, list[str]]:
    """Known arguments and the rest; argparse's error as a ConfigError."""
    parser.exit_on_error = False
    try:
        return parser.parse_known_args(args)
    except argparse.ArgumentError as e:
        raise ConfigError(str(e)) from None


# --- train ------------------------------------------------------------------------------------


_TRAIN_USAGE = (
    "batchfree train NAME [--config FILE] [--FIELD VALUE ...] [--output DIR] [--resume CKPT] "
    "[--quiet] [--print_config] [--list]"
)


def _train(args: list[str]) -> int:
    """`batchfree train`: see `_TRAIN_USAGE`."""
    name = args[0] if args and not args[0].startswith("-") else None
    own = argparse.ArgumentParser(prog="batchfree train", add_help=False, allow_abbrev=False)
    own.add_argument("--list", action="store_true")
    own.add_argument("--output", type=Path)
    own.add_argument("--resume", type=Path)
    own.add_argument("--quiet", action="store_true")
    options, fields = _parse(own, args[name is not None :])
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
        usage=_TRAIN_USAGE,
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
    from batchfree.train.config import field_types, unknown_field
    from batchfree.train.validate import check_type

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


def _lazily(name: str) -> Callable[[list[str]], int]:
    """A command of `batchfree.cli_commands.reproduce`, imported when it runs."""

    def run(args: list[str]) -> int:
        from batchfree.cli_commands import reproduce

        command: Callable[[list[str]], int] = getattr(reproduce, name)
        return command(args)

    return run


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "the small-batch experiment on embedded data, ends in a report", _lazily("demo")
    ),
    "train": Command("train an image classifier from a recipe", _train),
    "reproduce": Command("run an experiment of the talk and report it", _lazily("reproduce")),
    "report": Command("write results as one HTML page", _lazily("report")),
}

if __name__ == "__main__":
    sys.exit(main())
