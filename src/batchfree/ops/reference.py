"""Group Normalization in plain PyTorch: the truth that every faster backend is compared with.

The maths is written as the paper writes it and is never optimised. Sums run over a fixed binary
tree of element-wise additions, so that a sample's result is the same to the bit whatever its
batchmates, the number of threads or the run.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from batchfree.ops.activations import add_and_activate


def tree_sum(x: Tensor) -> Tensor:
    """The sum over the last dimension, (..., M) -> (...) with M > 0, by halving.

    The order of additions depends on M alone. torch.sum's depends on the shape, the strides and the
    number of threads.
    """
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        upper = x[..., half:]
        x = x[..., :half] + F.pad(upper, (0, half - upper.shape[-1]))
    return x.squeeze(-1)


def _strided(x: Tensor) -> Tensor:
    """A copy of x whose elements lie two apart.

    On contiguous memory exp, tanh and erf are computed by vector code, and by other code with other
    rounding for the elements left over at the end. Strided memory takes one path for all.
    """
    return torch.stack((x, x), dim=-1).select(-1, 0)


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(x) + residual) in x's dtype, contiguous; arguments as in `batchfree.group_norm`.

    Everything is computed in float32 (float64 for float64 inputs) and rounded once, at the end.
    """
    n, c = x.shape[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    per_channel = (1, c) + (1,) * (x.dim() - 2)

    # Contiguous, so that element-wise kernels take one code path, so one rounding, for any strides.
    m = math.prod(x.shape[1:]) // num_groups
    groups = x.to(dtype).contiguous().reshape(n, num_groups, m)
    mean = tree_sum(groups).unsqueeze(-1) / m
    centred = groups - mean
    variance = tree_sum(centred * centred).unsqueeze(-1) / m
    y = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)

    if weight is not None:
        y = y * weight.to(dtype).reshape(per_channel)
    if bias is not None:
        y = y + bias.to(dtype).reshape(per_channel)
    if residual is not None:
        residual = residual.to(dtype).contiguous()
    return add_and_activate(_strided(y), residual, activation).to(x.dtype)
