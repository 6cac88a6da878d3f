"""Shape, dtype and group checks, and the wording of what they say."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)


def suggest(word: object, known: Iterable[object]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(value: object, known: Iterable[object], what: str) -> None:
    """Raises ValueError unless `value` is one of `known`."""
    known = tuple(known)
    if value not in known:
        names = ", ".join(repr(k) for k in known)
        raise ValueError(f"{what} must be one of {names}, got {value!r}{suggest(value, known)}")


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def nearest_divisors(n: int, wish: int) -> tuple[int, ...]:
    """The divisors of n next to `wish`: the largest not above it, and the smallest not below it."""
    all_divisors = divisors(n)
    below = [d for d in all_divisors if d <= wish]
    above = [d for d in all_divisors if d >= wish]
    return tuple(sorted({*below[-1:], *above[:1]}))


def check_num_groups(num_groups: int, num_channels: int) -> None:
    """Raises unless both are positive ints and `num_groups` divides `num_channels`."""
    if isinstance(num_channels, bool) or not isinstance(num_channels, int):
        raise TypeError(f"num_channels must be an int, got {type(num_channels).__name__}")
    if num_channels <= 0:
        raise ValueError(f"num_channels must be positive, got {num_channels}")
    if isinstance(num_groups, bool) or not isinstance(num_groups, int):
        raise TypeError(f"num_groups must be an int, got {type(num_groups).__name__}")
    if num_groups <= 0:
        raise ValueError(f"num_groups must be positive, got {num_groups}")
    if num_channels % num_groups:
        near = " or ".join(str(d) for d in nearest_divisors(num_channels, num_groups))
        raise ValueError(
            f"num_groups must divide the number of channels: {num_channels} channels do not split "
            f"into {num_groups} groups; the nearest numbers of groups that do are {near}"
        )


def check_input(x: Tensor) -> None:
    """Raises unless x is a floating tensor of shape (N, C, *)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"x must be float32, float64, float16 or bfloat16, got {x.dtype}; "
            "convert it first, for example x.float()"
        )
    check_dense("x", x)
    if x.dim() < 2:
        raise ValueError(
            f"x must have shape (N, C, *), at least 2 dimensions, got {tuple(x.shape)}; "
            "a single sample needs a batch dimension: x.unsqueeze(0)"
        )
    if 0 in x.shape[1:]:
        raise ValueError(
            "x must hold at least one channel and one position (the batch may be empty), got shape "
            f"{tuple(x.shape)}"
        )


def check_channels(x: Tensor, num_channels: int) -> None:
    """Raises unless x is a tensor (N, C, *) of so many channels; what is no tensor passes."""
    if isinstance(x, Tensor) and (x.dim() < 2 or x.shape[1] != num_channels):
        raise ValueError(
            f"the layer normalises {num_channels} channels (dimension 1 of (N, C, *)), got x of "
            f"shape {tuple(x.shape)}"
        )


def check_parameter(name: str, p: Tensor | None, x: Tensor) -> None:
    """Raises unless p is None or a vector of x's channels, on x's device, of a fitting dtype."""
    if p is None:
        return
    if not isinstance(p, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(p).__name__}")
    check_dense(name, p)
    channels = x.shape[1]
    if p.shape != (channels,):
        raise ValueError(
            f"{name} must hold one value per channel, shape ({channels},) for x of shape "
            f"{tuple(x.shape)}, got {tuple(p.shape)}"
        )
    check_device(name, p, x)
    if p.dtype != x.dtype and not (p.dtype == torch.float32 and x.dtype in HALF):
        raise TypeError(
            f"{name} must have x's dtype ({x.dtype}), or float32 when x is float16 or bfloat16, "
            f"got {p.dtype}; convert one of them"
        )


def check_dense(name: str, t: Tensor) -> None:
    """Raises where t is sparse, nested or of another library's layout."""
    if t.layout != torch.strided or t.is_nested:
        kind = "a nested tensor" if t.is_nested else f"layout {t.layout}"
        raise TypeError(f"{name} must be dense, got {kind}; convert it first: {name}.to_dense()")


def check_device(name: str, t: Tensor, x: Tensor) -> None:
    """Raises unless t is on x's device."""
    if t.device != x.device:
        raise ValueError(f"{name} must be on x's device, {x.device}, got {t.device}; move one")


def check_shape(name: str, t: Tensor, x: Tensor) -> None:
    """Raises unless t has x's shape."""
    if t.shape != x.shape:
        raise ValueError(
            f"{name} must have x's shape, {tuple(x.shape)}, got {tuple(t.shape)}; "
            f"it is not broadcast: use {name}.expand_as(x) if that is meant"
        )


def check_residual(residual: Tensor | None, x: Tensor) -> None:
    """Raises unless the residual is None or a tensor like x."""
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a torch.Tensor or None, got {type(residual).__name__}")
    check_dense("residual", residual)
    check_shape("residual", residual, x)
    check_device("residual", residual, x)
    if residual.dtype != x.dtype:
        raise TypeError(
            f"residual must have x's dtype, {x.dtype}, got {residual.dtype}; "
            f"use residual.to({x.dtype})"
        )


def check_eps(eps: float) -> None:
    """Raises unless eps is a finite number."""
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps must be a float, got {type(eps).__name__}")
    if not abs(eps) <= sys.float_info.max:
        raise ValueError(f"eps must be finite, got {eps}")
