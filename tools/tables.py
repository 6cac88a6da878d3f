"""CSV tables that a sweep fills row by row and goes on with where it stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


class Table:
    """A CSV file.

    Args:
        path: of the file, made with its header where there is none.
        fields: the columns.
        keys: how many of the first columns tell a row from others.
    """

    def __init__(self, path: Path, fields: Sequence[str], keys: int) -> None:
        self.path, self.fields, self.keys = path, fields, fields[:keys]
        self.done: set[tuple[str, ...]] = set()
        if path.exists():
            with path.open() as file:
                self.done = {tuple(row[k] for k in self.keys) for row in csv.DictReader(file)}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.DictWriter(file, fields).writeheader()

    def has(self, *keys: object) -> bool:
        """Whether the row is there."""
        return tuple(map(str, keys)) in self.done

    def add(self, *keys: object, **values: object) -> None:
        """Writes a row, and shows it."""
        row: Mapping[str, object] = {**dict(zip(self.keys, keys, strict=True)), **values}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)
        self.done.add(tuple(map(str, keys)))
        print(*row.values(), flush=True)
