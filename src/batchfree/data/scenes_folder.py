"""Digit scenes written as a COCO folder. Needs `batchfree[detect]`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from batchfree._checks import check_choice
from batchfree._errors import DataError
from batchfree._files import write_atomically
from batchfree.data.scenes import (
    DigitScenes,
    annotation_records,
    category_records,
    image_record,
)

ImageFormat = Literal["png", "jpeg"]

_ENDING = {"png": "png", "jpeg": "jpg"}
_FOLDER_OF = {"train": "train2017", "test": "val2017"}


def write_scenes(
    out: str | Path,
    *,
    images: int = 2000,
    val_images: int | None = None,
    size: int = 128,
    seed: int = 0,
    format: ImageFormat = "png",
    instances: tuple[int, int] = (1, 6),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes digit scenes in COCO's layout, whole or not at all.

    `out` then holds `train2017/`, `val2017/` (scenes of the test digits) and
    `annotations/instances_{train,val}2017.json` with run-length encoded masks. Everything is
    written into a hidden folder beside it first, and renamed when it is complete.

    Args:
        out: the folder to make; it may exist if it is empty.
        images: scenes for training.
        val_images: scenes for validation; a fifth as many by default.
        size: side of the canvas, 128 to 256 pixels.
        seed: of the random draws.
        format: `"png"` keeps every pixel; `"jpeg"`, at quality 95, does not.
        instances: the fewest and the most digits of a scene.
        progress: called with the scenes written so far and in all.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown format, or a number out of range.
        DataError: `out` is a file or holds something, or it cannot be written.
    """
    check_choice(format, get_args(ImageFormat), "format")
    out = Path(out)
    check_empty(out)
    if images < 1 or (val_images is not None and val_images < 1):
        raise ValueError(f"images must be positive, got {images} and {val_images} to validate")
    counts = {"train": images, "test": val_images or max(1, images // 5)}
    sets = {
        split: DigitScenes(split, counts[split], size, seed, instances=instances)
        for split in ("train", "test")
    }
    part = _prepare(out)
    done = 0
    try:
        (part / "annotations").mkdir()
        for split, scenes in sets.items():
            folder = part / _FOLDER_OF[split]
            folder.mkdir()
            records: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
            for index in range(len(scenes)):
                scene = scenes.scene(index)
                record = image_record(scene, _ENDING[format])
                (folder / record["file_name"]).write_bytes(_encoded(scene.image, format))
                records["images"].append(record)
                records["annotations"] += annotation_records(
                    scene, first_id=len(records["annotations"]) + 1
                )
                done += 1
                if progress is not None:
                    progress(done, sum(counts.values()))
            description = {
                "description": f"batchfree digit scenes, {split} digits, size {size}, seed {seed}",
                "version": "1",
            }
            content = {"info": description, **records, "categories": category_records()}
            file = part / "annotations" / f"instances_{folder.name}.json"
            write_atomically(file, json.dumps(content).encode())
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as e:
        raise DataError(
            f"the scenes cannot be written to {str(out)!r} after {done} of "
            f"{sum(counts.values())}: {_cause(e)}; nothing is kept of them: free some space or "
            "choose another folder, and run it again"
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def check_empty(out: Path) -> None:
    """Raises DataError where a folder that is to be made is a file, or holds something."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{str(out)!r} is a file; name a folder that is not there yet")
    if out.is_dir() and (held := sorted(p.name for p in out.iterdir())):
        raise DataError(
            f"the folder {str(out)!r} is not empty, it holds {', '.join(held[:3])}"
            f"{', ...' if len(held) > 3 else ''}; name another, or remove it first"
        )


def _prepare(out: Path) -> Path:
    """The hidden folder to write in."""
    target = out.absolute()
    part = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
    except OSError as e:
        raise DataError(f"the folder {str(out)!r} cannot be made: {_cause(e)}") from e
    return part


def _encoded(image: Any, format: ImageFormat) -> bytes:
    buffer = BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if format == "png":
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _cause(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
