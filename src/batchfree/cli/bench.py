"""`batchfree bench`, `batchfree bench overhead` and `batchfree bench training-step`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree.cli.bench_run import Record, run, say
from batchfree.cli.parsing import check_known, parse
from batchfree.experiments.machine import usable_cores

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_ALLOCATORS = ("default", "keep", "both")


def bench(args: list[str]) -> int:
    """`batchfree bench [SUITE ...]`, `... overhead`, `... training-step`."""
    if args[:1] == ["overhead"]:
        return _overhead(args)
    if args[:1] == ["training-step"]:
        return _training_step(args)
    return _kernels(args)


def _kernels(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="batchfree bench",
        description="Times group_norm with its residual and activation against PyTorch eager, "
        "torch.compile, BatchNorm and a copy of the same bytes, all in one process and "
        "interleaved. Writes bench.json, kernels.csv and bench.html. `batchfree bench overhead` "
        "times the host's part of a call, `batchfree bench training-step` a ResNet-50.",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="target by default; see --list")
    parser.add_argument("--list", action="store_true", help="name the suites and their cases")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], metavar="DTYPE")
    parser.add_argument("--layouts", nargs="+", default=["contiguous"], metavar="LAYOUT")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="forward, forward+backward")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="also a backend's name")
    parser.add_argument(
        "--parameters", default="same", help="weight and bias in x's dtype (same) or in float32"
    )
    parser.add_argument(
        "--clock", default="host", help="host (default), or device: a GPU's time alone"
    )
    parser.add_argument("--cache", default="warm", help="with --clock device: warm or cold L2")
    parser.add_argument("--large", action="store_true", help="on a CPU too: cases over 128 MiB")
    _add_common(parser, repetitions=30)
    options = parse(parser, args)
    from batchfree.bench import inputs, peers, suites
    from batchfree.bench.runner import Limits, run_kernels

    if options.list:
        return _list_suites()
    _check(options)
    for mode in options.modes or ():
        check_known(mode, inputs.MODES, "mode")
    for name in options.peers or ():
        check_known(name, peers.peer_names(), "peer")
    for layout in options.layouts:
        check_known(layout, inputs.LAYOUTS, "layout")
    check_known(options.parameters, inputs.PARAMETERS, "choice of --parameters")
    check_known(options.clock, ("host", "device"), "clock")
    check_known(options.cache, ("warm", "cold"), "cache")
    if options.clock == "device" and options.device != "cuda":
        raise ConfigError("--clock device is a GPU's; with --device cpu there is the host's alone")
    if options.cache == "cold" and options.clock != "device":
        raise ConfigError("--cache cold needs --clock device")
    dtypes = [_DTYPES.get(name, name) for name in options.dtypes]
    for name in dtypes:
        check_known(name, inputs.DTYPES, "dtype")

    names = list(dict.fromkeys(options.suites or ["target"]))
    pairs = [(suite, case) for suite in names for case in suites.cases(suite)]
    kept = [p for p in pairs if options.large or options.device != "cpu" or not p[1].large]
    if len(kept) < len(pairs):
        say(f"{len(pairs) - len(kept)} cases over 128 MiB are left out; --large runs them")
    wanted = inputs.settings(
        kept,
        dtypes=list(dict.fromkeys(dtypes)),
        layouts=list(dict.fromkeys(options.layouts)),
        modes=list(dict.fromkeys(options.modes or inputs.MODES)),
        parameters=options.parameters,
        device=options.device,
    )
    if not wanted:
        raise ConfigError("batchfree bench: nothing to run: no case has the layouts asked for")
    chosen = list(dict.fromkeys(options.peers or peers.DEFAULT))

    def measure(record: Record, budget: float) -> None:
        limits = Limits(options.repetitions, budget, options.threads, options.clock, options.cache)
        run_kernels(wanted, record, peers=chosen, limits=limits)

    return run(args, options, "bench", measure, len(wanted) * len(chosen))


def _overhead(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="batchfree bench overhead",
        description="Microseconds of a call on a tensor with hardly any work in it.",
    )
    _add_common(parser, repetitions=50)
    options = parse(parser, args[1:])
    _check(options)
    from batchfree.bench.overhead import MODES, SUBJECTS, run_overhead

    def measure(record: Record, budget: float) -> None:
        run_overhead(
            record,
            repetitions=options.repetitions,
            budget=budget,
            device=options.device,
            thread_count=options.threads,
        )

    return run(args, options, "bench-overhead", measure, len(MODES) * len(SUBJECTS))


def _training_step(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="batchfree bench training-step",
        description="Times a training step (forward, backward, SGD) of ResNet-50 with fused GN, "
        "eager GN and BN, and counts the bytes that each keeps for its backward.",
    )
    parser.add_argument("--network", default="resnet50", metavar="NAME")
    parser.add_argument("--precision", default="float32", help="or bfloat16, by autocast")
    parser.add_argument(
        "--clock", default="host", help="host (default), device: in a CUDA graph, or both"
    )
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="images in a step")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="pixels of a side")
    parser.add_argument("--layouts", nargs="+", default=["contiguous"], metavar="LAYOUT")
    _add_common(parser, repetitions=10)
    options = parse(parser, args[1:])
    _check(options)
    for name, least in (("batch", 1), ("size", 32)):
        _at_least(name, getattr(options, name), least)
    from batchfree.bench.inputs import LAYOUTS
    from batchfree.bench.networks import MODELS, NETWORKS
    from batchfree.bench.training_step import run_training_step

    check_known(options.network, NETWORKS, "network")
    check_known(options.precision, ("float32", "bfloat16"), "precision")
    check_known(options.clock, ("host", "device", "both"), "clock")
    if options.clock != "host" and options.device != "cuda":
        raise ConfigError(
            f"--clock {options.clock} is a GPU's; with --device cpu there is the host's alone"
        )
    layouts = list(dict.fromkeys(options.layouts))
    for layout in layouts:
        check_known(layout, LAYOUTS, "layout")

    def measure(record: Record, budget: float) -> None:
        run_training_step(
            record,
            network=options.network,
            batch=options.batch,
            size=options.size,
            layouts=layouts,
            precision=options.precision,
            clock=options.clock,
            repetitions=options.repetitions,
            budget=budget,
            device=options.device,
            thread_count=options.threads,
        )

    clocks = 2 if options.clock == "both" else 1
    rows = clocks * len(layouts) * len(MODELS)
    return run(args, options, "bench-training-step", measure, rows)


def _add_common(parser: argparse.ArgumentParser, repetitions: int) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="PyTorch's; all cores by default")
    parser.add_argument("--repetitions", type=int, default=repetitions, metavar="N")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="of timing; what it leaves out is told"
    )
    parser.add_argument(
        "--allocator",
        default="default",
        metavar="SETTING",
        help="default: glibc's own; keep: freed memory is kept, so that outputs over 32 MiB are "
        "not page faults; both: one process after the other",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("-o", "--output", type=Path, help="folder of JSON, CSV and page")
    # The file that a child process, started with another allocator setting, leaves its rows in.
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)


def _check(options: argparse.Namespace) -> None:
    check_known(options.allocator, _ALLOCATORS, "allocator setting")
    if options.device not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {options.device!r}")
    _at_least("repetitions", options.repetitions, 2)
    if options.threads is None:
        options.threads = usable_cores()
    _at_least("threads", options.threads, 1)
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise ConfigError(f"--budget must be a positive number of seconds, got {options.budget}")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: PyTorch sees no CUDA device; use --device cpu")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{name} must be at least {least}, got {value}")


def _list_suites() -> int:
    from batchfree.bench.suites import SUITES, cases

    for suite, function in SUITES.items():
        print(f"{suite}: {(function.__doc__ or '').splitlines()[0]}")
        for case in cases(suite):
            shape = "x".join(map(str, case.shape))
            note = "  (over 128 MiB)" * case.large
            print(f"  {shape:<20} {case.fusion:<17} {case.groups:>3} groups  {case.name}{note}")
    return 0
