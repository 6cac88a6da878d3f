"""Which backend serves a call of `group_norm`: an explicit choice, or the first that can.

A backend is a function with the reference's signature and a rule that names the calls it refuses.
Compiled backends stand ahead of PyTorch's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree._checks import check_choice, suggest
from batchfree._errors import BackendError, ConfigError
from batchfree.ops import cpu, cuda
from batchfree.ops.aten import group_norm_aten
from batchfree.ops.onnx import exporting, group_norm_onnx
from batchfree.ops.reference import group_norm_reference

Run = Callable[
    [Tensor, int, Tensor | None, Tensor | None, float, str | None, Tensor | None], Tensor
]


def _serves_all(x: Tensor) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """A way to compute group_norm: its name, the function, and why it would refuse an input."""

    name: str
    run: Run
    refusal: Callable[[Tensor], str | None] = _serves_all
    """Returns the reason why the backend cannot serve this x, or None where it can."""
    self_contained: bool = False
    """Whether `run` checks its arguments, takes no notice of autocast and keeps x's memory format,
    so that nothing needs to be done around it."""


# In order of preference. The last one serves every call that the checks let through.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend("cpu", cpu.group_norm_cpu, cpu.refusal, self_contained=True),
    "triton": Backend("triton", cuda.group_norm_triton, cuda.refusal, self_contained=True),
    "aten": Backend("aten", group_norm_aten),
    "reference": Backend("reference", group_norm_reference),
}

# What a captured program holds unless a backend is chosen; others than Python read it.
_EXPORT = Backend("export", group_norm_onnx)

# Process-wide, as torch.backends.cudnn.flags is: a plain global that torch.compile can guard on.
_chosen: str | None = os.environ.get("BATCHFREE_BACKEND") or None


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Chooses the backend of every `group_norm` call inside the block; None chooses automatically.

    The choice holds for the whole process, threads included, and goes before the environment
    variable `BATCHFREE_BACKEND`. An explicitly chosen backend that cannot serve a call raises
    `BackendError` instead of handing the call to another.

    Args:
        name: `"cpu"` (the C++ kernels), `"triton"` (the Triton kernels, for CUDA), `"aten"`
            (PyTorch's own kernels), `"reference"` (plain PyTorch, slow) or None (the first that
            can). A sample's result is the same to the bit whatever its batch with `"cpu"`,
            `"triton"` and `"reference"`, and whatever the number of threads.

    Raises:
        ValueError: the name is not that of a backend.

    Example:
        >>> import batchfree, torch
        >>> x = torch.randn(2, 8, 4, 4)
        >>> with batchfree.backend("reference"):
        ...     y = batchfree.group_norm(x, 4)
    """
    global _chosen
    check_choice(name, (None, *BACKENDS), "backend")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def select(x: Tensor) -> Backend:
    """The backend that serves x: the chosen one, or the first that does not refuse it.

    Raises:
        BackendError: the chosen backend refuses x.
        ConfigError: BATCHFREE_BACKEND does not name a backend.
    """
    if _chosen is None:
        if exporting():
            return _EXPORT
        if cpu.missing is not None and x.is_cpu and not torch.compiler.is_compiling():
            cpu.say_once()
        for candidate in BACKENDS.values():
            if candidate.refusal(x) is None:
                return candidate
    if _chosen not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ConfigError(
            f"BATCHFREE_BACKEND must be one of {known}, got {_chosen!r}{suggest(_chosen, BACKENDS)}"
        )
    chosen = BACKENDS[_chosen]
    reason = chosen.refusal(x)
    if reason is not None:
        raise BackendError(
            f"the backend {chosen.name!r} was chosen explicitly and cannot serve this call: "
            f"{reason}; choose another or none (BATCHFREE_BACKEND, batchfree.backend)"
        )
    return chosen
