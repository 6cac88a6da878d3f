"""Prints the polynomial coefficients of src/batchfree/csrc/activations.h, and their errors.

Needs mpmath and NumPy. Fits are minimax in relative error (Lawson's iteration on Chebyshev nodes),
then checked in float32 arithmetic on a dense grid.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np

mp.mp.dps = 40
NODES = 400


def nodes(low: float, high: float) -> np.ndarray:
    """Chebyshev nodes of [low, high]."""
    k = np.arange(NODES)
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (k + 0.5) / NODES)


def minimax(columns: np.ndarray, target: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients c that minimise max |columns @ c - target| / scale, and that maximum."""
    columns, target = columns / scale[:, None], target / scale
    weight = np.ones(len(target))
    for _ in range(80):
        root = np.sqrt(weight)
        c, *_ = np.linalg.lstsq(columns * root[:, None], target * root, rcond=None)
        error = np.abs(columns @ c - target)
        weight *= error + 1e-18
        weight /= weight.sum()
    return c, float(error.max())


def horner(c: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The polynomial with coefficients c, highest first, in float32."""
    value = np.full_like(x, np.float32(c[0]))
    for coefficient in c[1:]:
        value = value * x + np.float32(coefficient)
    return value


def tail(a: float) -> float:
    """exp(a^2/2) (1 - Phi(a)), Phi the normal distribution function."""
    a = mp.mpf(a)
    return float(mp.e ** (a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2)


def fit_tail(p: float, degree: int, limit: float = 14.0) -> tuple[np.ndarray, float, float]:
    """u q(u), u = 1 / (1 + p a), for tail(a), 0 <= a <= limit: q, its error, and in float32."""
    u = nodes(1 / (1 + limit * p), 1.0)
    exact = np.array([tail((1 / v - 1) / p) for v in u])
    c, error = minimax(np.vander(u, degree + 1) * u[:, None], exact, exact)
    a = np.linspace(0, limit, 2001, dtype=np.float32)
    u32 = np.float32(1) / (a * np.float32(p) + np.float32(1))
    reached = horner(c, u32) * u32 / np.array([tail(float(v)) for v in a]) - 1
    return c, error, float(np.abs(reached).max())


def fit_exp2(degree: int) -> tuple[np.ndarray, float]:
    """2^f = 1 + f q(f) on |f| <= 1/2: the coefficients of q, lowest first, and the error."""
    f = nodes(-0.5001, 0.5001)
    exact = np.exp2(f)
    c, error = minimax(np.vander(f, degree) * f[:, None], exact - 1, exact)
    return c[::-1], error


def main() -> None:
    """Prints both fits for the degrees around those in use."""
    for degree in (3, 4, 5, 6):
        c, error = fit_exp2(degree)
        print(f"exp2, degree {degree}: {error:.1e}  {', '.join(f'{v:.10g}f' for v in c)}")
    for degree in (4, 7):
        p, (c, error, reached) = min(
            ((p, fit_tail(p, degree)) for p in np.arange(0.2, 0.45, 0.01)),
            key=lambda fit: fit[1][1],
        )
        text = ", ".join(f"{v:.9g}f" for v in c)
        print(f"tail, degree {degree}, p = {p:.2f}: {error:.1e}, in float32 {reached:.1e}  {text}")


if __name__ == "__main__":
    main()
