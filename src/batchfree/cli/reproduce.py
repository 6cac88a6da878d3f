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
_OPTIONS_OF = {
    **dict.fromkeys(("protocol", "sizes"), "batch-size"),
    **dict.fromkeys(("batches", "images", "accelerator"), "detection"),
}


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
    parser.add_argument(
        "experiment",
        help="batch-size: classification over the normalisation batch; detection: Mask R-CNN, "
        "backbone x head norm, fine-tuned; scratch: Mask R-CNN from scratch at batches 2 and 1",
    )
    parser.add_argument("--preset", default="hour", help="quick, demo (batch-size) or hour")
    parser.add_argument(
        "--norms",
        nargs="+",
        metavar="NORM",
        help="batch-size: bn gn ln in gn+ws; scratch: gn bn ln none; detection: gn frozen_bn "
        "frozen_bn+gn frozen_bn+bn bn gn-scratch, the backbone's and, after a +, the heads'",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="optimizer steps at a batch of 32; of 2 in detection"
    )
    classes = parser.add_argument_group("batch-size")
    classes.add_argument(
        "--protocol",
        choices=_PROTOCOLS,
        help="isolated: only the normalisation batch changes (default); paper: eight workers of n "
        "images each, the learning rate scaled with n",
    )
    classes.add_argument("--sizes", nargs="+", type=int, metavar="N", help="normalisation batches")
    boxes = parser.add_argument_group("detection and scratch")
    boxes.add_argument("--batches", nargs="+", type=int, metavar="N", help="images in a step")
    boxes.add_argument("--images", type=int, metavar="N", help="images of a training")
    boxes.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), help="auto by default")
    _add_output(parser)
    options, fields = parse_fields(parser, args)
    check_experiment(options.experiment)
    kind = "batch-size" if options.experiment == "batch-size" else "detection"
    for option, of in _OPTIONS_OF.items():
        if getattr(options, option) is not None and of != kind:
            owner = "batch-size" if of == "batch-size" else "detection and scratch"
            raise ConfigError(f"--{option} is an option of {owner}, not of {options.experiment}")
    if kind == "detection":
        return _run_detection(args, options, fields)
    from batchfree.experiments.batch_size import make_preset

    preset = make_preset(
        options.preset,
        norms=options.norms,
        sizes=options.sizes,
        seeds=options.seeds,
        steps=options.steps,
    )
    protocol: ProtocolName = options.protocol or "isolated"
    default = Path("runs") / f"batch-size-{protocol}-{options.preset}"
    output = options.output or default
    return _run("reproduce", args, preset, options.preset, protocol, output, options, fields)


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
    from batchfree.experiments.detection_results import DetectionResults
    from batchfree.experiments.results import read_results
    from batchfree.experiments.store import read_file, schema_of
    from batchfree.report import write_bench_page, write_detection_report, write_report

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
    detections = [file for file in files if schema_of(file) == DetectionResults.SCHEMA]
    if detections:
        if len(detections) < len(files):
            raise ConfigError(
                "detection and classification do not share a page; name one kind, "
                f"such as {' '.join(map(str, detections))}"
            )
        found = [read_file(file, DetectionResults) for file in files]
        _show(write_detection_report(found, options.output), options.open)
        return 0
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
    from batchfree.cli.progress import SweepProgress, describe_row, print_errors
    from batchfree.experiments.batch_size import command_line, plan, results_of
    from batchfree.experiments.sweep import run_sweep
    from batchfree.report import check_installed, write_report

    check_installed()
    line = command_line([command, *args])
    runs = plan(preset, protocol, fields)
    with SweepProgress(line, output, describe_row) as progress:
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
    print_errors(results)
    _show(write_report(results, output / "report.html"), options.open)
    return 0


def _run_detection(args: list[str], options: argparse.Namespace, fields: dict[str, Any]) -> int:
    from batchfree.cli.progress import SweepProgress, describe_detection, print_precision
    from batchfree.experiments.batch_size import command_line
    from batchfree.experiments.detection import make_preset, plan, results_of
    from batchfree.experiments.sweep import run_sweep
    from batchfree.report import check_installed, write_detection_report

    check_installed()
    experiment = options.experiment
    preset = make_preset(
        experiment,
        options.preset,
        norms=options.norms,
        batches=options.batches,
        seeds=options.seeds,
        images=options.images,
        steps=options.steps,
    )
    output = options.output or Path("runs") / f"{experiment}-{options.preset}"
    line = command_line(["reproduce", *args])
    runs = plan(experiment, preset, output, options.accelerator or "auto", fields)
    with SweepProgress(line, output, describe_detection) as progress:
        results = run_sweep(
            runs,
            output,
            lambda rows: results_of(
                rows, runs, experiment=experiment, preset_name=options.preset, command=line
            ),
            command=line,
            watcher=progress,
            workers=options.workers,
        )
    print_precision(results)
    _show(write_detection_report([results], output / "report.html"), options.open)
    return 0


def _show(page: Path, in_browser: bool) -> None:
    print(f"report: {page}")
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
