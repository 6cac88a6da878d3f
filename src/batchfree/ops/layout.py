"""The memory format of an output: that of each sample of the input."""

from __future__ import annotations

import torch
from torch import Tensor


def samples_channels_last(x: Tensor) -> bool:
    """Whether each sample of x, (N, C, H, W) or (N, C, D, H, W), is channels-last in memory.

    The distance between samples does not count, so that a slice of a batch is laid out, and
    therefore computed, as the batch is.
    """
    if x.dim() not in (4, 5):
        return False
    positions = range(x.dim() - 1, 1, -1)
    return not _dense(x, (*positions, 1)) and _dense(x, (1, *positions))


def _dense(x: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether a sample is dense in memory in this order of dimensions, innermost first."""
    expected = 1
    for d in dims:
        if x.shape[d] != 1 and x.stride(d) != expected:
            return False
        expected *= x.shape[d]
    return True


def laid_out_like(x: Tensor, y: Tensor) -> Tensor:
    """y in channels_last(_3d) where the samples of x are, else contiguous."""
    try:
        if samples_channels_last(x):
            last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
            return y.contiguous(memory_format=last)
        return y.contiguous()
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return y  # inside of vmap tensors have no memory format
