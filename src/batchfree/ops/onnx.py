"""Group Normalization while a model is captured for export: PyTorch's own ops alone.

An exported program is read by others, such as the ONNX exporter, ExecuTorch or a C++ runtime, which
know no op of ours. PyTorch's own ops they know: from opset 21 on torch.onnx.export translates
`aten::group_norm` into one GroupNormalization with a gamma and a beta per channel, and below, where
ONNX's GroupNormalization has them per group, into InstanceNormalization and an affine map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchfree.ops.aten import group_norm_aten


def exporting() -> bool:
    """Whether the call is captured by torch.export, torch.onnx.export or torch.jit.trace.

    Always False under torch.compile. torch.onnx.export captures by one of the other two.
    """
    # The flag, and not is_exporting(): before torch 2.12 Dynamo takes that to be true under
    # torch.compile too. And not torch.onnx.is_in_onnx_export(): Dynamo takes that to be false in a
    # strict export, and it imports torch.onnx.
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return torch.compiler._is_exporting_flag or tracing


def group_norm_onnx(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(x) + residual) in x's dtype; arguments as in `batchfree.group_norm`.

    Weight and bias are rounded to x's dtype: ONNX has one type for all three.
    """
    # Not `to` for all: a captured `to` stays in the graph where it changes nothing.
    if weight is not None and weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    return group_norm_aten(x, num_groups, weight, bias, eps, activation, residual)
