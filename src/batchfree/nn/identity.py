"""`NoNorm`: the place of a norm layer in a network that has none."""

from __future__ import annotations

from torch import Tensor, nn

from batchfree.ops.activations import Activation, add_and_activate, check_activation


class NoNorm(nn.Module):
    """act(x + residual), without any normalisation or parameter: the baseline of an ablation.

    Example:
        >>> import torch
        >>> NoNorm(activation="relu")(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """

    weight: None = None
    bias: None = None

    def __init__(self, *, activation: Activation | None = None) -> None:
        super().__init__()
        check_activation(activation)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(input + residual), any shape."""
        return add_and_activate(input, residual, self.activation)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation}"
