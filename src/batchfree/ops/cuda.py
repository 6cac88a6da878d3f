"""The Triton kernels (ops/triton): registered for CUDA; triton itself is imported on first use."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from batchfree.ops import autograd, cpu
from batchfree.ops.autograd import group_norm_fused as group_norm_triton
from batchfree.ops.fused import DTYPES, library

__all__ = ["group_norm_triton", "refusal"]


@lru_cache
def _functions() -> tuple[Any, Any]:
    from batchfree.ops.triton.backward import group_norm_backward
    from batchfree.ops.triton.forward import group_norm

    return group_norm, group_norm_backward


def _forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _functions()[0](x, *args)


def _backward(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """An operator returns no None: an empty tensor stands for what was not wanted."""
    found = _functions()[1](dy, x, *args)
    return tuple(
        torch.empty(0, dtype=torch.float32, device=x.device) if t is None else t for t in found
    )


for _key in ("CUDA", "CPU") if cpu.INTERPRETED else ("CUDA",):
    autograd.direct[_key.lower()] = _functions
    library.impl("group_norm", _forward, _key)
    library.impl("group_norm_backward", _backward, _key)


MISSING = None if find_spec("triton") else "triton is not installed; pip install triton"


def refusal(x: Tensor) -> str | None:
    """Why the kernels do not take x, or None where they do."""
    if x.is_cuda or (cpu.INTERPRETED and x.is_cpu):
        if x.dtype in DTYPES and cpu.is_plain(x) and MISSING is None:
            return None
    else:
        return f"the Triton kernels serve CUDA, and x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {x.dtype}"
    return MISSING or (
        "the Triton kernels take plain dense tensors, "
        f"not a {type(x).__name__} of layout {x.layout}"
    )
