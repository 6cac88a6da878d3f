"""How the tensors of a call lie in memory, and whether its steps are interleaved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from batchfree.ops.layout import is_channels_last
from batchfree.ops.triton import plan as planning
from batchfree.ops.triton.given import FORMATS, Given, placed
from batchfree.ops.triton.plan import Pieces, Sample, divides

PLANS = 4096  # as many calls are remembered; a plan is a few small objects


@dataclass(frozen=True)
class Layout:
    """How the tensors of a call lie in memory, and what the kernels are told of it."""

    sample: Sample
    memory_format: torch.memory_format
    copies: tuple[bool, ...]
    numbers: tuple[int, ...]
    """Positions and sample strides, each divided by a power of two that the kernels know."""
    vectors: tuple[int, int]
    """These powers."""
    parameter_copies: tuple[bool, bool]
    """Of weight and bias."""
    samples: int

    @property
    def groups(self) -> int:
        """Groups of all samples."""
        return self.samples * self.sample.groups

    @cached_property
    def any_copies(self) -> bool:
        """Whether any tensor has to be copied first."""
        return any((*self.copies, *self.parameter_copies))


def layout_of(
    x: Given,
    num_groups: int,
    others: tuple[Given | None, ...],
    parameters: tuple[Given | None, Given | None],
) -> Layout:
    """For x, tensors of its shape (the others, which may hold x), weight and bias."""
    last = is_channels_last(x.shape, x.strides)
    channels, positions = x.shape[1], math.prod(x.shape[2:])
    sample = Sample(channels, channels // num_groups, positions, x.dtype.itemsize, last)
    hv = 1 if last else divides(positions)
    sv = divides(sample.elements)
    tensors = [placed(t, last, sv) for t in others]
    return Layout(
        sample,
        FORMATS[len(x.shape)] if last else torch.contiguous_format,
        tuple(t.copy for t in tensors),
        (positions // hv, *(t.stride // sv for t in tensors)),
        (hv, sv),
        (_is_copied(parameters[0]), _is_copied(parameters[1])),
        x.shape[0],
    )


def _is_copied(p: Given | None) -> bool:
    return p is not None and (p.address > 0 or (p.strides[0] != 1 and p.shape[0] > 1))


def is_elsewhere(device: int) -> bool:
    """Whether that CUDA device is not the current one, where kernels are launched."""
    return device >= 0 and device != torch._C._cuda_getDevice()


def copied(t: Any, copy: bool, memory_format: torch.memory_format) -> Any:
    """A copy of a tensor where one is needed, else the tensor, or None."""
    return t.clone(memory_format=memory_format) if copy else t


def lag_of(x: Given, sample: Sample, pieces: Pieces, reads: int) -> int | None:
    """By how many pieces the outputs lag behind the sums where the two are interleaved.

    None where the inputs, `reads` tensors, fit into the cache and the steps better run apart; where
    not even one unit would stay there; and where a program would have to combine many groups.
    """
    limits, l2 = planning.LIMITS, _cache_bytes(x.device)
    cache = l2 if limits.cache is None else limits.cache
    lagging = l2 if limits.lagging is None else limits.lagging
    chunks, unit = pieces.chunks(sample), pieces.unit(sample)
    total = x.shape[0] * chunks * pieces.blocks(sample)
    bytes_of_piece = reads * pieces.R * pieces.chunk * sample.item
    lag = unit * chunks + limits.in_flight
    one_group = unit * pieces.R <= sample.width
    if not one_group or total * bytes_of_piece <= cache or lag * bytes_of_piece > lagging:
        return None
    return min(lag, total)


@lru_cache
def _cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size
