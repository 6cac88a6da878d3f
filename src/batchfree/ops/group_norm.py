"""The public `group_norm`: contract, documentation, validation."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from batchfree import _checks
from batchfree._errors import DegenerateGroupWarning
from batchfree.ops import cpu
from batchfree.ops.activations import Activation, check_activation
from batchfree.ops.backend import select
from batchfree.ops.layout import laid_out_like

_warned_degenerate = False


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Group Normalization, with an optional residual and activation: act(GN(x) + residual).

    Each sample's channels are split into `num_groups` groups of consecutive channels. Group g of
    sample n is normalised by its own mean and (biased) variance, over its C/G channels and all
    positions, so no sample's result depends on another sample:

    .. math:: y = \mathrm{act}(\gamma_c (x - \mu_{ng}) / \sqrt{\sigma^2_{ng} + \epsilon}
              + \beta_c + r)

    `num_groups=1` normalises over (C, *) as the paper's Layer Norm does; `num_groups=C` is Instance
    Norm.

    Args:
        x: shape (N, C, *), at least 2 dimensions, any strides; float32, float64, float16 or
            bfloat16. N may be 0.
        num_groups: the number of groups G; must divide C.
        weight: gamma, shape (C,), in x's dtype, or float32 where x is float16 or bfloat16.
        bias: beta, as weight.
        eps: added to the variance; finite.
        activation: `None`, `"relu"`, `"silu"`, `"gelu"` (exact) or `"gelu_tanh"`.
        residual: added before the activation; x's shape, dtype and device.

    Returns:
        A tensor of x's shape, dtype and memory format, under autocast too. Statistics are float32
        or wider.

    Raises:
        ValueError: a shape, device, activation or number of groups that does not fit.
        TypeError: a dtype that does not fit, or an argument that is no tensor.
        BackendError: an explicitly chosen backend cannot serve this call.

    Warns:
        DegenerateGroupWarning: once a process, when a group holds a single element, so that GN(x)
            is zero (the output is beta) whatever x is.

    Source: Wu & He, "Group Normalization", ECCV 2018, section 3, equations 1 to 7.

    Example:
        >>> import batchfree, torch
        >>> x, skip = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8)
        >>> y = batchfree.group_norm(x, 32, activation="relu", residual=skip)
        >>> y.shape, bool(y.min() >= 0)
        (torch.Size([2, 64, 8, 8]), True)
    """
    try:
        y = _serve(x, num_groups, weight, bias, eps, activation, residual)
    except Exception:
        # The kernels check what they need in a few words; these say it in the caller's.
        _check(x, num_groups, weight, bias, eps, activation, residual)
        cpu.capability()  # raises where the environment asks for one that there is not
        raise
    if not torch.compiler.is_compiling() and x.numel() == x.shape[0] * num_groups:
        _warn_degenerate(x, num_groups)
    return y


def _serve(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    backend = select(x)
    if backend.self_contained and not torch.compiler.is_compiling():
        return backend.run(x, num_groups, weight, bias, eps, activation, residual)
    _check(x, num_groups, weight, bias, eps, activation, residual)
    if backend.self_contained:
        return backend.run(x, num_groups, weight, bias, eps, activation, residual)
    if not _autocasts(x.device.type):
        y = backend.run(x, num_groups, weight, bias, eps, activation, residual)
    else:
        # Autocast would run the norm in float32 and hand float32 on, at twice the memory.
        with torch.autocast(x.device.type, enabled=False):
            y = backend.run(x, num_groups, weight, bias, eps, activation, residual)
    return laid_out_like(x, y)


def _check(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # a traced shape is a tensor, and a check of it a warning and a constant
    _checks.check_input(x)
    _checks.check_num_groups(num_groups, x.shape[1])
    _checks.check_parameter("weight", weight, x)
    _checks.check_parameter("bias", bias, x)
    _checks.check_eps(eps)
    check_activation(activation)
    _checks.check_residual(residual, x)


def _autocasts(device_type: str) -> bool:
    # Before torch 2.11 Dynamo cannot trace the question whether autocast exists for a device.
    there = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    return there and torch.is_autocast_enabled(device_type)


def _warn_degenerate(x: Tensor, num_groups: int) -> None:
    global _warned_degenerate
    if _warned_degenerate or x.shape[0] == 0:
        return
    _warned_degenerate = True
    warnings.warn(
        f"each of the {num_groups} groups of an input of shape {tuple(x.shape)} holds one element, "
        "so it normalises to zero and the output is the bias alone; use fewer groups, or remove "
        "the norm at this resolution (said once)",
        DegenerateGroupWarning,
        stacklevel=3,
    )
