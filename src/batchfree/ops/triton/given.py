"""What a call is given, as a hashable description: checks, and which tensors have to be copied."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchfree.ops.fused import CODES, DTYPES
from batchfree.ops.layout import dense_samples

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# Of positions and channels: offsets within a tile are int32, and a tile has up to 8 rows of the one
# or 2048 of the other.
MOST_POSITIONS, MOST_CHANNELS = 2**28, 2**20


class Given(NamedTuple):
    """All that plans and checks know of a tensor."""

    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    strides: tuple[int, ...]
    address: int  # modulo 16; -1: no memory


def given(t: Tensor | None) -> Any:
    """The fields of the description of a tensor; a plain tuple costs a third of a named one."""
    if t is None:
        return None
    address = t.data_ptr()
    return t.dtype, t.device, t.shape, t.stride(), address % 16 if address else -1


def unpacked(fields: Given | None) -> Given | None:
    """A description again, of what `given` returned."""
    return None if fields is None else Given(*fields)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"batchfree::group_norm: {message}")


def _check_memory(name: str, t: Given) -> None:
    _need(t.address >= 0 or not t.shape.numel(), f"{name} has no memory: its storage was freed")


def check_call(x: Given, num_groups: int, activation: int) -> None:
    """Raises RuntimeError where x, the groups or the activation do not fit."""
    _need(x.dtype in DTYPES, "x must be float32, bfloat16 or float16")
    _need(len(x.shape) >= 2, "x must have shape (N, C, *)")
    _need(0 <= activation < len(CODES), f"no such activation: {activation}")
    _check_memory("x", x)
    channels, positions = x.shape[1], math.prod(x.shape[2:])
    fits = num_groups > 0 and channels > 0 and positions > 0 and channels % num_groups == 0
    _need(fits, f"{num_groups} groups do not divide {channels} channels at {positions} positions")
    few = positions <= MOST_POSITIONS and channels <= MOST_CHANNELS
    _need(
        few,
        f"{channels} channels at {positions} positions are more than the Triton kernels take, "
        f"{MOST_CHANNELS} and {MOST_POSITIONS}",
    )


def check_like(name: str, t: Given | None, x: Given) -> None:
    """Raises RuntimeError unless t is None or of x's shape, dtype and device."""
    if t is None:
        return
    _need((t.device, t.dtype) == (x.device, x.dtype), f"{name} must have x's device and dtype")
    _need(t.shape == x.shape, f"{name} must have x's shape")
    _check_memory(name, t)


def check_parameter(name: str, p: Given | None, x: Given) -> None:
    """Raises RuntimeError unless p is None or holds a value per channel."""
    if p is None:
        return
    fits = p.device == x.device and p.shape == x.shape[1:2]
    _need(fits, f"{name} must hold one value per channel, on x's device")
    dtypes = (x.dtype, torch.float32)
    _need(p.dtype in dtypes, f"{name} must be float32 or of x's dtype")
    _check_memory(name, p)


def check_statistics(statistics: Given, x: Given, num_groups: int) -> None:
    """Raises RuntimeError unless the statistics are the forward's."""
    n = x.shape[0]
    whole = (statistics.dtype, statistics.device) == (torch.float32, x.device)
    whole = whole and statistics.shape == (3, n, num_groups)
    whole = whole and (
        n == 0 or dense_samples((1, *statistics.shape), (0, *statistics.strides), False)
    )
    _need(whole, "statistics must be what group_norm returned")


def check_splits(splits: int, samples: int) -> None:
    """Raises RuntimeError unless the samples fall into so many runs of the same length."""
    fits = splits == 0 or (splits > 0 and samples % splits == 0)
    _need(fits, f"{splits} splits do not divide {samples} samples")


def check_sign(y: Given | None, activation: int) -> None:
    """Raises RuntimeError where an output is given that is not ReLU's."""
    _need(y is None or activation == CODES["relu"], "y serves for ReLU only")


class Placed(NamedTuple):
    """A tensor as the kernels read it: copied first or not, and how far samples are apart."""

    copy: bool
    stride: int


def placed(t: Given | None, last: bool, vector: int) -> Placed:
    """Samples lie dense in memory in the layout, a multiple of `vector` apart, or are copied so.

    The vector comes from the sample alone: it decides how many elements a thread loads at once, and
    with that the order of sums.
    """
    if t is None:
        return Placed(False, 0)
    elements = math.prod(t.shape[1:])
    several = t.shape[0] > 1
    dense = dense_samples(t.shape, t.strides, last)
    copy = t.address > 0 or not dense or (several and t.strides[0] % vector != 0)
    return Placed(copy, elements if copy or not several else t.strides[0])
