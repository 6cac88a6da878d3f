"""`batchfree data`: digit scenes as a COCO folder, and a check of annotation files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from batchfree._checks import suggest
from batchfree._errors import ConfigError, DataError
from batchfree._files import write_atomically
from batchfree.cli.parsing import check_known, parse

FOUND = 1


def data(args: list[str]) -> int:
    """`batchfree data scenes OUT`, or `batchfree data check ROOT`."""
    commands = {"scenes": scenes, "check": check}
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: batchfree data COMMAND ...\n\n"
            "  scenes OUT   write digit scenes with exact masks as a COCO folder\n"
            "  check ROOT   list what is wrong in a COCO data set's annotation files\n\n"
            "batchfree data COMMAND --help says more."
        )
        return 0 if args else 2
    if args[0] not in commands:
        hint = suggest(args[0], commands) or f"; commands: {', '.join(commands)}"
        raise ConfigError(f"batchfree data: there is no command {args[0]!r}{hint}")
    return commands[args[0]](args[1:])


def scenes(args: list[str]) -> int:
    """`batchfree data scenes OUT [--images N] [--size N] [--seed N] [--format png|jpeg]`."""
    parser = argparse.ArgumentParser(
        prog="batchfree data scenes",
        description="Writes digit scenes: handwritten digits on photographs, with boxes and exact "
        "masks, as OUT/train2017, OUT/val2017 (of digits that training does not see) and "
        "OUT/annotations/instances_{train,val}2017.json. The same command gives the same scenes.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="to train; 2000")
    parser.add_argument(
        "--val-images", type=int, metavar="N", help="to validate; a fifth as many by default"
    )
    parser.add_argument("--size", type=int, default=128, metavar="N", help="pixels, 128 to 256")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random draws")
    parser.add_argument("--format", default="png", metavar="NAME", help="png or jpeg")
    parser.add_argument("--quiet", action="store_true", help="no progress on a terminal's stderr")
    options = parse(parser, args)
    check_known(options.format, ("png", "jpeg"), "format")
    if options.seed < 0:
        raise ConfigError(f"--seed must not be negative, got {options.seed}")
    from batchfree.data.scenes_folder import check_empty, write_scenes

    check_empty(options.out)
    with _bar(options.quiet) as progress:
        task = progress.add_task("writing scenes", total=None)
        try:
            out = write_scenes(
                options.out,
                images=options.images,
                val_images=options.val_images,
                size=options.size,
                seed=options.seed,
                format=options.format,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except DataError:
            raise
        except ValueError as error:
            raise ConfigError(f"batchfree data scenes: {error}") from error
    train, val = (len(list((out / f"{s}2017").iterdir())) for s in ("train", "val"))
    print(f"wrote {train} scenes to train and {val} to validate in {out}")
    return 0


def check(args: list[str]) -> int:
    """`batchfree data check ROOT`; exit code 1 where something is found."""
    parser = argparse.ArgumentParser(
        prog="batchfree data check",
        description="Lists what is wrong in a COCO data set's annotation files, with counts and "
        "examples. Exits with 0 where nothing is, 1 where something is, 2 for a wrong command line "
        "or where there is nothing to check.",
    )
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="the set's folder, or one annotation file of it"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="the image folder")
    parser.add_argument(
        "--image-check",
        default="decode",
        metavar="LEVEL",
        help="exist: the files alone; size: their headers too; decode, by default as in training: "
        "every image to its end too",
    )
    parser.add_argument(
        "--boxes-only", action="store_true", help="annotations need no segmentation"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--quiet", action="store_true", help="no progress on a terminal's stderr")
    options = parse(parser, args)
    check_known(options.image_check, ("exist", "size", "decode"), "level")
    from batchfree.data.coco_check import check_coco

    try:
        with _bar(options.quiet) as progress:
            task = progress.add_task("checking images", total=None)
            report = check_coco(
                options.root,
                images=options.images,
                image_check=options.image_check,
                segmentations=not options.boxes_only,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    except DataError as error:  # exit code 1 would mean that something was found
        raise ConfigError(str(error)) from error
    print(report.to_text())
    if options.json is not None:
        write_atomically(options.json, json.dumps(report.to_dict(), indent=1).encode())
    return 0 if report.clean else FOUND


def _bar(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    disable = quiet or not sys.stderr.isatty()
    return Progress(console=Console(stderr=True), disable=disable)
