"""The activations that a normalisation may be fused with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from batchfree._checks import check_choice, check_shape

Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def check_activation(activation: str | None) -> None:
    """Raises ValueError unless `activation` is None or the name of a known activation."""
    check_choice(activation, (None, *ACTIVATIONS), "activation")


def add_and_activate(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """act(y + residual); each of the two steps only where it is asked for.

    Raises:
        ValueError: the residual is not of y's shape.
    """
    if residual is not None:
        check_shape("residual", residual, y)
        y = y + residual
    return y if activation is None else ACTIVATIONS[activation](y)
