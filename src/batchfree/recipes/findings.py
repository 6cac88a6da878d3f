"""What a lint finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lint:
    """One mistake.

    Attributes:
        rule: its name.
        field: the config's field, or the module, that it is about.
        message: what stands there, and what was expected.
        advice: what to write instead.
        source: whose rule it is.
    """

    rule: str
    field: str
    message: str
    advice: str
    source: str
