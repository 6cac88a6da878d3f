"""Running a benchmark: a process for each allocator setting, and what is left on disk."""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from batchfree._errors import ConfigError, SweepError
from batchfree.cli.parsing import INTERRUPTED

Record = Callable[[Sequence[Any]], None]
Measure = Callable[[Record, float], object]
"""Measures within a budget of seconds, and hands on rows as they come."""


def run(
    args: list[str], options: argparse.Namespace, name: str, measure: Measure, rows: int
) -> int:
    """Measures with each allocator setting, writes what there is, shows it.

    Args:
        args: those of the command, without `bench`.
        options: the parsed ones: `allocator`, `budget`, `lines` and `output`.
        name: the folder under `runs/` where `--output` names none.
        measure: measures in this process.
        rows: how many rows it gives where nothing is left out.

    Returns:
        The exit code.

    Raises:
        SweepError: a process of another allocator setting died; what it had measured is kept.
    """
    from batchfree.bench import allocator, results
    from batchfree.bench.origin import here, load
    from batchfree.cli.bench_tables import Progress, print_summary

    show = Progress()
    budget = options.budget or math.inf
    if options.lines:
        _into(options.lines, measure, budget, show)
        return 0
    output = options.output or Path("runs") / name
    output.mkdir(parents=True, exist_ok=True)
    origin = here(shlex.join(["batchfree", "bench", *args]))
    before = load()
    if before is not None and before > 0.5:
        say(
            f"note: other processes use this machine (load {before}); threads that wait for a core "
            "distort every time, PyTorch's own most: for numbers to keep, run it alone"
        )
    settings = allocator.CHOICES[options.allocator]
    files = {setting: output / f"rows-{setting}.jsonl" for setting in settings}
    budget /= len(settings)
    interrupted, problem = False, None
    for path in files.values():
        path.unlink(missing_ok=True)
    try:
        for setting, path in files.items():
            if setting == allocator.current():
                _into(path, measure, budget, show)
                continue
            code = _child(args, setting, path, budget)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                problem = f"the process with the allocator setting {setting!r} ended with {code}"
    except KeyboardInterrupt:
        interrupted = True
    found = results.gather(list(files.values()), origin, complete=False)
    count = sum(len(getattr(found, kind)) for kind in results.ROWS)
    found = results.Bench(
        origin, count == rows * len(settings), found.kernels, found.overhead, found.steps
    )
    written = results.write_bench(output, found)
    for path in files.values():
        path.unlink(missing_ok=True)
    print_summary(found)
    if not found.complete:
        why = "interrupted" if interrupted else "the time budget is spent" * (not problem)
        say(f"{why or problem}: {count} of {rows * len(settings)} rows are there and kept")
    print(f"wrote {', '.join(map(str, [*written, *_page(found, output)]))}")
    if problem:
        raise SweepError(problem)
    return INTERRUPTED if interrupted else 0


def _into(path: Path, measure: Measure, budget: float, show: Callable[[Any], None]) -> None:
    from batchfree.bench.results import append

    with _heard() as interrupted:

        def record(rows: Sequence[Any]) -> None:
            for row in rows:
                append(path, row)
            show(rows)
            if interrupted():
                raise KeyboardInterrupt

        measure(record, budget)


@contextmanager
def _heard() -> Iterator[Callable[[], bool]]:
    """Whether there was a Ctrl-C, also one whose exception was lost on its way.

    An attribute that C code asks for is one such way: CPython takes any exception there for "no".
    """
    asked: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def hear(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _child(args: list[str], setting: str, path: Path, budget: float) -> int:
    """The same command in a process with another allocator setting; its exit code."""
    from batchfree.bench.allocator import environment

    more = ["--allocator", setting, "--lines", str(path)]
    more += ["--budget", str(budget)] if budget < math.inf else []
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
        [sys.executable, "-m", "batchfree.cli", "bench", *args, *more],
        env=dict(environment(setting)),
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        # In a terminal the child got the same signal; where only this process did, it is told.
        for wait, end in ((3, signal.SIGINT), (10, signal.SIGKILL)):
            try:
                child.wait(wait)
                break
            except subprocess.TimeoutExpired:
                child.send_signal(end)
        child.wait()
        raise


def _page(found: Any, output: Path) -> list[Path]:
    """The page, where the libraries that draw it are installed."""
    from batchfree.report import write_bench_page

    try:
        return [write_bench_page([found], output / "bench.html")]
    except ConfigError as error:
        say(f"no page: {error}")
        return []


def say(message: str) -> None:
    """A remark beside the output."""
    print(message, file=sys.stderr, flush=True)
