"""A conversion plan's JSON, checked field by field before anything is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from batchfree._checks import check_choice, suggest
from batchfree._errors import ConfigError

SCHEMA = "batchfree-plan-1"
_ROW: dict[str, type | list[type]] = {
    "path": str,
    "old": str,
    "kind": str,
    "action": str,
    "reason": str,
    "channels": int,
    "groups": int,
    "candidates": [int],
    "eps": float,
    "then": [str],
    "aliases": [str],
}
_REQUIRED = ("path", "old", "kind", "action")
_PLAN: dict[str, type | list[type]] = {"model": str, "notes": [str], "layers": [dict]}


def read_plan(text: str) -> dict[str, Any]:
    """The fields of a plan, each of its type: model, notes, and one dict a layer.

    Raises:
        ConfigError: the text is no plan.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        if (schema := found.pop("schema", None)) != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, not {SCHEMA!r}")
        _check(found, _PLAN, ("model", "layers"), "")
        paths = set()
        for row in found["layers"]:
            where = f"layer {row.get('path')!r}: "
            _check(row, _ROW, _REQUIRED, where)
            check_choice(row["action"], ("convert", "keep", "leave"), f"{where}action")
            check_eps(row.get("eps", 0.0), row["path"])
            if row["path"] in paths:
                raise ValueError(f"{where}it is there twice")
            paths.add(row["path"])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is no conversion plan: {error}") from error
    return found


def check_eps(eps: Any, path: str) -> None:
    """Raises ConfigError unless eps is a number that can be added to a variance."""
    number = isinstance(eps, (int, float)) and not isinstance(eps, bool)
    if not number or not 0 <= eps < math.inf:
        raise ConfigError(
            f"layer {path!r}: eps must be a finite number, 0 or more (0 is the BatchNorm's own), "
            f"got {eps!r}"
        )


def _check(
    found: Mapping[str, Any],
    known: Mapping[str, type | list[type]],
    required: tuple[str, ...],
    where: str,
) -> None:
    """Raises ValueError unless the fields are known ones, of their types, the required there."""
    for name in required:
        if name not in found:
            raise ValueError(f"{where}{name!r} is missing")
    for name, value in found.items():
        if name not in known:
            raise ValueError(f"{where}unknown field {name!r}{suggest(name, known)}")
        kind = known[name]
        if kind is float:  # check_eps words it
            continue
        one = kind[0] if isinstance(kind, list) else kind
        values = value if isinstance(kind, list) else [value]
        if type(values) is not list or any(type(v) is not one for v in values):
            what = f"a list of {one.__name__}" if isinstance(kind, list) else one.__name__
            raise ValueError(f"{where}{name} must be {what}, got {value!r}")
