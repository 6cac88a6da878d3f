"""`batchfree predict`: objects in images, drawn and as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree.cli.parsing import INTERRUPTED, parse

BROKEN = 1


def predict(args: list[str]) -> int:
    """`batchfree predict CHECKPOINT IMAGE... -o OUT`; exit code 1 where an image is broken."""
    parser = argparse.ArgumentParser(
        prog="batchfree predict",
        description="Finds objects with a detector of batchfree train. Each image is drawn as a "
        "PNG with its boxes and masks; predictions.json holds all detections in COCO's results "
        "format, images.json the images' ids. Exits with 0, with 1 where an image could not be "
        "read or taken (the others are done), with 2 for a wrong command line, with 130 after "
        "Ctrl-C (what is done is kept). Of a file of several frames or pages the first is taken.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="model.safetensors or a .ckpt of a run")
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="files and folders; what lies in OUTPUT within one of the folders is left out",
    )
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
    from batchfree.train.predict import find_images, passed_over
    from batchfree.train.predict import predict as run

    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output {str(output)!r} is a file: name a folder with -o")
    images = find_images(options.images, output)
    _check_apart(images, output)
    model, _, categories = load_detector(options.checkpoint)
    left = passed_over(options.images, output)
    findings = run(
        model,
        categories,
        images,
        output,
        threshold=options.threshold,
        device=_device(options.device),
    )
    shown = track(
        findings,
        "predicting",
        total=len(images),
        console=Console(stderr=True),
        disable=options.quiet or not sys.stderr.isatty(),
    )
    done = objects = broken = 0
    several: list[Path] = []
    try:
        with closing(findings):
            for found in shown:
                done, objects = done + (found.error is None), objects + found.detections
                if found.frames > 1:
                    several.append(found.path)
                if found.error is not None:
                    broken += 1
                    print(f"skipped: {found.error}", file=sys.stderr)
    except KeyboardInterrupt:
        kept = f"; their results are in {output}" if done else ""
        print(f"\ninterrupted after {done} of {len(images)} images{kept}", file=sys.stderr)
        return INTERRUPTED
    if several:
        more = f" and {len(several) - 3} more" * (len(several) > 3)
        print(
            f"predicted on the first frame alone, of several, of {', '.join(map(str, several[:3]))}"
            f"{more}",
            file=sys.stderr,
        )
    if left and not options.quiet:
        counts = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in left.items())
        print(f"passed over, as no images: {counts}", file=sys.stderr)
    if not done:
        print(f"no image of {len(images)} could be predicted: nothing is written", file=sys.stderr)
    elif not options.quiet:
        print(f"{done} images, {objects} objects at {options.threshold:g} and above, in {output}")
    return BROKEN if broken else 0


def _check_apart(images: Sequence[tuple[Path, Path]], output: Path) -> None:
    """Raises ConfigError where a drawn image would replace one of the images themselves."""
    sources = {path.resolve() for path, _ in images}
    for _, name in images:
        drawn = output / name.with_suffix(".png")
        if drawn.resolve() in sources:
            raise ConfigError(
                f"what is drawn would replace the image {str(drawn)!r}: name another folder with -o"
            )


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"--device {name} is not to be had here: {str(e).splitlines()[0]}") from e
    return name
