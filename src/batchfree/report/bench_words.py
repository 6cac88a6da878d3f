"""What a benchmark's rows say, in sentences and tables: headline, cautions, summary, origin."""

from __future__ import annotations

from collections.abc import Sequence

from batchfree.bench.results import Bench, KernelRow, Timed
from batchfree.bench.summary import Group, compare_layouts, geometric_mean, summarize
from batchfree.report.bench_frame import narrow, ratio_text
from batchfree.report.provenance import Fact
from batchfree.report.tables import Entry, Table

_NONE = Entry("–")
_FEW, _RESTLESS, _ALONE = 10, 1.5, 0.5


def headline(benches: Sequence[Bench]) -> str:
    """One sentence on batchfree against PyTorch eager, whichever way it went."""
    rows = [row for row in _kernels(benches) if row.peer == "batchfree"]
    clauses = []
    for mode in dict.fromkeys(row.mode for row in rows):
        mean = geometric_mean([r.ratio for r in rows if r.mode == mode and r.ratio is not None])
        if mean is not None:
            clauses.append(f"{ratio_text(mean)} {mode.replace('+', ' and ')}")
    if clauses:
        return f"Speed against PyTorch eager: {', '.join(clauses)}"
    steps = [row for bench in benches for row in bench.steps]
    ratio = next((r.ratio for r in steps if r.model == "fused GN" and r.ratio is not None), None)
    if ratio is not None:
        return f"A training step with fused GN: {ratio_text(ratio)} the speed of eager GN"
    if any(bench.overhead for bench in benches):
        return "The host’s part of a call"
    return "Nothing has been timed yet"


def lead(benches: Sequence[Bench]) -> list[str]:
    """What the headline's numbers are taken over, and what the least of them is."""
    rows = [r for r in _kernels(benches) if r.peer == "batchfree" and r.ratio is not None]
    if not rows:
        return []
    least = min(rows, key=lambda row: row.ratio or 0)
    slower = sum((row.ratio or 0) < 1 for row in rows)
    served = ", ".join(dict.fromkeys(row.backend or "?" for row in rows))
    return [
        f"Geometric means over {len(rows)} settings (shape, dtype, layout, mode) of the suites "
        f"{', '.join(dict.fromkeys(row.suite for row in rows))}; {slower} of them are slower than "
        f"eager. The least is {ratio_text(least.ratio or 0)}: {'x'.join(map(str, least.shape))} "
        f"{least.fusion}, {least.dtype}, {least.layout}, {least.mode}.",
        f"Calls of batchfree.group_norm were served by the backend: {served}. All peers ran in one "
        "process, in turns; a ratio is the median of the ratios within a repetition.",
    ]


def cautions(benches: Sequence[Bench]) -> list[str]:
    """What a reader has to know: what is missing, what failed, how restless the machine was."""
    found = []
    if not all(bench.complete for bench in benches):
        found.append("Not every setting was run: it was interrupted, or its time budget was spent.")
    rows = [row for bench in benches for row in _all(bench)]
    failed = [row for row in rows if row.failure]
    for why in dict.fromkeys((_who(row), row.failure) for row in failed):
        count = sum((_who(row), row.failure) == why for row in failed)
        found.append(f"{why[0]} failed {count} time{'s' * (count != 1)}: {why[1]}")
    timed = [row for row in rows if row.median_us]
    few = sum(row.repetitions < _FEW for row in timed)
    if few:
        found.append(f"{few} of {len(timed)} rows have fewer than {_FEW} repetitions.")
    loads = [bench.origin.machine.get("load before") for bench in benches]
    high = [value for value in loads if isinstance(value, int | float) and value > _ALONE]
    if high:
        found.append(
            f"Other processes used the machine before the start (load {max(high)}). A thread that "
            "waits for a core costs milliseconds, most of all in short calls on several threads."
        )
    restless = sum((row.p90_us or 0) > _RESTLESS * (row.p10_us or 1) for row in timed)
    if restless > len(timed) / 4:
        found.append(
            f"The machine was busy: in {restless} of {len(timed)} rows the 90th percentile is over "
            f"{_RESTLESS} times the 10th. Ratios within a repetition suffer less than times do."
        )
    if {row.backend for row in _kernels(benches) if row.peer == "batchfree"} == {"aten"}:
        found.append("batchfree’s calls were served by PyTorch’s own kernels, not by fused ones.")
    return found


def summary_table(benches: Sequence[Bench]) -> Table | None:
    """The figures over each suite; None without kernels."""
    groups = [g for g in summarize(_kernels(benches)) if g.peer not in ("eager", "floor")]
    if not groups:
        return None
    words = ("Suite", "Norm", "Dtype", "Layout", "Mode", "Parameters", "Malloc", "Threads", "Peer")
    return narrow(
        "Times as fast as eager: geometric mean and lowest over the suite’s cases, and all norms "
        "of its networks together; and the time over the floor’s",
        (*words, "Mean", "Lowest", "Together", "Over the floor", "Cases"),
        [_summary_row(group) for group in groups],
        len(words) - 1,
    )


def layout_table(benches: Sequence[Bench]) -> Table | None:
    """channels_last beside channels first; None where only one of them ran."""
    pairs = compare_layouts(_kernels(benches))
    if not pairs:
        return None
    words = ("Suite", "Norm", "Dtype", "Mode", "Peer")
    return narrow(
        "Channels first’s time over channels_last’s: at 1 or more, channels_last is no slower. The "
        "two ran one after the other, not in turns",
        (*words, "Mean", "Lowest", "Cases"),
        [
            tuple(
                map(
                    Entry,
                    (
                        *(pair.suite, pair.fusion, pair.dtype, pair.mode, pair.peer),
                        *(ratio_text(pair.mean), ratio_text(pair.least), str(pair.cases)),
                    ),
                )
            )
            for pair in pairs
        ],
        len(words) - 1,
    )


def facts(bench: Bench) -> list[Fact]:
    """What made the rows of one benchmark."""
    origin, rows = bench.origin, _all(bench)
    machine = {"cpu": "Processor", "cores": "Cores", "system": "System"}
    told = [
        Fact("Command", (origin.command,), code=True),
        Fact("When", (origin.created,)),
        Fact("Commit", (origin.commit or "not in a checkout",), code=True),
        Fact("Versions", (", ".join(f"{k} {v}" for k, v in origin.versions.items()),)),
        *(Fact(machine.get(k, k), (str(v),)) for k, v in origin.machine.items()),
    ]
    if rows:
        told += [
            Fact("Threads", tuple(dict.fromkeys(str(row.threads) for row in rows))),
            Fact("Allocator setting", tuple(dict.fromkeys(row.allocator for row in rows))),
            Fact("Rows", (f"{len(rows)}",)),
        ]
    return told


def _summary_row(g: Group) -> tuple[Entry, ...]:
    def ratio(value: float | None, *notes: str) -> Entry:
        return _NONE if value is None else Entry(ratio_text(value), notes)

    most = () if g.most_floors is None else (f"up to {ratio_text(g.most_floors)}",)
    failed = (f"{g.failed} failed",) if g.failed else ()
    return (
        *map(Entry, (g.suite, g.fusion, g.dtype, g.layout, g.mode)),
        Entry("" if g.parameters == "same" else f"{g.parameters} parameters"),
        *map(Entry, (f"malloc {g.allocator}", f"{g.threads} threads", g.peer)),
        ratio(g.mean),
        ratio(g.least, g.least_case),
        ratio(g.network),
        ratio(g.floors, *most),
        Entry(str(g.cases), failed),
    )


def _kernels(benches: Sequence[Bench]) -> list[KernelRow]:
    return [row for bench in benches for row in bench.kernels]


def _all(bench: Bench) -> list[Timed]:
    return [*bench.kernels, *bench.overhead, *bench.steps]


def _who(row: Timed) -> str:
    return str(getattr(row, "peer", None) or getattr(row, "subject", None) or row.model)  # type: ignore[attr-defined]
