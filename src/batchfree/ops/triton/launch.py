"""Launching a kernel at little cost: compiled once, then called without asking what it is for."""

from __future__ import annotations

import os
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


class Step:
    """One launch of a plan: kernel, grid and constants.

    Whoever calls it hands tensors of the same dtypes and device, aligned to 16 bytes, each time:
    what the first call compiles serves the others without a look at them.
    """

    def __init__(self, kernel: Any, programs: int, constants: tuple[Any, ...], warps: int) -> None:
        self._kernel = kernel
        self._programs = programs
        self._constants = constants
        self._warps = warps
        self._compiled: Any = None

    def __call__(self, device: int, *args: Any) -> None:
        """Launches on the current stream of the device, which is the current one."""
        compiled = self._compiled
        if compiled is None:
            self._first(*args)
            return
        # What CompiledKernel.__getitem__ does, less the hooks of profilers: 3 us.
        compiled.run(
            self._programs,
            1,
            1,
            torch._C._cuda_getCurrentRawStream(device),
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *args,
            *self._constants,
        )

    def _first(self, *args: Any) -> None:
        launcher = self._kernel[(self._programs,)]
        if INTERPRETED:
            launcher(*args, *self._constants)
        else:
            # Fused multiply-adds: Triton 3.10 is to turn them off unless they are asked for.
            options = dict(num_warps=self._warps, enable_fp_fusion=True)
            self._compiled = launcher(*args, *self._constants, **options)
