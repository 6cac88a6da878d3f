"""The origin of a benchmark's rows: commit, versions and machine of this process."""

from __future__ import annotations

import datetime
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from batchfree.bench.results import Origin
from batchfree.experiments.machine import commit, machine, versions


def here(command: str) -> Origin:
    """What this process runs on."""
    return Origin(
        command=command,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=commit(),
        versions=_versions(),
        machine=_machine(),
    )


def _versions() -> dict[str, str]:
    found = versions()
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    return found


def load() -> float | None:
    """Processes that wanted a core during the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _machine() -> dict[str, Any]:
    found = {**machine(), "simd": torch.backends.cpu.get_cpu_capability()}
    found["load before"] = load()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
