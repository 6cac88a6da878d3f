"""The fused operators joined as function and gradient.

The gradient stands outside of the operators, in an `autograd.Function`, which costs a fifth of what
`torch.library.register_autograd` costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchfree.ops.aten import group_norm_aten
from batchfree.ops.fused import BIAS, CODES, INPUT, RESIDUAL, WEIGHT, backward_op, forward_op
from batchfree.ops.gradient import group_norm_gradient

NAMES = {code: name for name, code in CODES.items()}
NONE, RELU = CODES[None], CODES["relu"]


_PLAIN = (torch.Tensor, torch.nn.Parameter)

direct: dict[str, Callable[[], tuple[Any, Any]]] = {}
"""By the type of a device the functions behind the operators, which `ops/cuda.py` sets. They are
called in their place where nobody can be watching: the dispatcher's way to Python takes longer than
the kernel."""


def _operators(x: Tensor, *others: Tensor | None) -> tuple[Any, Any]:
    """The forward and the backward to call."""
    if torch.compiler.is_compiling():
        return forward_op, backward_op
    functions = direct.get(x.device.type)
    if functions is None or _watched(x, *others):
        return forward_op, backward_op
    return functions()


def _watched(*tensors: Tensor | None) -> bool:
    """Whether a mode, a profiler or a transform is there, or a tensor is more than its memory.

    A tensor of functorch's has the type of any other, and so has a lazily negated one; what they
    are stands in their dispatch keys.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._profiler_enabled()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch()
    ):
        return True
    return any(
        t is not None
        and (type(t) not in _PLAIN or torch._C._dispatch_keys(t) != _plain_keys(t.device))
        for t in tensors
    )


@lru_cache
def _plain_keys(device: torch.device) -> Any:
    """The dispatch keys of a tensor that is its memory and nothing else."""
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device=device))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, num_groups, eps, activation = inputs
    y, statistics = output
    ctx.set_materialize_grads(False)
    ctx.call = num_groups, eps, activation
    # Of ReLU's residual only the output's sign matters, and the output is alive anyway.
    sign = residual is not None and activation == RELU
    kept = None if sign or activation == NONE else residual
    ctx.save_for_backward(x, weight, bias, kept, y if sign else None, statistics)


class _GroupNorm(torch.autograd.Function):
    """The two operators joined as function and gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _operators(*inputs[:4])[0](*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        passes_on = needs_residual and ctx.call[2] == NONE  # the residual's gradient is dy
        wanted = INPUT * needs_x | WEIGHT * needs_weight | BIAS * needs_bias
        if needs_residual and not passes_on:
            wanted |= RESIDUAL
        if not wanted:
            return (None, None, None, dy if passes_on else None, None, None, None)
        # A graph of the gradient is asked for (create_graph, functorch).
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        gradient: Any = _GroupNormBackward.apply if twice else _backward
        dx, dr, dw, db = gradient(dy, *ctx.saved_tensors, *ctx.call, wanted)
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
    return _operators(x, dy, weight, bias, residual, y)[1](
        dy, x, weight, bias, residual, y, statistics, num_groups, activation, 0, wanted
    )


class _TransformableGroupNorm(_GroupNorm):
    """For functorch, which wants the context set up apart; that costs 100 us a call."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        _save(ctx, inputs, output)

    @staticmethod
    def forward(
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
    """The gradient as a function with a gradient: by the kernel, then in plain PyTorch."""

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
            arguments: list[Any] = list(tensors)
            for i, t in zip(chosen, varied, strict=True):
                arguments[i] = t
            arguments += [ctx.num_groups, ctx.eps, NAMES[ctx.activation]]
            every = group_norm_gradient(*arguments)
            return tuple(every[i] for i in outputs)

        second: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if outputs:
            pull_back = torch.func.vjp(gradients, *(tensors[i] for i in chosen))[1]
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
    transforms = torch._C._are_functorch_transforms_active()
    compiling = torch.compiler.is_compiling()
    if compiling:
        # Dynamo takes no tensor twice in one call of a function.
        residual = residual.view_as(residual) if residual is x else residual
        bias = bias.view_as(bias) if bias is not None and bias is weight else bias
    # Forward derivatives there are none of, and a compiled transform sees the bare operators.
    if forward_ad._current_level >= 0 or (transforms and compiling):
        return group_norm_aten(x, num_groups, weight, bias, eps, activation, residual)
    code = CODES[activation]
    if not torch.is_grad_enabled():
        forward = _operators(x, weight, bias, residual)[0]
        return forward(x, weight, bias, residual, num_groups, eps, code)[0]
    if transforms:
        return _TransformableGroupNorm.apply(x, weight, bias, residual, num_groups, eps, code)[0]
    return _GroupNorm.apply(x, weight, bias, residual, num_groups, eps, code)
