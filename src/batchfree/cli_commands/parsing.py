"""What the commands share: argparse's errors as ours, the names of the experiments."""

from __future__ import annotations

import argparse

from batchfree._checks import suggest
from batchfree._errors import ConfigError

EXPERIMENTS = ("batch-size",)


def parse(parser: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
    """All arguments, with an error as one line.

    Raises:
        ConfigError: an unknown or malformed argument.
    """
    options, rest = parse_known(parser, args)
    if rest:
        known = [name for action in parser._actions for name in action.option_strings]
        raise ConfigError(
            f"{parser.prog}: unknown argument {rest[0]!r}{suggest(rest[0].split('=')[0], known)}"
        )
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


def check_experiment(name: str) -> None:
    """Raises ConfigError unless an experiment has that name."""
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"there is no experiment {name!r}{suggest(name, EXPERIMENTS)}; experiments: "
            f"{', '.join(EXPERIMENTS)}"
        )
