"""What the commands share: argparse's errors as ours, errors as one line, experiments' names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from typing import Any

from batchfree._checks import suggest
from batchfree._errors import ConfigError

EXPERIMENTS = ("batch-size", "detection", "scratch")
INTERRUPTED = 130


def one_line(error: BaseException) -> str:
    """An error's message as one line; of a loading process's traceback, its last line."""
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def parse(parser: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
    """All arguments, with an error as one line.

    Raises:
        ConfigError: an unknown or malformed argument.
    """
    options, rest = parse_known(parser, args)
    if rest:
        raise unknown_argument(parser, rest[0])
    return options


def parse_known(
    parser: argparse.ArgumentParser, args: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Known arguments and the rest.

    Raises:
        ConfigError: a malformed argument.
    """

    def fail(message: str) -> None:
        raise ConfigError(f"{parser.prog}: {message}")

    parser.error = fail  # type: ignore[method-assign,assignment]
    return parser.parse_known_args(args)


def parse_fields(
    parser: argparse.ArgumentParser, args: list[str], plain: Collection[str] = ()
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Known arguments, and fields of a config: `--optimizer.base_lr 0.1` or `...base_lr=0.1`.

    Args:
        parser: of the known arguments.
        args: the command line.
        plain: fields that are in no section, such as `batch_size`.

    Raises:
        ConfigError: an unknown or malformed argument, a field without a value.
    """
    options, rest = parse_known(parser, args)
    fields: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or ("." not in name and name[2:] not in plain):
            raise unknown_argument(parser, word)
        text = value if equals else next(words, None)
        if text is None:
            raise ConfigError(f"{parser.prog}: {name} needs a value")
        fields[name[2:]] = _value(text)
    return options, fields


def _value(text: str) -> Any:
    """A number, true, false or null as such; anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def unknown_argument(parser: argparse.ArgumentParser, word: str) -> ConfigError:
    """The error for an argument that there is not, with the nearest that there is."""
    known = [name for action in parser._actions for name in action.option_strings]
    hint = suggest(word.split("=")[0], known)
    return ConfigError(f"{parser.prog}: unknown argument {word!r}{hint}")


def check_experiment(name: str) -> None:
    """Raises ConfigError unless an experiment has that name."""
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"there is no experiment {name!r}{suggest(name, EXPERIMENTS)}; experiments: "
            f"{', '.join(EXPERIMENTS)}"
        )


def check_known(name: str, known: Collection[str], what: str) -> None:
    """Raises ConfigError, with the nearest that there is, unless `name` is one of `known`."""
    if name not in known:
        hint = suggest(name, known)
        raise ConfigError(f"there is no {what} {name!r}{hint}; known: {', '.join(known)}")
