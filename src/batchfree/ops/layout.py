"""The memory format of an output: that of each sample of the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def samples_channels_last(x: Tensor) -> bool:
    """Whether each sample of x, (N, C, H, W) or (N, C, D, H, W), is channels-last in memory.

    The distance between samples does not count, so that a slice of a batch is laid out, and
    therefore computed, as the batch is.
    """
    return is_channels_last(x.shape, x.stride())


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """`samples_channels_last` of a tensor of that shape and those strides."""
    if len(shape) not in (4, 5):
        return False
    return not dense_samples(shape, strides, False) and dense_samples(shape, strides, True)


def dense_samples(shape: Sequence[int], strides: Sequence[int], channels_last: bool) -> bool:
    """Whether each sample is dense in memory, in that layout."""
    expected = 1
    positions = range(len(shape) - 1, 1, -1)
    for d in (1, *positions) if channels_last else (*positions, 1):
        if shape[d] != 1 and strides[d] != expected:
            return False
        expected *= shape[d]
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
