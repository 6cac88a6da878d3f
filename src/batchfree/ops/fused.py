"""The fused operators: schemas, shapes and batching rules; no kernel, no gradient.

`torch.ops.batchfree.group_norm` and `group_norm_backward` are what a device's kernels implement:
`ops/cpu.py` loads those of the CPU. `ops/autograd.py` joins the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchfree.ops.activations import ACTIVATIONS
from batchfree.ops.layout import samples_channels_last

# Codes of the activations, as in csrc/kernels.h.
CODES: dict[str | None, int] = {None: 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}
assert {*CODES} == {None, *ACTIVATIONS}

# Bits of `wanted`.
INPUT, RESIDUAL, WEIGHT, BIAS = 1, 2, 4, 8

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of x, which every device's kernels take."""

library = torch.library.Library("batchfree", "DEF")
library.define(
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int num_groups, "
    "float eps, int activation) -> (Tensor, Tensor)"
)
# splits: the gradients of the parameters are summed over each of so many runs of samples and have
# the shape (splits, C); 0: over all samples, of shape (C,).
library.define(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? y, Tensor statistics, int num_groups, int activation, int splits, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
forward_op = torch.ops.batchfree.group_norm.default
backward_op = torch.ops.batchfree.group_norm_backward.default


def _check_devices(x: Tensor, *others: Tensor | None) -> None:
    """One tensor on the meta device would otherwise make this the kernel of the whole call."""
    for t in others:
        if t is not None and t.device != x.device:
            raise RuntimeError(f"batchfree::group_norm: tensors on {x.device} and {t.device}")


def _empty_like(x: Tensor) -> Tensor:
    """A dense tensor like x, in the memory format that the kernels write."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    memory_format = last if samples_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)


@torch.library.register_fake("batchfree::group_norm", lib=library)
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    eps: float,
    activation: int,
) -> tuple[Tensor, Tensor]:
    _check_devices(x, weight, bias, residual)
    statistics = x.new_empty((3, x.shape[0], num_groups), dtype=torch.float32)
    return _empty_like(x), statistics


@torch.library.register_fake("batchfree::group_norm_backward", lib=library)
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    statistics: Tensor,
    num_groups: int,
    activation: int,
    splits: int,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(x, dy, weight, bias, residual, y, statistics)

    def like_input(flag: int) -> Tensor:
        return _empty_like(x) if wanted & flag else x.new_empty((0,), dtype=torch.float32)

    def like_parameter(flag: int, p: Tensor | None) -> Tensor:
        if not wanted & flag or p is None:
            return x.new_empty((0,), dtype=torch.float32)
        return p.new_empty((splits, x.shape[1]) if splits else (x.shape[1],))

    return (
        like_input(INPUT),
        like_input(RESIDUAL),
        like_parameter(WEIGHT, weight),
        like_parameter(BIAS, bias),
    )


def _fold(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(N, *) -> (B * N, *), t batched along `dim` or the same for all B."""
    if t is None:
        return None
    t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def _unfold(t: Tensor, size: int) -> Tensor:
    return t.unflatten(0, (size, t.shape[0] // size))


def _one_by_one(op: Any, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    """Calls op for each element of the batch: for parameters that are batched themselves."""
    calls = [
        op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(outputs) for outputs in zip(*calls, strict=True))


@torch.library.register_vmap("batchfree::group_norm", lib=library)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    x, weight, bias, residual, num_groups, eps, activation = args
    size = info.batch_size
    if in_dims[1] is not None or in_dims[2] is not None:
        return _one_by_one(forward_op, info, in_dims, args), (0, 0)
    x, residual = _fold(x, in_dims[0], size), _fold(residual, in_dims[3], size)
    y, statistics = forward_op(x, weight, bias, residual, num_groups, eps, activation)
    statistics = statistics.unflatten(1, (size, statistics.shape[1] // size)).movedim(1, 0)
    return (_unfold(y, size), statistics), (0, 0)


@torch.library.register_vmap("batchfree::group_norm_backward", lib=library)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    dy, x, weight, bias, residual, y, statistics, num_groups, activation, splits, wanted = args
    size, batched = info.batch_size, in_dims
    if batched[2] is not None or batched[3] is not None:
        return _one_by_one(backward_op, info, in_dims, args), (0, 0, 0, 0)
    if batched[6] is None:
        statistics = statistics.unsqueeze(1).expand(3, size, *statistics.shape[1:])
    else:
        statistics = statistics.movedim(batched[6], 1)
    gradients = backward_op(
        _fold(dy, batched[0], size),
        _fold(x, batched[1], size),
        weight,
        bias,
        _fold(residual, batched[4], size),
        _fold(y, batched[5], size),
        statistics.flatten(1, 2).contiguous(),
        num_groups,
        activation,
        size * max(splits, 1),
        wanted,
    )
    # What is not wanted comes back as an empty vector, the same for all.
    dims = tuple(0 if g.dim() > 1 else None for g in gradients)
    unfold = [True, True, splits > 0, splits > 0]
    return tuple(
        _unfold(g, size) if d == 0 and u else g
        for g, d, u in zip(gradients, dims, unfold, strict=True)
    ), dims
