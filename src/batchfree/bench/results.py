"""The file of a benchmark: rows checked on the way in and out; JSON lines, then JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from batchfree._errors import ResultsError
from batchfree.experiments._fields import (
    Checked,
    bad_field,
    by,
    integer,
    json_object,
    number,
    optional,
    sequence,
    text,
    texts,
    time,
)
from batchfree.experiments.store import write_whole

SCHEMA = "batchfree.bench/1"
JSON_NAME, LINES_NAME = "bench.json", "bench.jsonl"


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise bad_field(name, "true or false", value)
    return value


def _shape(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise bad_field(name, "a list of sizes", value)
    return tuple(integer(0)(size, f"{name}[{rank}]") for rank, size in enumerate(value))


_TEXT, _MAYBE_TEXT = by(text), by(optional(text))
_COUNT, _MAYBE_TIME = by(integer(0)), by(optional(number(0)))


@dataclass(frozen=True)
class Timed(Checked):
    """What every row has: where it ran, and how long a call took.

    Attributes:
        device: `cpu` or `cuda`.
        threads: PyTorch's threads.
        allocator: glibc's setting, `default`, `keep` (what is freed is kept) or `custom`.
        repetitions: samples that the median and percentiles are of.
        calls: calls within a sample.
        median_us, p10_us, p90_us: microseconds of a call; None where it failed.
        ratio, ratio_p10, ratio_p90: the baseline's time over this one's, within a repetition, so
            that 2 is twice as fast; None where one of the two was not timed.
        failure: why it could not be timed; None where it was.
    """

    device: str = field(metadata=_TEXT)
    threads: int = field(metadata=_COUNT)
    allocator: str = field(metadata=_TEXT)
    repetitions: int = field(metadata=_COUNT)
    calls: int = field(metadata=_COUNT)
    median_us: float | None = field(metadata=_MAYBE_TIME)
    p10_us: float | None = field(metadata=_MAYBE_TIME)
    p90_us: float | None = field(metadata=_MAYBE_TIME)
    ratio: float | None = field(metadata=_MAYBE_TIME)
    ratio_p10: float | None = field(metadata=_MAYBE_TIME)
    ratio_p90: float | None = field(metadata=_MAYBE_TIME)
    failure: str | None = field(metadata=_MAYBE_TEXT)


@dataclass(frozen=True)
class KernelRow(Timed):
    """One peer on one setting; the baseline is `eager`.

    Attributes:
        suite, case, shape, groups, activation, residual, count: as `batchfree.bench.suites.Case`.
        dtype, layout, mode, parameters: as `batchfree.bench.inputs.Setting`.
        bytes, floor_bytes: of x, and what has to move at least.
        peer: `eager`, `batchfree`, `compile`, `batch_norm`, `floor`, or a backend's name.
        backend: the backend that served, for batchfree's peers.
        floors: this time over that of the floor, within a repetition: 1 is as fast as a copy.
        clock: `host`, where a call takes as long as its caller waits; `device`, where calls are
            captured in a CUDA graph and only the GPU's work counts.
        cache: on a GPU, whether inputs come from its L2 cache: `warm`, or `cold`, by other tensors
            at each call.
    """

    suite: str = field(metadata=_TEXT)
    case: str = field(metadata=_TEXT)
    shape: tuple[int, ...] = field(metadata=by(_shape))
    groups: int = field(metadata=_COUNT)
    activation: str | None = field(metadata=_MAYBE_TEXT)
    residual: bool = field(metadata=by(_flag))
    count: int = field(metadata=_COUNT)
    dtype: str = field(metadata=_TEXT)
    layout: str = field(metadata=_TEXT)
    mode: str = field(metadata=_TEXT)
    parameters: str = field(metadata=_TEXT)
    bytes: int = field(metadata=_COUNT)
    floor_bytes: int = field(metadata=_COUNT)
    peer: str = field(metadata=_TEXT)
    backend: str | None = field(metadata=_MAYBE_TEXT)
    floors: float | None = field(metadata=_MAYBE_TIME)
    clock: str = field(default="host", metadata=_TEXT)
    cache: str = field(default="warm", metadata=_TEXT)

    @property
    def fusion(self) -> str:
        """What is computed, `GN+residual+relu`."""
        words = ("GN", "residual" * self.residual, self.activation)
        return "+".join(word for word in words if word)

    @property
    def setting(self) -> tuple[object, ...]:
        """What rows of one setting have in common."""
        case = (self.suite, self.case, self.shape, self.fusion, self.dtype, self.layout, self.mode)
        how = (self.device, self.clock, self.cache, self.threads, self.allocator)
        return (*case, self.parameters, *how)


@dataclass(frozen=True)
class OverheadRow(Timed):
    """One way to call a norm on a tensor so small that only the host's work is left.

    Attributes:
        subject: what is called; the baseline of a ratio is eager with the same activation.
        mode: `forward, no_grad`, `forward` or `forward+backward`.
        shape: of x.
    """

    subject: str = field(metadata=_TEXT)
    mode: str = field(metadata=_TEXT)
    shape: tuple[int, ...] = field(metadata=by(_shape))


@dataclass(frozen=True)
class StepRow(Timed):
    """A training step of a network; the baseline is eager GroupNorm.

    Attributes:
        model: `fused GN`, `eager GN` or `BN`.
        network, batch, size: ResNet-50, images in a step, pixels of their sides.
        layout: of images and weights.
        saved_bytes: bytes of distinct storages kept for the backward, parameters excluded.
        precision: `float32`, or `bfloat16` under autocast.
        peak_bytes: on a GPU, the most memory allocated in a step beyond weights and momentum.
        clock: `host`, or `device`, where the step is a CUDA graph and only the GPU's work counts.
    """

    model: str = field(metadata=_TEXT)
    network: str = field(metadata=_TEXT)
    batch: int = field(metadata=_COUNT)
    size: int = field(metadata=_COUNT)
    layout: str = field(metadata=_TEXT)
    saved_bytes: int | None = field(metadata=by(optional(integer(0))))
    precision: str = field(default="float32", metadata=_TEXT)
    peak_bytes: int | None = field(default=None, metadata=by(optional(integer(0))))
    clock: str = field(default="host", metadata=_TEXT)


ROWS: dict[str, type[Timed]] = {"kernels": KernelRow, "overhead": OverheadRow, "steps": StepRow}


@dataclass(frozen=True)
class Origin(Checked):
    """Where rows come from.

    Attributes:
        command: the command, as it can be run again.
        created: when, as an ISO 8601 time.
        commit: the code's commit, with `+dirty` where files had changed.
        versions: package name to version.
        machine: `cpu`, `cores`, `system`, and more where known.
    """

    command: str = field(metadata=_TEXT)
    created: str = field(metadata=by(time))
    commit: str | None = field(metadata=_MAYBE_TEXT)
    versions: dict[str, str] = field(metadata=by(texts))
    machine: dict[str, Any] = field(
        metadata=by(json_object(cpu=text, cores=integer(1), system=text))
    )


@dataclass(frozen=True)
class Bench(Checked):
    """The rows of one command.

    Attributes:
        origin: where they come from.
        complete: false where the command was interrupted or ran out of its time budget.
        kernels, overhead, steps: the rows, each kind possibly empty.
    """

    origin: Origin = field(metadata=by(lambda value, name: _origin(value, name)))
    complete: bool = field(metadata=by(_flag))
    kernels: tuple[KernelRow, ...] = field(metadata=by(sequence(KernelRow)))
    overhead: tuple[OverheadRow, ...] = field(metadata=by(sequence(OverheadRow)))
    steps: tuple[StepRow, ...] = field(metadata=by(sequence(StepRow)))


def _origin(value: Any, name: str) -> Origin:
    return value if isinstance(value, Origin) else Origin.from_json(value, name)


def append(path: Path, row: Timed) -> None:
    """Appends a row to a file of JSON lines at once, so that nothing finished is lost."""
    kind = next(name for name, kind in ROWS.items() if isinstance(row, kind))
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "row": row.to_json()}, allow_nan=False) + "\n")


def gather(paths: list[Path], origin: Origin, complete: bool) -> Bench:
    """The rows of files of JSON lines; a last line that was cut is left out."""
    found: dict[str, list[Any]] = {kind: [] for kind in ROWS}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found[value["kind"]].append(ROWS[value["kind"]].from_json(value["row"]))
    return Bench(origin, complete, **found)  # type: ignore[arg-type]


def write_bench(folder: Path, bench: Bench) -> list[Path]:
    """Writes `bench.json`, and `kernels.csv`, `overhead.csv`, `steps.csv` where there are rows."""
    path = folder / JSON_NAME
    content = bench.to_json()
    rows = {kind: content.pop(kind) for kind in ROWS}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    for kind, several in rows.items():
        body = ",\n".join(json.dumps(row, allow_nan=False) for row in several)
        lines.append(f'"{kind}": [\n{body}\n]' if several else f'"{kind}": []')
    schema = f'"schema": "{SCHEMA}"'
    write_whole(path, ("{\n" + ",\n".join([schema, *lines]) + "\n}\n").encode())
    written = [path]
    for kind in ROWS:
        several = getattr(bench, kind)
        if several:
            target = folder / f"{kind}.csv"
            write_whole(target, _csv(bench.origin, several).encode())
            written.append(target)
    return written


def is_bench(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder holds a benchmark, by its name or its schema."""
    found = Path(path)
    if found.is_dir():
        return (found / JSON_NAME).exists()
    try:
        with open(found, encoding="utf-8", errors="replace") as file:
            return f'"{SCHEMA}"' in file.read(200)
    except OSError:
        return False


def read_bench(path: str | os.PathLike[str]) -> Bench:
    """Reads what `write_bench` wrote: a `bench.json`, or its folder.

    Raises:
        ResultsError: it is missing, cut short, damaged or of another schema.
    """
    found = Path(path)
    found = found / JSON_NAME if found.is_dir() else found
    again = "run the same `batchfree bench` command again to rebuild it"
    try:
        value = json.loads(found.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ResultsError(
            f"{found}: cannot be read ({error.strerror}); name the {JSON_NAME} of a benchmark"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{found}: not JSON ({error}); {again}") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ResultsError(f"{found}: not a file of schema {SCHEMA!r}; name another")
    try:
        return Bench.from_json({name: item for name, item in value.items() if name != "schema"})
    except (ResultsError, RecursionError) as error:
        raise ResultsError(f"{found}: {error}; the file is damaged: {again}") from None


def _csv(origin: Origin, rows: tuple[Timed, ...]) -> str:
    """Rows with what made them, so that each line stands for itself."""
    made = {"commit": origin.commit, "created": origin.created, "cpu": origin.machine["cpu"]}
    made |= {name: origin.versions.get(name) for name in ("torch", "triton", "batchfree")}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = sorted((item.name for item in fields(rows[0])), key=_column)
    writer.writerow([*names, *made])
    for row in rows:
        values = (getattr(row, name) for name in names)
        shown = ("x".join(map(str, v)) if isinstance(v, tuple) else v for v in values)
        writer.writerow([*shown, *made.values()])
    return file.getvalue()


_BASE = [item.name for item in fields(Timed)]


def _column(name: str) -> int:
    """A row's own fields first, then those that every row has."""
    return 1 + _BASE.index(name) if name in _BASE else 0
