"""The C++ kernels (csrc/): finds the compiled library and registers it for the CPU."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from batchfree._errors import ConfigError
from batchfree.ops.autograd import group_norm_fused as group_norm_cpu
from batchfree.ops.fused import DTYPES, library

__all__ = ["INTERPRETED", "capability", "group_norm_cpu", "missing", "refusal"]

# As in csrc/registration.cpp, which chooses the best that the processor has.
CAPABILITIES = ("baseline", "avx2", "avx512")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


INTERPRETED = (os.environ.get("TRITON_INTERPRET"), os.environ.get("BATCHFREE_BACKEND")) == (
    "1",
    "triton",
)
"""Whether Triton's interpreter serves the CPU, which is for tests of the Triton kernels."""


def _load() -> str | None:
    """Loads the library; returns why there is none, or None where it is loaded."""
    if INTERPRETED:
        return "Triton's interpreter serves the CPU (TRITON_INTERPRET, BATCHFREE_BACKEND)"
    path = os.environ.get("BATCHFREE_KERNELS") or Path(__file__).parents[1] / "_kernels.so"
    if not Path(path).is_file():
        return f"the C++ kernels were not built ({path} does not exist)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the C++ kernels do not load into this PyTorch {torch.__version__}: {error}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("batchfree::group_norm", "CPU"):
        return f"there are no C++ kernels in {path}"
    return None


library.define("cpu_capability() -> int")
missing = _load()
"""Why the kernels are not there, or None where they are."""


def capability() -> str | None:
    """The instruction set that serves: baseline, avx2 or avx512; None without the kernels.

    Raises:
        ConfigError: BATCHFREE_CPU_CAPABILITY names none, or one that this processor lacks.
    """
    if missing:
        return None
    code = torch.ops.batchfree.cpu_capability()
    if code >= len(CAPABILITIES):
        raise ConfigError(
            "BATCHFREE_CPU_CAPABILITY must be one of baseline, avx2, avx512, and an instruction "
            f"set of this processor, got {os.environ.get('BATCHFREE_CPU_CAPABILITY')!r}"
        )
    return CAPABILITIES[code]


_said = False


def say_once() -> None:
    """Warns, once a process, that calls are served without the kernels."""
    global _said
    if not _said:
        _said = True
        warnings.warn(
            f"{missing}; group_norm works on PyTorch's own operators, unfused. To build them: a "
            "C++17 compiler, then pip install --force-reinstall --no-deps batchfree (said once)",
            RuntimeWarning,
            stacklevel=5,
        )


def serves(x: Tensor) -> bool:
    """Whether the kernels take x."""
    return missing is None and x.is_cpu and x.dtype in DTYPES and is_plain(x)


def is_plain(x: Tensor) -> bool:
    """Whether x is dense, and no wrapper of other tensors such as DTensor."""
    plain = type(x) in _PLAIN or not is_traceable_wrapper_subclass(x)
    return plain and x.layout == torch.strided


def refusal(x: Tensor) -> str | None:
    """Why the kernels do not take x, or None where they do."""
    if serves(x):
        return None
    if not x.is_cpu:
        return f"the C++ kernels serve the CPU, and x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"the C++ kernels take float32, bfloat16 and float16, not {x.dtype}"
    return missing or (
        f"the C++ kernels take plain dense tensors, not a {type(x).__name__} of layout {x.layout}"
    )
