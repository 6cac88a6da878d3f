"""How the numbers were made: commands, code, machines and settings, out of the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from batchfree.experiments.results import Measured
from batchfree.report import series

_MOST_VALUES = 8


@dataclass(frozen=True)
class Fact:
    """A term and the values it has over the runs; `code` where they are to be copied."""

    term: str
    values: tuple[str, ...]
    code: bool = False


class Commanded(Protocol):
    """Results of any experiment, which know the command that made them."""

    @property
    def command(self) -> str:
        """The command."""


def brief(rows: Sequence[Measured]) -> str:
    """The line under a figure: how many runs, seeds, steps, and the commit."""
    runs = f"{len(rows)} run{'s' * (len(rows) != 1)}"
    seeds = series.seeds(rows)
    steps = _values(f"{row.steps:,}" for row in rows)
    commits = _values(_short(row.commit) for row in rows)
    return (
        f"{runs}, seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}, "
        f"{' or '.join(steps)} steps, commit {' and '.join(commits)}"
    )


def facts(results: Commanded, rows: Sequence[Measured]) -> list[Fact]:
    """What made these runs of an experiment."""
    if not rows:
        return [Fact("Command", (results.command,), code=True)]
    return [
        Fact("Command", (results.command,), code=True),
        Fact("Commit", _values(row.commit or "not in a checkout" for row in rows), code=True),
        Fact("Versions", _values(_pairs(row.versions) for row in rows)),
        Fact("Machine", _values(_machine(row.machine) for row in rows)),
        Fact("Seeds", (", ".join(map(str, series.seeds(rows))),)),
        Fact("Steps", _values(f"{row.steps:,}" for row in rows)),
        Fact("Images in an SGD step", _values(str(row.batch_size) for row in rows)),
        Fact("Learning rate", _values(f"{row.learning_rate:g}" for row in rows)),
        Fact("Time", (f"{_duration(sum(row.seconds for row in rows))} over {len(rows)} runs",)),
    ]


def settings(rows: Sequence[Measured]) -> list[Fact]:
    """The rest of the runs' configuration, a fact for each setting."""
    flat = [dict(_flat(row.config)) for row in rows]
    names = {name: None for config in flat for name in config}
    return [Fact(name, _values(config.get(name, "not set") for config in flat)) for name in names]


def _values(values: Iterable[str]) -> tuple[str, ...]:
    unique = tuple(dict.fromkeys(values))
    if len(unique) <= _MOST_VALUES:
        return unique
    return (*unique[:_MOST_VALUES], f"and {len(unique) - _MOST_VALUES} more")


def _short(commit: str | None) -> str:
    head, mark, rest = (commit or "unknown").partition("+")
    return head[:10] + mark + rest


def _pairs(table: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in table.items())


def _machine(machine: dict[str, Any]) -> str:
    more = [f"{key} {machine[key]}" for key in machine if key not in ("cpu", "cores", "system")]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return ", ".join([machine["cpu"], cores, machine["system"], *more])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _flat(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
