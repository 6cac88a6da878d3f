"""The fused operator: schema, shapes, gradient and batching rule; no kernel.

`torch.ops.batchfree.group_norm` and `group_norm_backward` are what a device's kernels implement.
The gradient stands outside of the operators, in an `autograd.Function`, which costs a fifth of what
`torch.library.register_autograd` costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchfree.ops.activations import ACTIVATIONS
from batchfree.ops.aten import group_norm_aten
from batchfree.ops.gradient import group_norm_gradient
from batchfree.ops.layout import samples_channels_last

# Codes of the activations, as in csrc/kernels.h.
CODES: dict[str | None, int] = {None: 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}
NAMES = {code: name for name, code in CODES.items()}
NONE, RELU = CODES[None], CODES["relu"]
assert {*CODES} == {None, *ACTIVATIONS}

# Bits of `wanted`.
INPUT, RESIDUAL, WEIGHT, BIAS = 1, 2, 4, 8

library = torch.library.Library("batchfree", "DEF")
library.define(
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int num_groups, "
    "float eps, int activation) -> (Tensor, Tensor)"
)
library.define(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? y, Tensor statistics, int num_groups, int activation, int splits, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
forward_op = torch.ops.batchfree.group_norm.default
backward_op = torch.ops.batchfree.group_norm_backward.default


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
    def like_input(flag: int) -> Tensor:
        return _empty_like(x) if wanted & flag else x.new_empty((0,), dtype=torch.float32)

    def like_parameter(flag: int, p: Tensor | None) -> Tensor:
        if not wanted & flag or p is None:
            return x.new_empty((0,), dtype=torch.float32)
        return p.new_empty((splits, x.shape[1]))

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
        size * splits,
        wanted,
    )
    # What is not wanted comes back as an empty vector, the same for all.
    dims = tuple(0 if g.dim() > 1 else None for g in gradients)
    return tuple(_unfold(g, size) if g.dim() > 1 else g for g in gradients), dims


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, ctx.num_groups, ctx.eps, ctx.activation = inputs
    y, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    # Of ReLU's residual only the output's sign matters, and the output is alive anyway.
    sign = residual is not None and ctx.activation == RELU
    kept = None if sign or ctx.activation == NONE else residual
    ctx.save_for_backward(x, weight, bias, kept, y if sign else None, statistics)


class _GroupNorm(torch.autograd.Function):
    """The two operators joined as function and gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = forward_op(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        passes_on = needs_residual and ctx.activation == NONE  # the residual's gradient is dy
        wanted = INPUT * needs_x | WEIGHT * needs_weight | BIAS * needs_bias
        if needs_residual and not passes_on:
            wanted |= RESIDUAL
        # A graph of the gradient is asked for (create_graph, functorch).
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dx, dr, dw, db = (_GroupNormBackward.apply if twice else _backward)(
            dy, *ctx.saved_tensors, ctx.num_groups, ctx.eps, ctx.activation, wanted
        )
        return (
            dx if needs_x else None,
            dw if needs_weight else None,
            db if needs_bias else None,
            dy if passes_on else dr if needs_residual else None,
            None,
            None,
            None,
        )


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    statistics: Tensor,
    num_groups: int,
    eps: float,
    activation: int,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dr, dw, db = backward_op(
        dy, x, weight, bias, residual, y, statistics, num_groups, activation, 1, wanted
    )
    return dx, dr, dw[0] if wanted & WEIGHT else dw, db[0] if wanted & BIAS else db


class _TransformableGroupNorm(_GroupNorm):
    """For functorch, which wants the context set up apart; that costs 100 us a call."""

    generate_vmap_rule = True
    setup_context = staticmethod(_save)

    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        num_groups: int,
        eps: float,
        activation: int,
    ) -> tuple[Tensor, Tensor]:
        return forward_op(x, weight, bias, residual, num_groups, eps, activation)


class _GroupNormBackward(torch.autograd.Function):
    """The gradient as a function that can be differentiated: by the kernel, then in plain PyTorch."""

    generate_vmap_rule = True
    forward = staticmethod(_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.num_groups, ctx.eps, ctx.activation, ctx.wanted = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        chosen = [i for i, needs in enumerate(ctx.needs_input_grad[: len(tensors)]) if needs]
        flags = (INPUT, RESIDUAL, WEIGHT, BIAS)
        outputs = [i for i, g in enumerate(upstream) if g is not None and ctx.wanted & flags[i]]

        def gradients(*varied: Tensor) -> tuple[Tensor, ...]:
            arguments = list(tensors)
            for i, t in zip(chosen, varied, strict=True):
                arguments[i] = t
            every = group_norm_gradient(*arguments, ctx.num_groups, ctx.eps, NAMES[ctx.activation])
            return tuple(every[i] for i in outputs)

        second: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if outputs:
            _, pull_back = torch.func.vjp(gradients, *(tensors[i] for i in chosen))
            for i, g in zip(chosen, pull_back(tuple(upstream[i] for i in outputs)), strict=True):
                second[i] = g
        return tuple(second)


def group_norm_fused(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(x) + residual) by the fused operator; arguments as in `batchfree.group_norm`."""
    if forward_ad._current_level >= 0:
        return group_norm_aten(x, num_groups, weight, bias, eps, activation, residual)
    code = CODES[activation]
    if not torch.is_grad_enabled():
        return forward_op(x, weight, bias, residual, num_groups, eps, code)[0]
    transforms = torch._C._are_functorch_transforms_active()
    function = _TransformableGroupNorm if transforms else _GroupNorm
    return function.apply(x, weight, bias, residual, num_groups, eps, code)[0]
