"""`batchfree convert`: a BatchNorm model becomes a GroupNorm model in a file."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from batchfree._checks import suggest
from batchfree._errors import ConfigError, ConversionWarning, DataError
from batchfree._files import write_atomically
from batchfree.cli.parsing import parse

MOVED = 1
_METHODS = ("copy", "analytic", "calibrated", "blend", "distill")


def convert(args: list[str]) -> int:
    """`batchfree convert MODEL --output F`; exit code 1 where outputs moved beyond --fail-above."""
    parser = _parser()
    options = parse(parser, args)
    method, groups, anchor = _choices(options)
    import torch

    from batchfree._naming import load_model
    from batchfree.cli.audit import ERASE, StageProgress, show
    from batchfree.convert import ConversionPlan, plan_conversion
    from batchfree.convert import convert as run
    from batchfree.convert.text import plan_table, report_table

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _check_files(options)
    try:
        model = load_model(options.model, options.weights)
        if options.plan is not None:
            plan = ConversionPlan.from_json(_text(options.plan))
            list(plan.sources(model))  # checks it against the model
        else:
            plan = plan_conversion(model, groups, keep=options.keep, name=options.model)
        if options.dry_run:
            show(plan_table(plan))
            if options.output is not None:
                _write(options.output, plan.to_json())
            return 0
        if not plan.converted:
            raise ConfigError(f"{options.model} has no BatchNorm to convert")
        data, preprocessing = _data(options)
        shown = not options.quiet and sys.stderr.isatty()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConversionWarning)  # the report says it
                result = run(
                    model,
                    data,
                    method=method,
                    plan=plan,
                    anchor=anchor,
                    degenerate=options.degenerate,
                    samples=options.samples,
                    chunk=options.chunk,
                    steps=options.steps,
                    name=options.model,
                    progress=StageProgress() if shown else None,
                )
        finally:
            if shown:
                print(ERASE, end="", file=sys.stderr, flush=True)
    except DataError as error:  # exit code 1 would mean that the outputs moved too far
        raise ConfigError(str(error)) from error
    show(report_table(result.report))
    try:
        result.save(options.output, source=options.model, preprocessing=preprocessing)
    except OSError as error:
        raise _unwritable(options.output, error) from error
    print(f"wrote {options.output}")
    for path, content in (
        (options.report, result.report.to_html),
        (options.json, result.report.to_json),
    ):
        if path is not None:
            _write(path, content())
    limit, moved = options.fail_above, result.report.output_error
    if limit is not None and result.report.uncompared:
        raise ConfigError(
            f"--fail-above cannot tell: outputs were not compared: {result.report.uncompared}; the "
            "model was written"
        )
    return MOVED if limit is not None and (moved is None or not 100 * moved <= limit) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchfree convert",
        description="Turns the BatchNorms of a trained model into GroupNorms and writes the model "
        "with a manifest, for batchfree.load_converted. Exits with 0, with 1 where the outputs "
        "moved beyond --fail-above, with 2 for a wrong command line, model or file.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="torchvision:NAME, timm:NAME or package.module:function")
    add("--weights", type=Path, metavar="FILE", help="a checkpoint for the model")
    add(
        "--calibration",
        metavar="DIR",
        help="a folder of images, or 'embedded': digits in the wild; without it, data-free",
    )
    add("--samples", type=int, default=256, metavar="N", help="calibration images")
    add("--size", type=int, metavar="N", help="pixels of their sides: 224, 16 if embedded")
    add("--method", metavar="METHOD", help=f"{', '.join(_METHODS)}")
    add("--groups", metavar="N", help="groups a layer, or 'auto': by measured error")
    add("--keep", nargs="+", default=[], metavar="NAME", help="layers that stay; * and ?")
    add("--anchor", default="2", metavar="X", help="of the rescaling before norms, or 'none'")
    add("--degenerate", default="error", metavar="WHAT", help="error, keep or merge")
    add("--chunk", type=int, default=64, metavar="N", help="images a forward")
    add("--steps", type=int, default=200, metavar="N", help="of --method distill")
    add("--plan", type=Path, metavar="FILE", help="a plan, as --dry-run --output writes it")
    add("--dry-run", action="store_true", help="print the plan; --output writes it as .json")
    add("--output", type=Path, metavar="FILE", help="the converted model, .safetensors")
    add("--report", type=Path, metavar="FILE", help="write the report as a page")
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--fail-above", type=float, metavar="PERCENT", help="of the outputs' relative error")
    add("--threads", type=int, metavar="N", help="PyTorch's; all cores by default")
    add("--quiet", action="store_true", help="no progress on a terminal's stderr")
    return parser


def _choices(options: argparse.Namespace) -> tuple[Any, Any, float | None]:
    """Method, groups and anchor, checked before anything heavy is imported."""
    for word, known, what in (
        (options.method, (None, *_METHODS), "--method"),
        (options.degenerate, ("error", "keep", "merge"), "--degenerate"),
    ):
        if word not in known:
            names = ", ".join(w for w in known if w)
            raise ConfigError(f"{what} must be one of {names}, got {word!r}{suggest(word, known)}")
    groups: Any = options.groups
    if groups is not None and groups != "auto":
        if not groups.isdigit() or int(groups) < 1:
            raise ConfigError(f"--groups must be a positive number or 'auto', got {groups!r}")
        groups = int(groups)
    if options.plan is not None and (groups is not None or options.keep):
        raise ConfigError("--plan says the groups and what is kept: leave out --groups and --keep")
    for name in ("samples", "chunk", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    if options.steps < 0:
        raise ConfigError(f"--steps must not be negative, got {options.steps}")
    _check_names(options)
    limit = options.fail_above
    if limit is not None and not 0 <= limit < math.inf:
        raise ConfigError(f"--fail-above must be a percentage, 0 or more, got {limit:g}")
    if options.calibration is None and not options.dry_run:
        if options.method in ("calibrated", "distill") or groups == "auto":
            raise ConfigError("this needs --calibration DIR, or --calibration embedded")
        if options.fail_above is not None:
            raise ConfigError("--fail-above needs --calibration: without data nothing is measured")
    try:
        anchor = None if options.anchor == "none" else float(options.anchor)
    except ValueError:
        anchor = -1.0
    if anchor is not None and not 0 <= anchor <= 100:
        raise ConfigError(f"--anchor must be 0 to 100 or 'none', got {options.anchor!r}")
    return options.method, groups, anchor


def _check_names(options: argparse.Namespace) -> None:
    """A dry run writes a plan and nothing else, a real one a model; neither over the other."""
    output = options.output
    if options.dry_run:
        for name in ("report", "json", "fail_above"):
            if getattr(options, name) is not None:
                word = name.replace("_", "-")
                raise ConfigError(f"--dry-run converts nothing, so there is nothing for --{word}")
        if output is not None and output.suffix != ".json":
            raise ConfigError(
                f"--dry-run writes the plan as JSON: give --output a name that ends with .json, "
                f"got {str(output)!r}"
            )
    elif output is None:
        raise ConfigError("batchfree convert: name a file with --output, or look with --dry-run")
    elif output.suffix != ".safetensors" and not output.is_dir():
        raise ConfigError(
            "the converted model is written as safetensors: give --output a name that ends with "
            f".safetensors, got {str(output)!r}"
        )


def _check_files(options: argparse.Namespace) -> None:
    """What is written is no folder, is not written over what is read, and can be written."""
    read = {p.resolve() for p in (options.weights, options.plan) if p is not None}
    written: set[Path] = set()
    for path in (options.output, options.report, options.json):
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")
        if path.resolve() in read | written:
            raise ConfigError(f"{path} is named twice on the command line; each file needs a name")
        written.add(path.resolve())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written: its folder is not writable")


def _data(options: argparse.Namespace) -> tuple[Any, str]:
    """Calibration images, some to spare for the drift, and how they were prepared."""
    wanted = options.samples + 32
    if options.calibration is None:
        return None, ""
    if options.calibration == "embedded":
        from batchfree.data import DigitsInTheWild

        size = options.size or 16
        if not 16 <= size <= 64:
            raise ConfigError(f"--size of the embedded images must be 16 to 64, got {size}")
        digits = DigitsInTheWild("train", size=size, num_samples=wanted, seed=1)
        return digits.batch(range(wanted))[0], f"digits in the wild, {size} pixels"
    from batchfree.cli.images import evaluation_images

    size = options.size or 224
    if size < 1:
        raise ConfigError(f"--size must be at least 1, got {size}")
    images = evaluation_images(Path(options.calibration), wanted, size)
    words = f"RGB, shorter side {round(size * 256 / 224)}, centre crop {size}, ImageNet's mean, std"
    return images, words


def _text(path: Path) -> str:
    """A plan's file.

    Raises:
        ConfigError: it is missing or no text.
    """
    if not path.is_file():
        raise ConfigError(f"there is no plan at {str(path)!r}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a plan: {error}") from error


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
    except OSError as error:
        raise _unwritable(path, error) from error
    print(f"wrote {path}")


def _unwritable(path: Path, error: OSError) -> ConfigError:
    """Exit code 1 would mean that the outputs moved too far."""
    return ConfigError(f"{path} cannot be written: {error.strerror or error}")
