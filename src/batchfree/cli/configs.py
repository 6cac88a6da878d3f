"""A recipe with the fields of a file and of the command line over it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfree._errors import ConfigError
from batchfree.cli.parsing import one_line

if TYPE_CHECKING:
    from batchfree.train import Config, DetectionConfig


def parse_config(
    name: str | None, fields: list[str], usage: str, epilog: str
) -> Config | DetectionConfig:
    """The recipe's config, a --config file's values over it, single fields' over both.

    Args:
        name: of the recipe; None starts from the defaults of the task that the file names.
        fields: the arguments after it.
        usage: the command's.
        epilog: what its help says at the end.

    Raises:
        ConfigError: an unknown recipe, field or value.
    """
    import jsonargparse

    from batchfree.recipes import get_recipe

    recipe = _default(fields) if name is None else get_recipe(name)
    parser = jsonargparse.ArgumentParser(usage=usage, epilog=epilog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML or JSON file of these fields")
    parser.add_class_arguments(type(recipe))
    parser.set_defaults(dict(_flat(recipe.to_dict())))
    try:
        values = parser.parse_args(fields).as_dict()
    except argparse.ArgumentError as e:
        raise _worded(e, type(recipe)) from None
    values.pop("config", None)
    return type(recipe).from_dict(values)


def _default(fields: list[str]) -> Config | DetectionConfig:
    """The defaults of the task that a --config file is of; a detection's says so."""
    import yaml  # type: ignore[import-untyped]

    from batchfree.train import Config, DetectionConfig

    names = [f.partition("=") for f in fields]
    files = [
        after or (fields[i + 1] if i + 1 < len(fields) else "")
        for i, (name, _, after) in enumerate(names)
        if name == "--config"
    ]
    try:
        content = yaml.safe_load(Path(files[0]).read_text()) if files else None
    except (OSError, ValueError, yaml.YAMLError):
        content = None  # the parser says what is wrong with it
    task = content.get("task") if isinstance(content, dict) else None
    if task not in (None, "detection"):
        raise ConfigError(
            f"{files[0]}: task must be 'detection', or left out for a classification; got {task!r}"
        )
    return Config() if task is None else DetectionConfig()


def _flat(settings: dict[str, Any], prefix: str = "") -> Any:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _worded(error: argparse.ArgumentError, config: type) -> ConfigError:
    """jsonargparse's message in our words, with the nearest valid name."""
    from batchfree.train.checks import check_type
    from batchfree.train.config import field_types, unknown_field

    text = str(error)
    if match := re.search(r"unrecognized arguments: (\S+)", text):
        word = match[1]
        if not word.startswith("--"):
            return ConfigError(f"unexpected argument {word!r}; a field is given as --FIELD VALUE")
        return unknown_field(word[2:].split("=")[0], config)
    if match := re.search(r"Group '(.+?)' does not accept option '(.+?)'", text):
        return unknown_field(f"{match[1]}.{match[2]}", config)
    if match := re.search(r"Option '(.+?)' is not accepted", text):
        return unknown_field(match[1], config)
    if match := re.search(r'Parser key "config": File does not exist: (.+)', text):
        return ConfigError(f"there is no config file {match[1]}")
    match = re.search(r'Parser key "(.+?)":.*Got value: (.*)', text, re.DOTALL)
    if match and match[1] in field_types(config):
        try:
            check_type(match[1], match[2], field_types(config)[match[1]])
        except ConfigError as e:
            return e
    return ConfigError(one_line(error))
