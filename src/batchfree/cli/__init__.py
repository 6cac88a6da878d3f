"""The command line: parsing only. Each command imports what it needs when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchfree import __version__
from batchfree._checks import suggest
from batchfree._errors import (
    BackendError,
    ConfigError,
    DataError,
    NonFiniteLoss,
    ResultsError,
    SweepError,
)
from batchfree.cli.parsing import INTERRUPTED, one_line

USAGE, RUNTIME = 2, 1

EXTRA_OF = {
    **dict.fromkeys(
        (
            *("torchvision", "lightning", "torchmetrics", "jsonargparse", "rich", "tensorboard"),
            *("sklearn", "safetensors", "numpy", "yaml"),
        ),
        "train",
    ),
    "faster_coco_eval": "detect",
    **dict.fromkeys(("plotly", "jinja2", "matplotlib"), "report"),
}
"""Which extra brings a library that a command may miss."""


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
    except (DataError, ResultsError, BackendError, SweepError, NonFiniteLoss, OSError) as e:
        return _fail(e, RUNTIME)
    except ModuleNotFoundError as e:
        library = (e.name or "").partition(".")[0]
        if library not in EXTRA_OF:
            raise
        return _fail(
            ConfigError(
                f"{library} is not installed, which this command needs: "
                f'pip install "batchfree[{EXTRA_OF[library]}]"'
            ),
            RUNTIME,
        )
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


def _command(module: str, name: str) -> Callable[[list[str]], int]:
    """A command's function, imported when it runs."""

    def run(args: list[str]) -> int:
        command: Callable[[list[str]], int] = getattr(
            importlib.import_module(f"batchfree.cli.{module}"), name
        )
        return command(args)

    return run


COMMANDS: dict[str, Command] = {
    "demo": Command("the small-batch experiment, ends in a report", _command("reproduce", "demo")),
    "audit": Command("where a model depends on its batch", _command("audit", "audit")),
    "convert": Command("turn BatchNorms into GroupNorms", _command("convert", "convert")),
    "train": Command("train a classifier or a detector from a recipe", _command("train", "train")),
    "evaluate": Command(
        "evaluate a trained network on its recipe's validation set",
        _command("evaluate", "evaluate"),
    ),
    "predict": Command("find objects in images with a detector", _command("predict", "predict")),
    "reproduce": Command(
        "run an experiment of the talk and report it", _command("reproduce", "reproduce")
    ),
    "bench": Command(
        "time the layers against their peers on this machine", _command("bench", "bench")
    ),
    "data": Command("digit scenes as a COCO folder; a check of yours", _command("data", "data")),
    "lint": Command("mistakes in a recipe, before it trains", _command("lint", "lint")),
    "report": Command("write results as one HTML page", _command("reproduce", "report")),
}
