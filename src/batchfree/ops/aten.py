"""Group Normalization by PyTorch's own kernels, followed by the residual and the activation."""

from __future__ import annotations

import torch
from torch import Tensor

from batchfree.ops.activations import add_and_activate


def group_norm_aten(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(x) + residual) in x's dtype; arguments as in `batchfree.group_norm`."""
    if x.device.type == "cuda" and weight is not None and weight.dtype != x.dtype:
        # PyTorch's CUDA kernel takes parameters of x's dtype only; statistics stay in float32.
        weight = weight.to(x.dtype)
    if x.device.type == "cuda" and bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    # Contiguous: on channels-last inputs PyTorch takes the variance as E[x^2] - E[x]^2, which loses
    # every digit where the mean is large against the spread.
    y = torch.group_norm(x.contiguous(), num_groups, weight, bias, eps, False)
    return add_and_activate(y, residual, activation)
