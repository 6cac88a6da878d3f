"""Group Normalization by PyTorch's own kernels, followed by the residual and the activation."""

from __future__ import annotations

import torch
from torch import Tensor

from batchfree.ops.activations import add_and_activate


def _parameters(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias as PyTorch's kernels take them.

    On CUDA both have x's dtype. On the CPU both have x's dtype or both are there in float32.
    """
    if all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return weight, bias
    if x.device.type != "cpu":
        weight = None if weight is None else weight.to(x.dtype)
        return weight, None if bias is None else bias.to(x.dtype)
    channels = x.shape[1]
    if weight is None:
        weight = torch.ones(channels, dtype=torch.float32)
    if bias is None:
        bias = torch.zeros(channels, dtype=torch.float32)
    return weight.float(), bias.float()


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
    weight, bias = _parameters(x, weight, bias)
    # Contiguous: on channels-last inputs PyTorch takes the variance as E[x^2] - E[x]^2, which loses
    # every digit where the mean is large against the spread.
    y = torch.group_norm(x.contiguous(), num_groups, weight, bias, eps, False)
    return add_and_activate(y, residual, activation)
