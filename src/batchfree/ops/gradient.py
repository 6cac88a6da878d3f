"""The gradient of the fused call in plain, differentiable PyTorch: for second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor


def activation_gradient(dy: Tensor, z: Tensor, activation: str | None) -> Tensor:
    """dy * act'(z), of z's shape, by operators that PyTorch can differentiate."""
    if activation is None:
        return dy
    if activation == "relu":
        return dy * (z > 0)
    if activation == "silu":
        s = torch.sigmoid(z)  # not aten's silu_backward, which has no derivative
        return dy * (s * (1 + z * (1 - s)))
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(dy, z, approximate=approximate)


def group_norm_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dresidual, dweight, dbias) of act(GN(x) + residual), for dy of x's shape (N, C, *).

    y, where given, is the output of a ReLU and stands for the residual: only its sign is used.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    n, c = x.shape[:2]
    per_channel = (1, c) + (1,) * (x.dim() - 2)
    groups = x.to(dtype).reshape(n, num_groups, -1)
    mean = groups.mean(-1, keepdim=True)
    rstd = torch.rsqrt((groups - mean).square().mean(-1, keepdim=True) + eps)
    xh = ((groups - mean) * rstd).reshape(x.shape)
    gamma = x.new_ones(1, dtype=dtype) if weight is None else weight.to(dtype).reshape(per_channel)

    if y is not None:
        dz = dy.to(dtype) * (y > 0)
    else:
        z = xh * gamma
        z = z if bias is None else z + bias.to(dtype).reshape(per_channel)
        z = z if residual is None else z + residual.to(dtype)
        dz = activation_gradient(dy.to(dtype), z, activation)

    positions = [0, *range(2, x.dim())]
    dxh = (dz * gamma).reshape(n, num_groups, -1)
    xh_groups = xh.reshape(n, num_groups, -1)
    s1, s2 = dxh.mean(-1, keepdim=True), (dxh * xh_groups).mean(-1, keepdim=True)
    dx = (rstd * (dxh - s1 - xh_groups * s2)).reshape(x.shape)
    dw, db = (dz * xh).sum(positions), dz.sum(positions)
    return (
        dx.to(x.dtype),
        dz.to(x.dtype),
        dw if weight is None else dw.to(weight.dtype),
        db if bias is None else db.to(bias.dtype),
    )
