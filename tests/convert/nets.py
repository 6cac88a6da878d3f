"""Small BatchNorm networks whose running statistics and affine are those of a training."""

import torch
from torch import nn


def images(n=48, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.rand(n, 1, 1, 1, generator=generator) + 0.5
    return contrast * torch.randn(n, 3, size, size, generator=generator) + 0.3


def trained(model, x=None, steps=30):
    """Running statistics of the data, affine parameters of many sizes; in eval mode."""
    generator = torch.Generator().manual_seed(2)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.affine:
            norm.weight.data = torch.rand(norm.num_features, generator=generator) + 0.5
            norm.bias.data = torch.randn(norm.num_features, generator=generator) / 2
    model.train()
    with torch.no_grad():
        for i in range(steps):
            model(images(seed=100 + i) if x is None else x[i % len(x)])
    return model.eval()


class Block(nn.Module):
    """A residual block, activations in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def resnet(blocks=2, channels=32):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        *[Block(channels) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


class Shared(nn.Module):
    """One norm under two names and in a list, called twice in a forward."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.mix = nn.Conv2d(32, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.again = self.norm
        self.plain = [self.norm]

    def forward(self, x):
        x = self.plain[0](self.conv(x)).relu()
        return self.again(self.mix(x)).mean((2, 3))
