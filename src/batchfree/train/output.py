"""The output folder: writable before training starts, and a full disk that costs no training."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from batchfree._errors import ConfigError
from batchfree._files import write_atomically
from batchfree.train.config import BaseConfig


class OutputError(OSError):
    """The output folder cannot be written; its message is one line that names the folder.

    Attributes:
        result: what the training came to, where it had ended before its files were lost.
    """

    result: Any = None


def prepare(folder: Path, config: BaseConfig, *, resume: bool) -> None:
    """Makes the folder, proves that it can be written, and writes `config.yaml`.

    Args:
        folder: the run's folder.
        config: the run.
        resume: the run continues, so that the folder may hold one.

    Raises:
        OutputError: it cannot be made or written.
        ConfigError: it holds another run.
    """
    try:
        held = sorted(folder.glob("checkpoints/*.ckpt"))
        if held and not resume:
            raise ConfigError(
                f"the output folder {str(folder)!r} already holds a run: resume it with "
                f"--resume {held[-1]}, or choose another folder with --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
        write_atomically(folder / "config.yaml", to_yaml(config).encode())
    except OSError as e:
        raise unwritable(folder, e) from e


def unwritable(folder: Path, error: BaseException) -> OutputError:
    """The error that names the folder, the cause and the remedy."""
    return OutputError(
        f"cannot write to the output folder {str(folder)!r}: {describe(error)}; free some space "
        "or make it writable, or choose another folder with --output"
    )


def describe(error: BaseException) -> str:
    """The cause in words: `No space left on device`."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_write_failure(error: BaseException) -> bool:
    """Whether an error is one of the disk: an OSError, or what torch.save makes of one."""
    return isinstance(error, OSError) or "PytorchStreamWriter" in str(error)


@contextmanager
def tolerate_write_failure(folder: Path) -> Iterator[None]:
    """Turns a failure to write into a line on stderr, so that training goes on."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        if not is_write_failure(e):
            raise
        print(f"warning: {unwritable(folder, e)}; training goes on", file=sys.stderr, flush=True)


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1).encode())


def finite(curve: Any) -> list[dict[str, Any]]:
    """The points with None for what is no finite number, which JSON has no word for."""
    return [
        {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in point.items()}
        for point in curve
    ]


def to_yaml(config: BaseConfig) -> str:
    """The config as a file for `batchfree train --config`."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)
