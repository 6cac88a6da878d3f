"""`batchfree reproduce`, `batchfree demo` and `batchfree report`."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchfree._errors import ConfigError
from batchfree.cli.parsing import check_experiment, parse, parse_fields

if TYPE_CHECKING:
    from batchfree.experiments.batch_size import Preset, ProtocolName

_PROTOCOLS = ("isolated", "paper")


def demo(args: list[str]) -> int:
    """`batchfree demo`: the embedded preset of the batch-size experiment, and its report."""
    parser = argparse.ArgumentParser(
        prog="batchfree demo",
        description="Trains BatchNorm and GroupNorm networks on embedded data, over normalisation "
        "batches 32, 16, 8, 4 and 2, and writes a report. About five minutes on two cores.",
    )
    parser.add_argument("--quick", action="store_true", help="sizes 32 and 2 only, a minute")
    _add_output(parser)
    options = parse(parser, args)
    from batchfree.experiments.batch_size import make_preset

    name = "quick" if options.quick else "demo"
    output = options.output or Path("runs") / ("demo-quick" if options.quick else "demo")
    return _run("demo", args, make_preset(name), name, "isolated", output, options)


def reproduce(args: list[str]) -> int:
    """`batchfree reproduce EXPERIMENT`."""
    parser = argparse.ArgumentParser(
        prog="batchfree reproduce",
        description="Runs an experiment of the Group Normalization talk on embedded data and "
        "writes its rows and a report. Started again, it continues where it stopped. Any field of "
        "a training's config (batchfree train --help) may be given, as in --optimizer.base_lr 0.1; "
        "it holds for every norm.",
    )
    parser.add_argument("experiment", help="batch-size")
    parser.add_argument(
        "--protocol",
        choices=_PROTOCOLS,
        default="isolated",
        help="isolated: only the normalisation batch changes (default); paper: eight workers of n "
        "images each, the learning rate scaled with n",
    )
    parser.add_argument("--preset", default="hour", help="quick, demo or hour (default)")
    parser.add_argument("--norms", nargs="+", metavar="NORM", help="bn gn ln in gn+ws")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="normalisation batches")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps at a batch of 32")
    _add_output(parser)
    options, fields = parse_fields(parser, args)
    check_experiment(options.experiment)
    from batchfree.experiments.batch_size import make_preset

    preset = make_preset(
        options.preset,
        norms=options.norms,
        sizes=options.sizes,
        seeds=options.seeds,
        steps=options.steps,
    )
    default = Path("runs") / f"batch-size-{options.protocol}-{options.preset}"
    output = options.output or default
    return _run(
        "reproduce", args, preset, options.preset, options.protocol, output, options, fields
    )


def report(args: list[str]) -> int:
    """`batchfree report RESULTS... -o report.html`."""
    parser = argparse.ArgumentParser(
        prog="batchfree report",
        description="Writes results as one self-contained HTML page, with figures beside it.",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, help="results.json or bench.json, or its folder"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parse(parser, args)
    from batchfree.bench.results import is_bench, read_bench
    from batchfree.experiments.results import read_results
    from batchfree.report import write_bench_page, write_report

    timings = [path for path in options.results if is_bench(path)]
    if timings:
        if len(timings) < len(options.results):
            raise ConfigError(
                "benchmarks and experiments do not share a page; name one kind, "
                f"such as {' '.join(map(str, timings))}"
            )
        page = write_bench_page([read_bench(path) for path in timings], options.output)
        _show(page, options.open)
        return 0
    files = [path / "results.json" if path.is_dir() else path for path in options.results]
    _show(write_report([read_results(file) for file in files], options.output), options.open)
    return 0


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, help="folder of rows, results and report")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default the cores")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def _run(
    command: str,
    args: list[str],
    preset: Preset,
    preset_name: str,
    protocol: ProtocolName,
    output: Path,
    options: argparse.Namespace,
    fields: dict[str, Any] | None = None,
) -> int:
    from batchfree.cli.progress import SweepProgress
    from batchfree.experiments.batch_size import command_line, plan, results_of
    from batchfree.experiments.sweep import run_sweep
    from batchfree.report import check_installed, write_report

    check_installed()
    line = command_line([command, *args])
    runs = plan(preset, protocol, fields)
    with SweepProgress(line, output) as progress:
        results = run_sweep(
            runs,
            output,
            lambda rows: results_of(
                rows, preset=preset, preset_name=preset_name, protocol=protocol, command=line
            ),
            command=line,
            watcher=progress,
            workers=options.workers,
        )
    progress.table(results)
    _show(write_report(results, output / "report.html"), options.open)
    return 0


def _show(page: Path, in_browser: bool) -> None:
    print(f"report: {page}")
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
