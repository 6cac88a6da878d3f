"""glibc's allocator setting, which decides whether large outputs land in fresh or in warm memory.

By default glibc maps blocks above 32 MiB anew for each allocation, and page faults then dominate
whatever is measured, whoever allocates. A process takes the setting from its environment when it
starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

KEEP = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""The environment in which glibc keeps what was freed, up to 1 GiB a block."""
CHOICES = {"default": ("default",), "keep": ("keep",), "both": ("default", "keep")}


def current() -> str:
    """This process's setting: `default`, `keep`, or `custom` for anything else."""
    found = {name: os.environ[name] for name in KEEP if name in os.environ}
    if found == KEEP:
        return "keep"
    return "custom" if found or "LD_PRELOAD" in os.environ else "default"


def environment(setting: str) -> Mapping[str, str]:
    """The environment of a child process that is to have a setting."""
    rest = {name: value for name, value in os.environ.items() if name not in KEEP}
    return {**rest, **KEEP} if setting == "keep" else rest
