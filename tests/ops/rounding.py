"""How far rounding may take act(GN(x) + r) and its gradients from their float64 values.

Element by element: a few units of float32's rounding of every term that a result is the sum of, one
unit of the dtype it is stored in, and what an error of z does to the activation and its gradient.
"""

import math

import torch
from fused_cases import Inputs, Outputs, differentiate
from oracle import oracle

UNITS = 16 * 2**-24
# The largest |act'| and |act''|.
SLOPE, CURVATURE = 1.13, 1.13


def expected(inputs, num_groups, eps=1e-5, activation=None):
    """The float64 outputs and the error that each of their elements may have.

    Parameters and residual may be None: then for both, their gradients are those at 1, 0 and 0.
    """
    x = inputs.x
    whole = inputs._replace(
        weight=torch.ones(x.shape[1]) if inputs.weight is None else inputs.weight,
        bias=torch.zeros(x.shape[1]) if inputs.bias is None else inputs.bias,
        residual=torch.zeros_like(x) if inputs.residual is None else inputs.residual,
    )
    whole = Inputs(*(t.double() for t in whole))

    def function(x, weight, bias, residual):
        return oracle(x, num_groups, weight, bias, eps, activation, residual)

    want = differentiate(function, whole)
    return want, _allowed(whole, want, num_groups, eps, activation, inputs)


def _allowed(whole, want, num_groups, eps, activation, given):
    n, c = whole.x.shape[:2]
    parts = (n, num_groups, c // num_groups, math.prod(whole.x.shape[2:]))
    x, r, dy, dz = (t.reshape(parts) for t in (whole.x, whole.residual, whole.dy, want.dresidual))
    gamma, beta = (t.reshape(1, *parts[1:3], 1) for t in (whole.weight, whole.bias))

    def of_group(t):
        return t.mean((2, 3), keepdim=True)

    centred = x - of_group(x)
    rstd = torch.rsqrt(of_group(centred**2) + eps)
    xh = centred * rstd
    # Statistics have errors of their own, in units of one standard deviation.
    xh_size = xh.abs() + 1
    stored, smallest = _storage(given.x.dtype)

    z = xh * gamma + beta + r
    z_error = UNITS * (xh_size * gamma.abs() + beta.abs() + r.abs())
    y_error = SLOPE * z_error + UNITS * z.abs().clamp_max(1)

    dz_error = torch.zeros_like(dy)
    if activation is not None:
        own = max(UNITS, stored / 20)  # the activation's: no better than y's dtype asks for
        dz_error = dy.abs() * (CURVATURE * z_error + own)
    if activation == "relu":
        # On the kink either gradient is right.
        dz_error = torch.where(z.abs() <= z_error + smallest, dy.abs(), dz_error)
    # In dx's memory dz may have been rounded to its dtype.
    kept_error = dz_error + stored * dz.abs() + smallest
    g, g_dz = gamma.abs(), (gamma * dz).abs()
    dx_error = rstd * (
        g * kept_error
        + of_group(g * dz_error)
        + xh.abs() * of_group(g * dz_error * xh.abs())
        + UNITS * (g_dz + of_group(g_dz) + xh_size * of_group(g_dz * xh_size))
    )

    def of_channels(t):
        return t.sum((0, 3)).flatten()

    def store(error, exact, dtype):
        unit, least = _storage(dtype)
        return error.reshape(exact.shape) + unit * exact.abs() + least

    def dtype_of(p):
        return given.x.dtype if p is None else p.dtype

    dweight_error = of_channels(dz_error * xh.abs() + UNITS * dz.abs() * xh_size)
    dbias_error = of_channels(dz_error + UNITS * dz.abs())
    return Outputs(
        store(y_error, want.y, given.x.dtype),
        store(dx_error, want.dx, given.x.dtype),
        store(dweight_error, want.dweight, dtype_of(given.weight)),
        store(dbias_error, want.dbias, dtype_of(given.bias)),
        store(dz_error, want.dresidual, given.x.dtype),
    )


def _storage(dtype):
    """A unit in the last place of 1, and the smallest number above 0."""
    finfo = torch.finfo(dtype)
    return finfo.eps, finfo.eps * finfo.tiny


def assert_within(name, got, want, allowed):
    """Of one tensor; names the worst element."""
    error = (got.double() - want).abs()
    excess = torch.where(got.isfinite() & want.isfinite(), error / allowed, torch.inf)
    assert (excess <= 1).all(), (
        f"{name}{list(torch.unravel_index(excess.argmax(), excess.shape))}: "
        f"{excess.max():.3g} times the error that rounding may have"
    )
