"""ResNets with any norm, built from torchvision's; checkpoints are interchangeable with them.

Each norm layer takes its activation and, at the end of a block, the residual with it, so that a
forward makes one call of `group_norm` where torchvision's makes three.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torchvision.models.resnet as tv
from torch import Tensor, nn

from batchfree._checks import check_choice, suggest
from batchfree.nn import NormLayer, norm_layer, standardize_weights

Stem = Literal["3x3", "7x7"]

_FC_STD = 0.01


def _check_norm(norm: object) -> None:
    if not isinstance(norm, NormLayer):
        raise TypeError(
            "norm must come from batchfree.norm_layer, for example norm_layer('gn'), since these "
            f"models pass activation and residual to their norm layers; got {norm!r}"
        )


class BasicBlock(tv.BasicBlock):
    """Two 3x3 convolutions, each with its norm and activation in one call; torchvision's state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bn1.activation = "relu"
        self.bn2.activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(out), residual=identity)


class Bottleneck(tv.Bottleneck):
    """1x1, 3x3 (with the stride), 1x1 convolutions, norm and activation in one call each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for norm in (self.bn1, self.bn2, self.bn3):
            norm.activation = "relu"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn1(self.conv1(x))
        out = self.bn2(self.conv2(out))
        return self.bn3(self.conv3(out), residual=identity)


class ResNet(tv.ResNet):
    """torchvision's ResNet with a chosen norm.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages.
        norm: from `batchfree.norm_layer`.
        weight_standardization: standardise the weights of all convolutions.
        kwargs: as `torchvision.models.ResNet`: `num_classes`, `zero_init_residual`, `groups`,
            `width_per_group`, `replace_stride_with_dilation`.

    Raises:
        TypeError: the norm does not come from `batchfree.norm_layer`.

    Source: He et al. 2016; Wu & He 2018, section 4.1 for the initialisation (gamma 0 in the last
    norm of a block, fc standard deviation 0.01).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: list[int],
        norm: NormLayer,
        *,
        weight_standardization: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_norm(norm)
        if norm.kind == "frozen_bn":  # a gamma that cannot learn would stay 0
            kwargs["zero_init_residual"] = False
        super().__init__(block, layers, norm_layer=norm, **kwargs)
        self.bn1.activation = "relu"
        nn.init.normal_(self.fc.weight, std=_FC_STD)
        nn.init.zeros_(self.fc.bias)
        if weight_standardization:
            standardize_weights(self)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SmallResNet(nn.Module):
    """A narrow ResNet: a stem and stages of doubling width, by default CIFAR's for small images.

    Args:
        norm: from `batchfree.norm_layer`.
        num_classes: outputs.
        width: channels of the stem and the first stage.
        blocks_per_stage: basic blocks in each stage.
        stages: stages; each after the first halves the resolution and doubles the channels. Four,
            as in larger ResNets, end in 2x2 maps of 16-pixel images; three are CIFAR's.
        in_channels: channels of the images.
        stem: `"3x3"` keeps the resolution (CIFAR's); `"7x7"` and a max pooling quarter it, as in
            larger ResNets.
        zero_init_residual: gamma 0 in the last norm of each block, so that it starts as identity.
        weight_standardization: standardise the weights of all convolutions.

    Raises:
        ValueError: an unknown stem.

    Source: He et al. 2016, section 4.2; initialisation as Wu & He 2018, section 4.1.

    Example:
        >>> import batchfree, torch
        >>> from batchfree.models import SmallResNet
        >>> net = SmallResNet(batchfree.norm_layer("gn", batchfree.Groups(8)), width=16)
        >>> net(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        norm: NormLayer,
        *,
        num_classes: int = 10,
        width: int = 32,
        blocks_per_stage: int = 1,
        stages: int = 4,
        in_channels: int = 3,
        stem: Stem = "3x3",
        zero_init_residual: bool = True,
        weight_standardization: bool = False,
    ) -> None:
        _check_norm(norm)
        check_choice(stem, get_args(Stem), "stem")
        super().__init__()
        large = stem == "7x7"
        self.conv1 = (
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            if large
            else tv.conv3x3(in_channels, width)
        )
        self.bn1 = norm(width, activation="relu")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        channels = width
        for i in range(stages):
            blocks = []
            for j in range(blocks_per_stage):
                stride = 2 if i > 0 and j == 0 else 1
                out = width * 2**i
                shortcut = None
                if stride > 1 or out != channels:
                    shortcut = nn.Sequential(tv.conv1x1(channels, out, stride), norm(out))
                blocks.append(BasicBlock(channels, out, stride, shortcut, norm_layer=norm))
                channels = out
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = stages
        self.out_channels = [width * 2**i for i in range(stages)]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialize(zero_init_residual)
        if weight_standardization:
            standardize_weights(self)

    def _initialize(self, zero_init_residual: bool) -> None:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif (
                zero_init_residual
                and isinstance(m, BasicBlock)
                and isinstance(m.bn2.weight, nn.Parameter)  # a frozen gamma would stay 0
            ):
                nn.init.zeros_(m.bn2.weight)
        nn.init.normal_(self.fc.weight, std=_FC_STD)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int], dict[str, Any]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], {}),
    "resnet34": (BasicBlock, [3, 4, 6, 3], {}),
    "resnet50": (Bottleneck, [3, 4, 6, 3], {}),
    "resnet101": (Bottleneck, [3, 4, 23, 3], {}),
    "resnet152": (Bottleneck, [3, 8, 36, 3], {}),
    "resnext50_32x4d": (Bottleneck, [3, 4, 6, 3], {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": (Bottleneck, [3, 4, 23, 3], {"groups": 32, "width_per_group": 8}),
    "resnext152_32x8d": (Bottleneck, [3, 8, 36, 3], {"groups": 32, "width_per_group": 8}),
}
MODELS = (*_RESNETS, "resnet_small")


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    norm: NormLayer | None = None,
    zero_init_residual: bool = True,
    weight_standardization: bool = False,
    **options: Any,
) -> nn.Module:
    """Builds a ResNet by name, with random weights.

    Args:
        name: one of `batchfree.models.MODELS`.
        num_classes: outputs.
        norm: from `batchfree.norm_layer`; Group Norm with 32 groups by default.
        zero_init_residual: gamma 0 in the last norm of each block: helps classification (Goyal et
            al. 2017), hurts detection from scratch.
        weight_standardization: standardise the weights of all convolutions.
        options: of the class, `ResNet` or `SmallResNet`.

    Raises:
        ValueError: an unknown name.
        TypeError: an unknown option, or a norm that does not come from `batchfree.norm_layer`.

    Example:
        >>> from batchfree.models import build_model
        >>> net = build_model("resnet18", num_classes=10)
        >>> net.layer1[0].bn2
        GroupNorm(32, 64, eps=1e-05, affine=True, bias=True, activation=relu)
    """
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}{suggest(name, MODELS)}; known: {', '.join(MODELS)}"
        )
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "zero_init_residual": zero_init_residual,
        "weight_standardization": weight_standardization,
        **options,
    }
    norm = norm if norm is not None else norm_layer("gn")
    if name == "resnet_small":
        return SmallResNet(norm, **common)
    block, layers, fixed = _RESNETS[name]
    return ResNet(block, layers, norm, **common, **fixed)
