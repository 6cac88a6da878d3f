"""GroupNorm and its two ends, Layer Norm (one group) and Instance Norm (a group a channel)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchfree import _checks
from batchfree._errors import ConfigError
from batchfree.ops.activations import Activation, check_activation
from batchfree.ops.group_norm import group_norm

_OPACUS = (
    "Opacus computes per-sample gradients from a layer's first input alone, so those of a "
    "GroupNorm that adds a residual itself would be wrong: add it outside, "
    "act(norm(x) + residual), and do not fuse the model"
)


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` with the activation and the residual in the same call.

    Takes the same arguments in the same order and has the same `state_dict`, so it replaces
    `torch.nn.GroupNorm` in any model and loads its checkpoints.

    Args:
        num_groups: the number of groups; must divide `num_channels`.
        num_channels: the channels C of inputs (N, C, *).
        eps: added to the variance.
        affine: learn gamma and beta, one each per channel.
        device: of the parameters.
        dtype: of the parameters.
        bias: learn beta (with `affine`).
        activation: `None`, `"relu"`, `"silu"`, `"gelu"` or `"gelu_tanh"`.

    Raises:
        ValueError: the groups do not divide the channels (the message names the nearest that do),
            or the activation is unknown.
        ConfigError: a call with a residual in a model that Opacus has wrapped.

    Source: Wu & He, "Group Normalization", ECCV 2018, section 3.

    Example:
        >>> import batchfree, torch
        >>> layer = batchfree.GroupNorm(32, 64, activation="relu")
        >>> x, skip = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8)
        >>> layer(x).shape, layer(x, residual=skip).shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
    ) -> None:
        _checks.check_num_groups(num_groups, num_channels)
        check_activation(activation)
        # torch below 2.13 knows no `bias` here, so it is passed on only where it matters.
        options: dict[str, Any] = {} if bias else {"bias": False}
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **options)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(GN(input) + residual): shape (N, C, *) to the same; see `batchfree.group_norm`."""
        _checks.check_channels(input, self.num_channels)
        if residual is not None and hasattr(self.weight, "grad_sample"):
            raise ConfigError(_OPACUS)
        return group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        """torch's own, and the activation."""
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation}"


class GroupNorm1(GroupNorm):
    """Group Normalization with one group: the paper's Layer Norm, over (C, *) of each sample.

    Not `torch.nn.LayerNorm`, which normalises over the last dimensions and has a gamma per element,
    nor ConvNeXt's LayerNorm2d, which normalises each position over its channels. The name is
    timm's.

    Example:
        >>> GroupNorm1(64, activation="silu")
        GroupNorm1(1, 64, eps=1e-05, affine=True, bias=True, activation=silu)
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(1, num_channels, eps, **options)


class InstanceNorm(GroupNorm):
    """Group Normalization with a group a channel: Instance Norm without running statistics.

    Example:
        >>> InstanceNorm(64)
        InstanceNorm(64, 64, eps=1e-05, affine=True, bias=True)
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(num_channels, num_channels, eps, **options)
