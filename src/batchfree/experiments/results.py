"""The results file of an experiment: checked on the way in and out, and written in one piece.

`docs/results-schema.md` describes the format field by field.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, TypeVar

from batchfree._errors import ResultsError
from batchfree.experiments._fields import (
    Checked,
    bad_field,
    by,
    choice,
    integer,
    json_object,
    loss,
    number,
    optional,
    sequence,
    sizes_descending,
    text,
    texts,
    time,
)
from batchfree.experiments.store import Stored, read_file, write_file

SCHEMA = "batchfree.results/1"
ROW_SCHEMA = "batchfree.row/1"


@dataclass(frozen=True)
class CurvePoint(Checked):
    """One point of a run's learning curve.

    Attributes:
        step: SGD steps done.
        train_loss: mean loss since the point before; None where it was not finite (a NaN or an
            infinity passed in becomes None, since JSON has neither).
        train_error: training error in %, over the same steps.
        val_error: validation error in %, or None where none was measured at this step.
    """

    step: int = field(metadata=by(integer(0)))
    train_loss: float | None = field(metadata=by(optional(loss)))
    train_error: float = field(metadata=by(number(0, 100)))
    val_error: float | None = field(metadata=by(optional(number(0, 100))))


@dataclass(frozen=True, kw_only=True)
class Measured(Stored):
    """What every finished training run says of itself, whatever it measured.

    Attributes:
        seed: the run's seed.
        steps: SGD steps.
        batch_size: images in an SGD step, over all workers.
        learning_rate: the base learning rate after warm-up.
        seconds: wall-clock seconds.
        commit: the code's commit, with `+dirty` where files had changed; None outside a checkout.
        versions: package name to version.
        machine: `cpu` (text), `cores` (a count) and `system` (text), and more where known.
        command: the command, exactly as it can be run again.
        config: everything else that is needed to build the run again.
    """

    REMEDY = "it holds one run; delete it"

    seed: int = field(metadata=by(integer(0)))
    steps: int = field(metadata=by(integer(1)))
    batch_size: int = field(metadata=by(integer(1)))
    learning_rate: float = field(metadata=by(number(0)))
    seconds: float = field(metadata=by(number(0)))
    commit: str | None = field(metadata=by(optional(text)))
    versions: dict[str, str] = field(metadata=by(texts))
    machine: dict[str, Any] = field(
        metadata=by(json_object(cpu=text, cores=integer(1), system=text))
    )
    command: str = field(metadata=by(text))
    config: dict[str, Any] = field(metadata=by(json_object()))


_M = TypeVar("_M", bound=Measured)


@dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """One finished training run of a classifier.

    Attributes:
        norm: `"bn"`, `"gn"`, `"ln"`, `"in"`, `"gn+ws"` or another norm's name.
        normalization_batch: samples that BN takes its statistics over; None where the run does
            not depend on it, so that it stands for every size.
        train_error: training error at the end, in %.
        val_error: validation error in %: the median of the last five evaluations, as the paper
            takes it. A run that diverged has the chance-level error that was measured.
        curve: the learning curve, in order of steps.

    Raises:
        ResultsError: a field of the wrong type or range; it is a `ValueError`.
    """

    SCHEMA = ROW_SCHEMA

    norm: str = field(metadata=by(text))
    normalization_batch: int | None = field(metadata=by(optional(integer(1))))
    train_error: float = field(metadata=by(number(0, 100)))
    val_error: float = field(metadata=by(number(0, 100)))
    curve: tuple[CurvePoint, ...] = field(metadata=by(sequence(CurvePoint)))

    @property
    def key(self) -> tuple[str, int | None, int]:
        """What tells a run from the others of its experiment: norm, normalisation batch, seed."""
        return self.norm, self.normalization_batch, self.seed


@dataclass(frozen=True)
class Results(Stored):
    """Every finished run of one experiment.

    Attributes:
        experiment: `"batch-size"`.
        protocol: `"isolated"` (only the normalisation batch changes) or `"paper"` (per-worker
            batch with the linearly scaled learning rate).
        preset: the name of the preset that set scale and schedule.
        sizes: the normalisation batches asked for, largest first.
        rows: the finished runs; may be empty.
        command: the command that made the file.
        created: when, as an ISO 8601 time.

    Raises:
        ResultsError: a field of the wrong type or range, a row with a normalisation batch that is
            not among `sizes`, or the same run twice.
    """

    SCHEMA = SCHEMA
    REMEDY = "finished runs are kept beside it under rows/"

    experiment: str = field(metadata=by(choice("batch-size")))
    protocol: str = field(metadata=by(choice("isolated", "paper")))
    preset: str = field(metadata=by(text))
    sizes: tuple[int, ...] = field(metadata=by(sizes_descending))
    rows: tuple[Row, ...] = field(metadata=by(sequence(Row)))
    command: str = field(metadata=by(text))
    created: str = field(metadata=by(time))

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: dict[tuple[str, int | None, int], int] = {}
        for index, row in enumerate(self.rows):
            size = row.normalization_batch
            if size is not None and size not in self.sizes:
                raise bad_field(f"rows[{index}]: normalization_batch", f"one of {self.sizes}", size)
            if row.key in seen:
                raise ResultsError(
                    f"rows[{index}]: the same run as rows[{seen[row.key]}]: norm {row.norm!r}, "
                    f"normalisation batch {size}, seed {row.seed}; keep one of the two"
                )
            seen[row.key] = index


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a results file.

    Args:
        path: a file that `write_results` wrote.

    Raises:
        ResultsError: there is no such file, or it is cut short, damaged or of another schema; the
            message names the file, the row, the field and what to do.

    Example:
        >>> read_results("/nowhere/results.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        batchfree._errors.ResultsError: /nowhere/results.json: there is no such file; ...
    """
    return read_file(path, Results)


def read_row(path: str | os.PathLike[str], kind: type[_M] = Row) -> _M:  # type: ignore[assignment]
    """Read a file that holds one run, of a classifier by default; errors as `read_results`."""
    return read_file(path, kind)


def write_results(path: str | os.PathLike[str], results: Stored) -> None:
    """Write a results file in one piece: it is whole, or the old one is left as it was.

    Args:
        path: the file; folders above it are made.
        results: what to write.

    Raises:
        OSError: the file cannot be written (disk full, folder read-only, ...); the message names
            it and what to do. It is the subclass that the system raised, with its `errno`.

    Example:
        >>> import tempfile
        >>> results = Results("batch-size", "isolated", "quick", (32, 2), (), "batchfree demo",
        ...                   "2026-01-31T12:00:00+00:00")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_results(f"{folder}/results.json", results)
        ...     read_results(f"{folder}/results.json") == results
        True
    """
    write_file(path, results)


def write_row(path: str | os.PathLike[str], row: Measured) -> None:
    """Write one run into a file of its own; otherwise as `write_results`."""
    write_file(path, row)
