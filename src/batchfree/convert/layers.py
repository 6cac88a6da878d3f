"""What a BatchNorm becomes where a plain GroupNorm does not do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree._checks import check_channels
from batchfree.nn import GroupNorm
from batchfree.ops.activations import add_and_activate

_BATCH_NORMS = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("momentum", "track_running_stats"),
)


class ConvertedNorm(GroupNorm):
    """GroupNorm of a rescaled input, followed by what the old layer did after its norm.

    y = then(GN(scale * input + shift)). A constant factor and offset per channel before the norm
    decide how much each channel has to say in its group's statistics; `batchfree.convert` chooses
    them so that the group's statistics vary little from sample to sample. They are parameters that
    do not learn (Opacus takes no buffers beside what learns), and None where there are none.

    Args:
        num_groups, num_channels, eps, affine, device, dtype, bias, activation: as
            `batchfree.GroupNorm`.
        scaled: have `scale` (C,), 1 at first, and `shift` (C,), 0 at first.
        then: modules by name that are applied to the result in turn: timm's `drop` and `act`.

    Raises:
        ValueError: as `batchfree.GroupNorm`.

    Example:
        >>> import torch
        >>> from batchfree.convert import ConvertedNorm
        >>> layer = ConvertedNorm(2, 8, scaled=True, then={"act": torch.nn.ReLU()})
        >>> layer(torch.randn(2, 8, 4, 4)).min() >= 0, sorted(layer.state_dict())
        (tensor(True), ['bias', 'scale', 'shift', 'weight'])
    """

    scale: nn.Parameter | None
    shift: nn.Parameter | None

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
        activation: Any = None,
        scaled: bool = False,
        then: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(
            num_groups, num_channels, eps, affine, device, dtype, bias=bias, activation=activation
        )
        for name, value in (("scale", 1.0), ("shift", 0.0)):
            full = torch.full((num_channels,), value, device=device, dtype=dtype)
            fixed = nn.Parameter(full, requires_grad=False) if scaled else None
            self.register_parameter(name, fixed)
        self.then = tuple(then or ())
        for name, module in (then or {}).items():
            self.add_module(name, module)

    @property
    def num_features(self) -> int:
        """The channels, by BatchNorm's name: model code reads it."""
        return self.num_channels

    def __getattr__(self, name: str) -> Any:
        if name in _BATCH_NORMS:
            raise AttributeError(
                f"the model's code reads {name!r} of a BatchNorm that was converted, and a "
                "GroupNorm has none: convert again and keep that layer, with keep= (--keep)",
                name=name,
                obj=self,
            )
        return super().__getattr__(name)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, *) to the same."""
        if self.scale is not None and self.shift is not None:
            check_channels(input, self.num_channels)
            per_channel = (-1, *[1] * (input.dim() - 2))
            scale = self.scale.to(input.dtype).view(per_channel)
            input = torch.addcmul(self.shift.to(input.dtype).view(per_channel), input, scale)
        y = super().forward(input, residual)
        for name in self.then:
            y = getattr(self, name)(y)
        return y

    def extra_repr(self) -> str:
        """GroupNorm's own, and whether the input is rescaled."""
        return super().extra_repr() + ", scaled" * (self.scale is not None)


class BlendNorm(nn.Module):
    """Between a BatchNorm with fixed statistics and the GroupNorm that takes its place.

    y = gamma (alpha x_bn + (1 - alpha) ratio x_gn) + beta + (1 - alpha) offset, where x_bn is
    normalised by the running statistics and x_gn by the sample's own groups. alpha = 1 is BatchNorm
    in eval mode, to rounding, in train mode too; alpha = 0 is the GroupNorm of
    `collapsed()`. In between a network can learn to do without the running statistics;
    `batchfree.train.blend.AnnealBlend` lowers alpha during fine-tuning. No sample depends on
    another at any alpha.

    Args:
        norm: the GroupNorm at alpha = 0.
        running_mean, running_var, weight, bias: (C,), of the BatchNorm at alpha = 1.
        eps: of the BatchNorm.

    Raises:
        ValueError: an input of other channels.

    Example:
        >>> import torch
        >>> from batchfree.convert import BlendNorm
        >>> c = torch.ones(8)
        >>> blend = BlendNorm(GroupNorm(2, 8), c * 0, c, c, c * 0, eps=1e-5)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> bool((blend(x) == torch.nn.BatchNorm2d(8).eval()(x)).all())
        True
        >>> _ = blend.alpha.fill_(0)
        >>> bool(torch.allclose(blend(x), blend.collapsed()(x), atol=1e-6))
        True
    """

    alpha: Tensor
    ratio: Tensor
    offset: Tensor
    running_mean: Tensor
    running_var: Tensor
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        norm: GroupNorm,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        eps: float,
    ) -> None:
        super().__init__()
        self.num_channels, self.num_groups = norm.num_channels, norm.num_groups
        self.eps, self.group_eps, self.activation = eps, norm.eps, norm.activation
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        ones = torch.ones_like(weight)
        group_weight = ones if norm.weight is None else norm.weight.detach()
        group_bias = torch.zeros_like(ones) if norm.bias is None else norm.bias.detach()
        # A gamma of zero has nothing to scale: there both ends are beta.
        zero = weight == 0
        ratio = torch.where(zero, ones, group_weight / torch.where(zero, ones, weight))
        for name, value in (
            ("alpha", torch.ones((), device=weight.device)),
            ("ratio", ratio.detach()),
            ("offset", (group_bias - bias).detach()),
            ("running_mean", running_mean.detach().clone()),
            ("running_var", running_var.detach().clone()),
        ):
            self.register_buffer(name, value)
        self.then: tuple[str, ...] = getattr(norm, "then", ())
        for name in ("scale", "shift"):
            fixed = getattr(norm, name, None)
            self.register_buffer(name, None if fixed is None else fixed.detach())
        for name in self.then:
            self.add_module(name, getattr(norm, name))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, *) to the same."""
        check_channels(input, self.num_channels)
        batch = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        group = self._group_norm(self.weight * self.ratio, self.bias + self.offset)(input)
        # Under autocast F.batch_norm and group_norm differ in what dtype they give.
        y = torch.lerp(group, batch.to(group.dtype), self.alpha.to(group.dtype))
        y = add_and_activate(y, residual, self.activation)
        for name in self.then:
            y = getattr(self, name)(y)
        return y

    def _group_norm(self, weight: Tensor, bias: Tensor) -> Any:
        """The function at alpha = 0, before activation and what follows."""
        from batchfree.ops import group_norm

        def run(x: Tensor) -> Tensor:
            if self.scale is not None and self.shift is not None:
                per_channel = (-1, *[1] * (x.dim() - 2))
                scale, shift = (t.to(x.dtype).view(per_channel) for t in (self.scale, self.shift))
                x = torch.addcmul(shift, x, scale)
            return group_norm(x, self.num_groups, weight, bias, self.group_eps)

        return run

    @torch.no_grad()
    def collapsed(self) -> GroupNorm:
        """The GroupNorm that this layer is at alpha = 0, with gamma and beta as they are now."""
        common = (self.num_groups, self.num_channels, self.group_eps)
        options: dict[str, Any] = {
            "device": self.weight.device,
            "dtype": self.weight.dtype,
            "activation": self.activation,
        }
        norm: GroupNorm
        if self.scale is None and not self.then:
            norm = GroupNorm(*common, **options)
        else:
            then = {name: getattr(self, name) for name in self.then}
            norm = ConvertedNorm(*common, **options, scaled=self.scale is not None, then=then)
            if self.scale is not None and self.shift is not None:
                assert norm.scale is not None
                assert norm.shift is not None
                norm.scale.copy_(self.scale)
                norm.shift.copy_(self.shift)
        assert norm.weight is not None
        assert norm.bias is not None
        norm.weight.copy_(self.weight * self.ratio)
        norm.bias.copy_(self.bias + self.offset)
        norm.weight.requires_grad_(self.weight.requires_grad)
        norm.bias.requires_grad_(self.bias.requires_grad)
        return norm.train(self.training)

    def extra_repr(self) -> str:
        """Groups, channels and where it stands."""
        return f"{self.num_groups}, {self.num_channels}, alpha={float(self.alpha):g}"
