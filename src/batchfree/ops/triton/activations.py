"""The activations and their slopes, in float32, for the kernels."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

# ACT is a code of `batchfree.ops.fused.CODES`: 0 none, 1 relu, 2 silu, 3 gelu, 4 gelu_tanh.


@triton.jit
def _tanh_argument(z):
    # Twice the argument of GELU's tanh: (1 + tanh(u)) / 2 is the logistic function of 2u.
    return 1.5957691216057308 * z * (1.0 + 0.044715 * z * z)


@triton.jit
def _logistic(z):
    # A reciprocal is a division of several instructions, a squared inverse root is two.
    q = tl.rsqrt(1.0 + tl.exp(-z))
    return q * q


@triton.jit
def activate(z, ACT: tl.constexpr):
    """act(z)."""
    if ACT == 1:
        return tl.where(z <= 0.0, 0.0, z)  # NaN passes
    elif ACT == 2:
        return z * _logistic(z)
    elif ACT == 3:
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == 4:
        return z * _logistic(_tanh_argument(z))
    else:
        return z


@triton.jit
def slope(z, ACT: tl.constexpr):
    """act'(z); of ReLU and of no activation it is not asked for."""
    if ACT == 2:
        z = tl.where(z < -80.0, -80.0, z)  # exp stays finite
        s = _logistic(z)
        return s + z * s * (tl.exp(-z) * s)  # exp(-z) * s is 1 - s with all its digits
    elif ACT == 3:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density
    else:
        z = tl.where(z > 30.0, 30.0, tl.where(z < -10.0, -10.0, z))  # 1 and 0 from there on
        u = _tanh_argument(z)
        s = _logistic(u)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * z * z)
        return s + z * s * (tl.exp(-u) * s) * inner
