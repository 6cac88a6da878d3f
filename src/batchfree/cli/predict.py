"""`batchfree predict`: objects in images, drawn and as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree.cli.parsing import parse

BROKEN = 1


def predict(args: list[str]) -> int:
    """`batchfree predict CHECKPOINT IMAGE... -o OUT`; exit code 1 where an image is broken."""
    parser = argparse.ArgumentParser(
        prog="batchfree predict",
        description="Finds objects with a detector of batchfree train. Each image is drawn as a "
        "PNG with its boxes and masks; predictions.json holds all detections in COCO's results "
        "format, images.json the images' ids. Exits with 0, with 1 where an image could not be "
        "read (the others are done), with 2 for a wrong command line.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="model.safetensors or a .ckpt of a run")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files and folders")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="the lowest score drawn, 0 to 1 (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    options = parse(parser, args)
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"--threshold must be 0 to 1, got {options.threshold}")

    from rich.console import Console
    from rich.progress import track

    from batchfree.train.detection_build import load_detector
    from batchfree.train.predict import find_images
    from batchfree.train.predict import predict as run

    images = find_images(options.images)
    model, _, categories = load_detector(options.checkpoint)
    findings = run(
        model,
        categories,
        images,
        options.output,
        threshold=options.threshold,
        device=_device(options.device),
    )
    console = Console(stderr=True)
    shown = track(
        findings,
        "predicting",
        total=len(images),
        console=console,
        disable=options.quiet or not sys.stderr.isatty(),
    )
    done = objects = broken = 0
    for found in shown:
        done, objects = done + (found.error is None), objects + found.detections
        if found.error is not None:
            broken += 1
            print(f"skipped: {found.error}", file=sys.stderr)
    if not options.quiet:
        print(
            f"{done} images, {objects} objects at {options.threshold:g} and above, in "
            f"{options.output}"
        )
    return BROKEN if broken else 0


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"--device {name} is not to be had here: {str(e).splitlines()[0]}") from e
    return name
