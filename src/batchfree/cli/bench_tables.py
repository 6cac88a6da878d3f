"""What a benchmark shows in the terminal: a line a setting as it is done, tables at the end."""

from __future__ import annotations

from collections.abc import Sequence

from batchfree.bench.results import Bench, KernelRow, OverheadRow, StepRow, Timed
from batchfree.bench.summary import compare_layouts, summarize

_SHORT = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "contiguous": "first",
    "channels_last": "last",
    "forward": "fwd",
    "forward+backward": "fwd+bwd",
}


class Progress:
    """Prints the rows of a setting when they are there, with a head above the first."""

    def __init__(self) -> None:
        self.head: object = None

    def __call__(self, rows: Sequence[Timed]) -> None:
        """A line for the peers of a setting, or one for each other row."""
        first = rows[0]
        if isinstance(first, KernelRow):
            self._kernels([row for row in rows if isinstance(row, KernelRow)])
            return
        if self.head != (type(first), first.allocator):
            self.head = (type(first), first.allocator)
            print(_allocator(first))
        for row in rows:
            if isinstance(row, OverheadRow):
                print(f"{row.mode:<20}{row.subject:<30}{_us(row)}{_times(row.ratio)}", flush=True)
            elif isinstance(row, StepRow):
                kept = "" if row.saved_bytes is None else f"{row.saved_bytes / 1e6:8.1f} MB kept"
                print(
                    f"{row.network} batch {row.batch} {row.size} px {row.layout:<15}"
                    f"{row.clock:<7}{row.model:<10}{_us(row)}{_times(row.ratio)}{kept}",
                    flush=True,
                )

    def _kernels(self, rows: list[KernelRow]) -> None:
        first = rows[0]
        others = [row for row in rows if row.peer != "eager"]
        head = (first.allocator, tuple(row.peer for row in rows))
        if self.head != head:
            self.head = head
            print(f"{_allocator(first)}; other peers as times as fast as eager")
            names = "".join(f"{row.peer:>11}" for row in others)
            print(
                f"{'shape':<20}{'norm':<17}{'dtype':<6}{'layout':<7}{'mode':<8}{'eager':>11}{names}"
            )
        eager = next((_us(row) for row in rows if row.peer == "eager"), " " * 11)
        shape = "x".join(map(str, first.shape))
        words = (_SHORT[first.dtype], _SHORT[first.layout], _SHORT[first.mode])
        print(
            f"{shape:<20}{first.fusion:<17}{words[0]:<6}{words[1]:<7}{words[2]:<8}{eager}"
            + "".join(_times(row.ratio) if row.ratio is not None else _us(row) for row in others),
            flush=True,
        )


def print_summary(bench: Bench) -> None:
    """The figures over each suite, the layouts beside each other, and what failed."""
    groups = [group for group in summarize(bench.kernels) if group.peer != "floor"]
    if groups:
        print(
            f"\n{'suite':<13}{'norm':<17}{'dtype':<6}{'layout':<7}{'mode':<8}{'malloc':<8}"
            f"{'peer':<11}{'cases':>5}{'mean':>9}{'least':>9}{'network':>9}{'floors':>9}{'most':>9}"
        )
    for g in groups:
        print(
            f"{g.suite:<13}{g.fusion:<17}{_SHORT[g.dtype]:<6}{_SHORT[g.layout]:<7}"
            f"{_SHORT[g.mode]:<8}{g.allocator:<8}{g.peer:<11}{g.cases:>5}"
            + "".join(_number(x) for x in (g.mean, g.least, g.network, g.floors, g.most_floors))
        )
    if groups:
        print(
            "mean, least: times as fast as eager, geometric mean and lowest; network: all norms of "
            "the suite together;\nfloors, most: time over that of a copy of the bytes that have to "
            "move, geometric mean and largest"
        )
    layouts = compare_layouts(bench.kernels)
    if layouts:
        print("\nchannels first over channels_last (1 or more: channels_last is no slower)")
    for pair in layouts:
        print(
            f"{pair.suite:<13}{pair.fusion:<17}{_SHORT[pair.dtype]:<6}{_SHORT[pair.mode]:<8}"
            f"{pair.peer:<11}{pair.cases:>5}{_number(pair.mean)}{_number(pair.least)}"
        )
    failures: dict[tuple[str, str], int] = {}
    for row in (*bench.kernels, *bench.overhead, *bench.steps):
        if row.failure:
            name = row.peer if isinstance(row, KernelRow) else "a row"
            failures[name, row.failure] = failures.get((name, row.failure), 0) + 1
    for (name, failure), count in failures.items():
        print(f"failed {count} times: {name}: {failure}")


def _allocator(row: Timed) -> str:
    threads = f"{row.threads} thread{'s' * (row.threads != 1)}"
    return f"\n{row.device}, {threads}, allocator setting {row.allocator}"


def _us(row: Timed) -> str:
    if row.median_us is None:
        return f"{'failed':>11}"
    if row.median_us < 1000:
        return f"{row.median_us:8.1f} us"
    return f"{row.median_us / 1e3:8.2f} ms"


def _times(ratio: float | None) -> str:
    return f"{'':>11}" if ratio is None else f"{ratio:10.2f}x"


def _number(value: float | None) -> str:
    if value is None:
        return f"{'':>9}"
    return f"{value:9.2f}" if value < 1e4 else f"{value:9.0f}"
