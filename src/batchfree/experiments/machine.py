"""Where a number was measured: the commit, the versions and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("batchfree", "torch", "torchvision", "lightning", "scikit-learn", "faster-coco-eval"),
)


def commit() -> str | None:
    """The commit of the running code, with `+dirty` where files differ; None outside a checkout."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell
                ["git", *arguments],  # noqa: S607
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # Installed into somebody else's checkout, the file is not one that git tracks there.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
    return f"{git('rev-parse', '--short=12', 'HEAD')}{'+dirty' if changed else ''}"


def versions() -> dict[str, str]:
    """Name to version of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor's name, the cores this process may use, and the operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
