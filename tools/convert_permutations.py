"""Whether it pays to choose which channels share a group: conversions of permuted BatchNorm nets.

    python tools/convert_permutations.py --output results/convert-permutations.csv

Each BatchNorm of the networks of `convert_digits.py` gets its channels in another order, undone
after it, so that the default groups of consecutive channels hold others: as they are, at random,
alike or unlike by the correlation (or its absolute value) of the channels' means over 256 images.
The network computes the same; what is measured is its calibrated conversion. Rows are written as
they come; those that the table holds are passed over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor, nn

import batchfree
from batchfree.data import DigitsInTheWild

sys.path.insert(0, str(Path(__file__).parent))
from convert_digits import SEEDS, error_of, trained
from tables import Table

ORDERS = ("identity", "random", "similar", "similar-abs", "spread", "spread-abs")
FIELDS = ("architecture", "seed", "order", "bn_error", "error", "output_error")
CALIBRATION = 256


class Permuted(nn.Module):
    """A BatchNorm that sees its channels in another order."""

    def __init__(self, norm: nn.BatchNorm2d, order: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.order = nn.Buffer(order)
        self.back = nn.Buffer(torch.argsort(order))
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(norm, name)
            tensor.data = tensor.data[order]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return self.norm(x[:, self.order])[:, self.back]


def permuted(net: nn.Module, images: Tensor, order: str) -> nn.Module:
    """The network with its norms in the order of that name, in place."""
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    groups = {row.path: row.groups for row in batchfree.plan_conversion(net).converted}
    means: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda m, args, y, n=n: means.__setitem__(n, y.mean((2, 3))))
        for n, m in norms.items()
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    generator = torch.Generator().manual_seed(0)
    for name, norm in norms.items():
        channels = norm.num_features
        parent, _, child = name.rpartition(".")
        index = torch.arange(channels)
        if order == "random":
            index = torch.randperm(channels, generator=generator)
        elif order != "identity":
            index = torch.as_tensor(_leaves(means[name], absolute=order.endswith("abs")))
            if order.startswith("spread"):
                index = index.view(-1, groups[name]).T.reshape(-1)
        setattr(net.get_submodule(parent), child, Permuted(norm, index))
    return net.eval()


def _leaves(means: Tensor, *, absolute: bool) -> np.ndarray:
    """An order in which channels whose means over images correlate stand together."""
    correlation = np.nan_to_num(np.corrcoef(means.numpy().T))
    distance = 1 - (np.abs(correlation) if absolute else correlation)
    pairs = distance[np.triu_indices(len(distance), 1)].clip(0)
    return leaves_list(linkage(pairs, "average", optimal_ordering=True)).astype(np.int64)


def main() -> None:
    """Converts what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/convert-digits"))
    parser.add_argument("--output", type=Path, default=Path("results/convert-permutations.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = DigitsInTheWild("test")
    test = digits.batch(range(len(digits)))
    table = Table(options.output, FIELDS, keys=3)
    for seed in SEEDS:
        for architecture in ("basic", "bottleneck", "mobilenet"):
            for order in ORDERS:
                if table.has(architecture, seed, order):
                    continue
                data = DigitsInTheWild("train", num_samples=CALIBRATION + 512, seed=1000 + seed)
                x = data.batch(range(CALIBRATION + 512))[0]
                net = permuted(trained(architecture, seed, options.runs), x[:CALIBRATION], order)
                result = batchfree.convert(
                    net, x[:CALIBRATION], held_out=x[CALIBRATION:], chunk=CALIBRATION
                )
                table.add(
                    *(architecture, seed, order),
                    bn_error=round(error_of(net, *test), 3),
                    error=round(error_of(result.model.eval(), *test), 3),
                    output_error=round(result.report.output_error or 0.0, 4),
                )


if __name__ == "__main__":
    main()
