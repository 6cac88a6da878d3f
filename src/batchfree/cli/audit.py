"""`batchfree audit`: where a model depends on its batch."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from batchfree._errors import ConfigError, DataError
from batchfree._files import write_atomically
from batchfree.cli.images import images_of
from batchfree.cli.parsing import check_known, parse

FINDINGS = 1
ERASE = "\r\x1b[K"  # the line of the progress
_LEVELS = ("coupling", "bits", "warning", "note", "never")


def audit(args: list[str]) -> int:
    """`batchfree audit MODEL --input 8,3,224,224 | --data DIR`; exit code 1 where it fails."""
    parser = argparse.ArgumentParser(
        prog="batchfree audit",
        description="Says where a model's samples influence each other, how much, and what to do. "
        "Exits with 0 where nothing of the level --fail-on is found, 1 where something is, 2 for a "
        "wrong command line.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="torchvision:NAME, timm:NAME or package.module:function"
    )
    parser.add_argument(
        "--input", metavar="N,C,H,W", help="the shape of a random batch, such as 8,3,224,224"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder of images, or of a folder a class"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images of --data")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="pixels of their sides")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint for the model")
    parser.add_argument("--mode", default="both", metavar="MODE", help="eval, train or both")
    parser.add_argument("--tolerance", type=float, default=0.05, metavar="X")
    parser.add_argument(
        "--fail-on",
        default="coupling",
        metavar="LEVEL",
        help="coupling, bits, warning, note, never",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--threads", type=int, metavar="N", help="PyTorch's; all cores by default")
    parser.add_argument("--quiet", action="store_true", help="no progress on a terminal's stderr")
    options = parse(parser, args)
    check_known(options.fail_on, _LEVELS, "level")
    check_known(options.mode, ("eval", "train", "both"), "mode")
    if (options.input is None) == (options.data is None):
        raise ConfigError("batchfree audit: give --input N,C,H,W or --data DIR, one of them")
    import torch

    from batchfree._naming import load_model
    from batchfree.audit import audit as run
    from batchfree.audit.text import table

    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for path in (options.json, options.html):
        if path is not None and path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")
    try:
        batch, labels = _batch(options)
        model = load_model(options.model, options.weights)
    except DataError as error:  # exit code 1 would mean that something was found
        raise ConfigError(str(error)) from error
    if options.model.startswith("torchvision:") and takes_lists(model):
        batch = detection_batch(batch)
    shown = not options.quiet and sys.stderr.isatty()
    try:
        report = run(
            model,
            batch,
            modes=("eval", "train") if options.mode == "both" else (options.mode,),
            labels=labels,
            tolerance=options.tolerance,
            name=options.model,
            progress=StageProgress() if shown else None,
        )
    finally:
        if shown:
            print(ERASE, end="", file=sys.stderr, flush=True)
    show(table(report))
    for path, content in ((options.json, report.to_json), (options.html, report.to_html)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content().encode())
            print(f"wrote {path}")
    if options.fail_on == "never":
        return 0
    return FINDINGS if report.skipped or report.at_least(options.fail_on) else 0


def _batch(options: argparse.Namespace) -> tuple[Any, list[int] | None]:
    import torch

    if options.input is None:
        return _images(options.data, options.batch, options.size)
    try:
        shape = [int(word) for word in options.input.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--input must be whole numbers with commas between, got {options.input!r}"
        ) from error
    if len(shape) < 2 or min(shape) < 1:
        raise ConfigError(
            f"--input must be N,C,... with positive numbers, such as 8,3,224,224; got "
            f"{options.input!r}"
        )
    return torch.randn(shape), None


def _images(folder: Path, count: int, size: int) -> tuple[Any, list[int] | None]:
    """The first images of each class in turn, resized, in [0, 1] and standardised as ImageNet's."""
    import torch
    from torchvision.transforms import v2

    from batchfree.data.image_files import load_image

    if count < 2:
        raise ConfigError(f"--batch must be at least 2, got {count}")
    found = images_of(folder, count)
    if len(found) < 2:
        raise DataError(f"{folder} holds {len(found)} images; an audit needs two or more")
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = torch.stack([transform(load_image(path)) for path, _ in found])
    labels = [label for _, label in found]
    return images, labels if len(set(labels)) > 1 else None


def takes_lists(model: Any) -> bool:
    """Whether it is one of torchvision's detectors, which take a list of images."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    return isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform)


def detection_batch(images: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """Images (N, 3, H, W) as torchvision's detectors take them, with a box, a mask, keypoints."""
    import torch

    height, width = images.shape[-2:]
    x, y, right, bottom = width // 8, height // 8, width * 5 // 8, height * 3 // 4
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, y:bottom, x:right] = 1
    points = torch.tensor([[[float(x + k % (right - x)), float(y), 1.0] for k in range(17)]])
    targets = [
        {
            "boxes": torch.tensor([[float(v) for v in (x, y, right, bottom)]]),
            "labels": torch.tensor([1]),
            "masks": mask.clone(),
            "keypoints": points.clone(),
        }
        for _ in images
    ]
    return list(images), targets


class StageProgress:
    """The stage and the time left, on one line of stderr."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, what: str, part: float) -> None:
        """Shows what is being done and about how long the rest will take."""
        seconds = time.monotonic() - self.started
        left = f", about {seconds / part - seconds:.0f} s left" if part > 0.05 else ""
        print(f"{ERASE}{what}{left}", end="", file=sys.stderr, flush=True)


def show(content: Any) -> None:
    """Prints a text or a rich table."""
    if isinstance(content, str):
        print(content)
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(content)
