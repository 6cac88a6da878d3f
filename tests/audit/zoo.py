"""Small models with a known answer: where their samples influence each other, by mode."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import batchfree


@dataclass
class Case:
    """A model, its input, and the modules where coupling enters in each mode."""

    make: object
    batch: object
    eval: tuple = ()
    train: tuple = ()


def images(n=6, c=3, size=8):
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(1))


def net(norm, *more):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), *more)


class Custom(nn.Module):
    """A convolution, then the class's own code."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def pooled(self, x):
        return self.conv(x).mean((2, 3))


class NormAndActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: its own code normalises, modules inside do the rest."""

    def __init__(self):
        super().__init__(8)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.activation(super().forward(x))


class BatchMean(Custom):
    def forward(self, x):
        h = self.pooled(x)
        return self.fc(h - h.mean(0))


class SlightBatchMean(Custom):
    """Coupling as small as rounding in float32; float64 tells."""

    def forward(self, x):
        h = self.pooled(x)
        return self.fc(h + 1e-7 * h.sum(0))


class MinibatchDiscrimination(Custom):
    def forward(self, x):
        h = self.pooled(x)
        far = (h[:, None] - h[None]).abs().sum(2)
        return self.fc(h + torch.exp(-far).sum(1, keepdim=True))


class Buried(nn.Module):
    """The coupling stands two modules deep."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(MaxOfBatch()))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class MaxOfBatch(nn.Module):
    def forward(self, x):
        return x / x.abs().max()


class StatisticAsNumber(Custom):
    """A module returns one number of the batch, which its caller uses."""

    def __init__(self):
        super().__init__()
        self.std = StdOfAll()

    def forward(self, x):
        h = self.pooled(x)
        return self.fc(h * self.std(h))


class StdOfAll(nn.Module):
    def forward(self, x):
        return x.std()


class ShuffledBN(Custom):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x):
        h = self.pooled(x)
        order = torch.randperm(len(h))
        return self.fc(self.bn(h[order])[order.argsort()])


class InBatchNegatives(Custom):
    def forward(self, x):
        h = F.normalize(self.pooled(x), dim=1)
        return h @ h.T


class FoldIntoChannels(Custom):
    """GroupNorm over samples folded into the channels."""

    def forward(self, x):
        h = self.conv(x)
        n, c = h.shape[:2]
        h = F.group_norm(h.reshape(1, n * c, *h.shape[2:]), 1)
        return self.fc(h.reshape(n, c, -1).mean(2))


class FoldAndInstanceNorm(Custom):
    """Samples folded into the channels too, but each channel by itself: no coupling."""

    def forward(self, x):
        h = self.conv(x)
        n, c = h.shape[:2]
        h = F.instance_norm(h.reshape(1, n * c, *h.shape[2:]))
        return self.fc(h.reshape(n, c, -1).mean(2))


class FunctionalBN(Custom):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(self.conv(x), self.mean, self.var, training=self.training)


class Attention(nn.Module):
    """Self-attention; over the samples where batch_first was forgotten."""

    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=batch_first)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Video(nn.Module):
    """Frames folded into the batch, sample by sample or frame by frame."""

    def __init__(self, norm, frames_first):
        super().__init__()
        self.frames_first = frames_first
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm)

    def forward(self, x):
        n, t = x.shape[:2]
        x = x.transpose(0, 1) if self.frames_first else x
        h = self.body(x.reshape(n * t, *x.shape[2:])).mean((2, 3))
        return h.reshape(t, n, 8).mean(0) if self.frames_first else h.reshape(n, t, 8).mean(1)


class DropPath(nn.Module):
    """Stochastic depth of whole samples, as functional code."""

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1)) < 0.7
        return x * keep


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.4, self.training) + F.rrelu(x, training=False)


class Queue(Custom):
    """A memory that every forward writes to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 8))

    def forward(self, x):
        h = self.pooled(x)
        out = self.fc(h) + h @ self.queue.T
        self.queue.copy_(h[-1].detach().expand_as(self.queue))
        return out


class Losses(Custom):
    """Returns a loss in train mode, per-sample scores in eval mode."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, target):
        scores = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        if self.training:
            return {"loss": F.cross_entropy(scores, target)}
        return {"scores": scores}


class WritesInput(Custom):
    def forward(self, x):
        x.mul_(2)
        return self.fc(self.pooled(x))


class Boxes(nn.Module):
    """A list of images in, a dict an image out, of a length that depends on the content."""

    def __init__(self, norm):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm)

    def forward(self, images):
        h = self.body(torch.stack(images)).mean((2, 3))
        return [{"boxes": row[row > 0], "score": row.max()} for row in h]


TARGET = torch.arange(6) % 4
SEQUENCE = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
CLIP = torch.randn(4, 3, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def frozen_in_training():
    model = net(nn.BatchNorm2d(8))
    model[1].eval()
    return model


CASES = {
    # Clean.
    "GN": Case(lambda: net(nn.GroupNorm(2, 8)), images()),
    "our GN": Case(lambda: net(batchfree.GroupNorm(2, 8, activation="relu")), images()),
    "LN": Case(lambda: net(nn.LayerNorm([8, 6, 6])), images()),
    "IN": Case(lambda: net(nn.InstanceNorm2d(8)), images()),
    "WS": Case(
        lambda: nn.Sequential(batchfree.WeightStandardizedConv2d(3, 8, 3), nn.GroupNorm(2, 8)),
        images(),
    ),
    "dropout": Case(
        lambda: net(nn.Dropout(0.5), nn.Dropout2d(0.3), nn.AlphaDropout(0.2)), images()
    ),
    "stochastic depth": Case(lambda: net(DropPath()), images()),
    "functional dropout": Case(lambda: net(nn.Identity(), FunctionalDropout()), images()),
    "frozen BN": Case(lambda: net(batchfree.FrozenBatchNorm(8)), images()),
    "BN in eval": Case(frozen_in_training, images()),
    "attention": Case(lambda: Attention(batch_first=True), SEQUENCE),
    "video": Case(lambda: Video(nn.GroupNorm(2, 8), False), CLIP),
    "video, frames first": Case(lambda: Video(nn.GroupNorm(2, 8), True), CLIP),
    "folded, instance norm": Case(FoldAndInstanceNorm, images()),
    "loss": Case(lambda: Losses(nn.GroupNorm(2, 8)), (images(), TARGET)),
    "writes its input": Case(WritesInput, images()),
    "boxes": Case(lambda: Boxes(nn.GroupNorm(2, 8)), list(images())),
    "as many images as channels": Case(lambda: Boxes(nn.GroupNorm(2, 8)), list(images(3))),
    "a memory": Case(Queue, images()),
    # Coupled.
    "BN": Case(lambda: net(nn.BatchNorm2d(8)), images(), train=("1",)),
    "BN without affine": Case(lambda: net(nn.BatchNorm2d(8, affine=False)), images(), train=("1",)),
    "BN without statistics": Case(
        lambda: net(nn.BatchNorm2d(8, track_running_stats=False)),
        images(),
        eval=("1",),
        train=("1",),
    ),
    "BN of chunks": Case(
        lambda: net(batchfree.BatchNorm2d(8, normalization_batch=2)), images(), train=("1",)
    ),
    "lazy BN": Case(lambda: net(nn.LazyBatchNorm2d()), images(), train=("1",)),
    "BN with its activation inside": Case(
        lambda: net(NormAndActivation(), nn.Conv2d(8, 8, 1), NormAndActivation()),
        images(),
        train=("1", "4"),
    ),
    "two BNs": Case(
        lambda: net(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
        images(),
        train=("1", "4"),
    ),
    "BN after pooling": Case(
        lambda: net(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8)),
        images(),
        train=("5",),
    ),
    "functional BN": Case(FunctionalBN, images(), train=("",)),
    "batch mean": Case(BatchMean, images(), eval=("",), train=("",)),
    "slight batch mean": Case(SlightBatchMean, images(), eval=("",), train=("",)),
    "minibatch discrimination": Case(MinibatchDiscrimination, images(), eval=("",), train=("",)),
    "buried": Case(Buried, images(), eval=("body.2.0",), train=("body.2.0",)),
    "a number of the batch": Case(StatisticAsNumber, images(), eval=("",), train=("",)),
    "shuffled BN": Case(ShuffledBN, images(), train=("bn",)),
    "in-batch negatives": Case(InBatchNegatives, images(), eval=("",), train=("",)),
    "folded, group norm": Case(FoldIntoChannels, images(), eval=("",), train=("",)),
    "attention over samples": Case(
        lambda: Attention(batch_first=False),
        SEQUENCE,
        eval=("attention",),
        train=("attention",),
    ),
    "video with BN": Case(lambda: Video(nn.BatchNorm2d(8), False), CLIP, train=("body.1",)),
    "video with BN, frames first": Case(
        lambda: Video(nn.BatchNorm2d(8), True), CLIP, train=("body.1",)
    ),
    "loss with BN": Case(lambda: Losses(nn.BatchNorm2d(8)), (images(), TARGET), train=("norm",)),
    "boxes with BN": Case(lambda: Boxes(nn.BatchNorm2d(8)), list(images()), train=("body.1",)),
}
