"""Dataclasses whose fields are checked when they are made, and read from JSON with clear errors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from datetime import datetime
from typing import Any, TypeVar

from batchfree._errors import ResultsError

Check = Callable[[Any, str], Any]
_T = TypeVar("_T", bound="Checked")


def bad_field(name: str, wanted: str, got: object) -> ResultsError:
    """The error for a field: its name, what it has to be and what arrived."""
    shown = repr(got)
    return ResultsError(f"{name}: expected {wanted}, got {shown[:60]}{'...' * (len(shown) > 60)}")


def integer(least: int) -> Check:
    """A check for whole numbers of at least `least`; True and False are none."""

    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise bad_field(name, f"a whole number of at least {least}", value)
        return int(value)

    return check


def number(least: float, most: float = 1e300) -> Check:
    """A check for finite numbers between two bounds, which become floats."""
    upper = f" to {most:g}" if most < 1e300 else " up"
    wanted = f"a number from {least:g}{upper}"

    def check(value: Any, name: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and least <= value <= most):
            raise bad_field(name, wanted, value)
        return float(value)

    return check


def loss(value: Any, name: str) -> float | None:
    """A number; NaN and the infinities, which JSON lacks, become None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_field(name, "a number or null", value)
    return float(value) if math.isfinite(value) else None


def text(value: Any, name: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise bad_field(name, "text that is not empty", value)
    return value


def optional(check: Check) -> Check:
    """The same check, which lets None pass."""

    def or_none(value: Any, name: str) -> Any:
        try:
            return None if value is None else check(value, name)
        except ResultsError as error:
            raise ResultsError(str(error).replace(", got", " or null, got", 1)) from None

    return or_none


def choice(*choices: str) -> Check:
    """A check for one of a few words."""

    def check(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise bad_field(name, " or ".join(map(repr, choices)), value)
        return value

    return check


def time(value: Any, name: str) -> str:
    """An ISO 8601 time."""
    wanted = "an ISO 8601 time such as '2026-01-31T12:00:00+00:00'"
    try:
        datetime.fromisoformat(re.sub("Z$", "+00:00", text(value, name)))
    except ValueError:
        raise bad_field(name, wanted, value) from None
    return str(value)


def plain(value: Any, name: str) -> Any:
    """A copy of `value` in JSON's own types, so that what is written is what is read back."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    raise bad_field(name, "text, finite numbers, true, false, null, lists and objects", value)


def json_object(**required: Check) -> Check:
    """A check for a dict of JSON's own types with at least the `required` items."""

    def check(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise bad_field(name, "an object", value)
        for key, check_item in required.items():
            check_item(value.get(key), f"{name}.{key}")
        return dict(plain(value, name))

    return check


def texts(value: Any, name: str) -> dict[str, str]:
    """A dict of text to text."""
    table = json_object()(value, name)
    return {key: text(item, f"{name}.{key}") for key, item in table.items()}


def sizes_descending(value: Any, name: str) -> tuple[int, ...]:
    """Positive whole numbers, largest first, none twice, at least one."""
    wanted = "normalisation batches, largest first, none twice"
    if not isinstance(value, list | tuple):
        raise bad_field(name, wanted, value)
    sizes = tuple(integer(1)(size, f"{name}[{index}]") for index, size in enumerate(value))
    if not sizes or sorted(set(sizes), reverse=True) != list(sizes):
        raise bad_field(name, wanted, value)
    return sizes


def sequence(kind: type[_T]) -> Check:
    """A check for a list of `kind`, or of the JSON objects that describe one; gives a tuple."""

    def check(value: Any, name: str) -> tuple[_T, ...]:
        if not isinstance(value, list | tuple):
            raise bad_field(name, "a list", value)
        return tuple(
            item if isinstance(item, kind) else kind.from_json(item, f"{name}[{index}]")
            for index, item in enumerate(value)
        )

    return check


def by(check: Check) -> dict[str, Check]:
    """The metadata of a field of a `Checked` dataclass: `field(metadata=by(check))`."""
    return {"check": check}


class Checked:
    """A dataclass whose fields are checked, and brought into their own type, when it is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = item.metadata["check"](getattr(self, item.name), item.name)
            object.__setattr__(self, item.name, value)

    @classmethod
    def from_json(cls: type[_T], value: object, where: str = "") -> _T:
        """The object that parsed JSON describes; `where` names the place in error messages.

        Raises:
            ResultsError: a field is missing, unknown, or of the wrong type or range.
        """
        try:
            if not isinstance(value, Mapping):
                raise ResultsError(f"expected an object, got {type(value).__name__}")
            items = fields(cls)  # type: ignore[arg-type]
            names = [item.name for item in items]
            for name in (item.name for item in items if item.default is MISSING):
                if name not in value:
                    raise ResultsError(f"the field {name!r} is missing")
            for name in value:
                if name not in names:
                    raise ResultsError(f"the field {name!r} is not known; known: {names}")
            return cls(**value)
        except ResultsError as error:
            raise ResultsError(f"{where}: {error}" if where else str(error)) from None

    def to_json(self) -> dict[str, Any]:
        """The same in JSON's own types: `from_json` of it is equal to this object."""
        return dict(plain(asdict(self), ""))  # type: ignore[call-overload]
