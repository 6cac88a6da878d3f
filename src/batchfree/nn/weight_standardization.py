"""Weight Standardization: convolutions whose filters have zero mean and unit variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WEIGHT_EPS = 1e-6


class WeightStandardizedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that convolves with its weight standardised per output channel.

    Each filter, over its in_channels/groups x kH x kW values, is shifted to zero mean and scaled to
    unit (biased) variance. The parameters, and so the `state_dict`, are those of `nn.Conv2d`;
    weight decay acts on them through the standardisation.

    Args:
        args, kwargs: as `torch.nn.Conv2d`.
        weight_eps: added to the variance of a filter.

    Raises:
        ValueError: a filter holds a single value (a depthwise 1x1), so that it standardises to 0.

    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", 2019, section 3; the biased variance is that of Big Transfer and timm.

    Example:
        >>> import torch
        >>> conv = WeightStandardizedConv2d(3, 16, 3, padding=1, bias=False)
        >>> w = conv.standardized_weight()
        >>> bool(w.mean((1, 2, 3)).abs().max() < 1e-6), conv(torch.randn(1, 3, 8, 8)).shape
        (True, torch.Size([1, 16, 8, 8]))
    """

    weight_eps: float

    def __init__(self, *args: object, weight_eps: float = _WEIGHT_EPS, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.weight_eps = weight_eps
        if self.weight[0].numel() == 1:
            raise ValueError(
                "weight standardization needs filters of 2 or more values, got weight of shape "
                f"{tuple(self.weight.shape)} (a depthwise 1x1 convolution); leave this one as it is"
            )

    def standardized_weight(self) -> Tensor:
        """The weight that the convolution uses: shape and dtype of `weight`."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) * (variance + self.weight_eps).rsqrt()

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        return self._conv_forward(input, self.standardized_weight(), self.bias)


def standardize_weights(module: nn.Module) -> nn.Module:
    """Turns every `nn.Conv2d` of a module into a weight-standardised one, in place.

    Parameters are kept (the same tensors), so optimisers and checkpoints stay valid. Filters of a
    single value are left alone, since they cannot be standardised.

    Returns:
        The module itself.

    Example:
        >>> net = standardize_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        >>> type(net[0]).__name__
        'WeightStandardizedConv2d'
    """
    for conv in module.modules():
        if type(conv) is nn.Conv2d and conv.weight[0].numel() > 1:
            # The two classes hold the same state; a new module would lose hooks and sharing.
            conv.__class__ = WeightStandardizedConv2d
            vars(conv)["weight_eps"] = _WEIGHT_EPS
    return module
