"""Trains small BatchNorm networks on digits in the wild and converts them by every method.

    python tools/convert_digits.py --output results/convert-digits.csv

    python tools/convert_digits.py --output results/convert-digits-more.csv --scenes 19900 \
        --methods calibrated distill --only basic bottleneck mobilenet

The second measures on more scenes of the same unseen digits. Trained weights stay in --runs and
rows are written as they come, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

import batchfree
from batchfree.data import DigitsInTheWild

sys.path.insert(0, str(Path(__file__).parent))
from tables import Table

STEPS, BATCH, RATE = 2000, 32, 0.1
SEEDS = (0, 1, 2)
CALIBRATION = 256
FIELDS = (
    *("architecture", "seed", "method", "groups", "anchor", "bn_error", "error"),
    *("output_error", "passes", "seconds", "chosen"),
)


def basic() -> nn.Module:
    """ResNet of basic blocks, 3 stages x 2 blocks, width 32."""
    return _small_stem(ResNet(BasicBlock, [2, 2, 2, 1], num_classes=10), width=32, stages=3)


def bottleneck() -> nn.Module:
    """ResNet of bottlenecks, 3 stages x 2 blocks, width 16 (64 to 256 channels)."""
    return _small_stem(ResNet(Bottleneck, [2, 2, 2, 1], num_classes=10), width=16, stages=3)


def mobilenet() -> nn.Module:
    """MobileNetV2 at 16 pixels: inverted residuals with depthwise convolutions."""
    blocks = [[1, 16, 1, 1], [4, 24, 2, 1], [4, 32, 2, 2], [4, 64, 2, 2]]
    net = MobileNetV2(num_classes=10, inverted_residual_setting=blocks, dropout=0.0)
    net.features[0][0].stride = (1, 1)
    net.features[-1] = type(net.features[-1])(64, 256, kernel_size=1, activation_layer=nn.ReLU6)
    net.classifier = nn.Linear(256, 10)
    return net


def densenet() -> nn.Module:
    """DenseNet of 3 blocks of 4 layers, growth 16."""
    net = DenseNet(16, (4, 4, 4), 32, num_classes=10)
    net.features.conv0 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    net.features.pool0 = nn.Identity()
    return net


ARCHITECTURES = {f.__name__: f for f in (basic, bottleneck, mobilenet, densenet)}


def _small_stem(net: ResNet, width: int, stages: int) -> nn.Module:
    block = type(net.layer1[0])
    net.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    net.bn1, net.maxpool, net.inplanes = nn.BatchNorm2d(width), nn.Identity(), width
    for i in range(4):
        layer = nn.Identity()
        if i < stages:
            layer = net._make_layer(block, width * 2**i, 2, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", layer)
    net.fc = nn.Linear(net.inplanes, 10)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net


def weights_of(name: str, seed: int, folder: Path) -> Path:
    """Where a seed's weights are kept."""
    return folder / f"{name}-{seed}.safetensors"


def trained(name: str, seed: int, folder: Path) -> nn.Module:
    """The BatchNorm network of a seed, in eval mode; trained where the folder lacks it."""
    torch.manual_seed(seed)
    net = ARCHITECTURES[name]()
    path = weights_of(name, seed, folder)
    if path.exists():
        net.load_state_dict(load_file(path))
        return net.eval()
    data = DigitsInTheWild("train", num_samples=STEPS * BATCH, seed=seed)
    sgd = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(sgd, 0.1, 1.0, STEPS // 20)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, STEPS - STEPS // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(sgd, [warm_up, cosine], [STEPS // 20])
    started = time.perf_counter()
    for step in range(STEPS):
        images, labels = data.batch(range(step * BATCH, (step + 1) * BATCH))
        loss = F.cross_entropy(net(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"{name} {seed}: step {step} loss {loss.item():.3f} {seconds:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return net.eval()


def error_of(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Error, %."""
    with torch.inference_mode():
        wrong = sum(
            int((net(x).argmax(1) != y).sum())
            for x, y in zip(images.split(199), labels.split(199), strict=True)
        )
    return 100 * wrong / len(labels)


def conversions(phase: int) -> list[tuple[str, Any, float | None]]:
    """Method, groups, anchor of each row; None of groups is the default policy.

    The slow ones have phases of their own, after all others.
    """
    if phase:
        return [("distill", None, 2.0)] if phase == 1 else [("distill", 1, 2.0)]
    return [
        *(("copy", g, None) for g in (None, 1, 32)),
        *(("analytic", g, 2.0) for g in (None, 1, 32)),
        ("analytic", None, None),
        *(("calibrated", g, 2.0) for g in (None, 1, 4, 32, "auto")),
        *(("calibrated", g, None) for g in (None, 1)),
    ]


def row_of(
    net: nn.Module, seed: int, method: str, groups: Any, anchor: float | None, test: Any
) -> dict[str, Any]:
    """Converts a network and measures it."""
    data = DigitsInTheWild("train", num_samples=CALIBRATION + 32, seed=1000 + seed)
    x = data.batch(range(CALIBRATION + 32))[0]
    chunk = 64 if method == "distill" else CALIBRATION
    started = time.perf_counter()
    torch.manual_seed(seed)
    result = batchfree.convert(
        net,
        x[:CALIBRATION],
        method=method,  # type: ignore[arg-type]
        groups=groups,
        anchor=anchor,
        held_out=x[CALIBRATION:],
        chunk=chunk,
        steps=200,
    )
    seconds = time.perf_counter() - started
    return {
        "error": round(error_of(result.model.eval(), *test), 3),
        "output_error": round(result.report.output_error or 0.0, 4),
        "passes": result.report.passes,
        "seconds": round(seconds, 1),
        "chosen": " ".join(str(x.groups) for x in result.plan.converted),
    }


def main() -> None:
    """Trains what is not trained, converts what is not in the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/convert-digits"))
    parser.add_argument("--output", type=Path, default=Path("results/convert-digits.csv"))
    parser.add_argument("--only", nargs="+", default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="all by default")
    parser.add_argument(
        "--scenes", type=int, help="test images, of other placements; by default the test set's"
    )
    parser.add_argument("--trained-only", action="store_true", help="pass over what needs training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn = {"num_samples": options.scenes, "seed": 1} if options.scenes else {}
    digits = DigitsInTheWild("test", **drawn)
    test = digits.batch(range(len(digits)))
    table = Table(options.output, FIELDS, keys=5)
    for phase in range(3):
        for seed in SEEDS:
            for name in options.only:
                if options.trained_only and not weights_of(name, seed, options.runs).exists():
                    continue
                net = trained(name, seed, options.runs)
                base = None
                for method, groups, anchor in conversions(phase):
                    if method not in (options.methods or [method]):
                        continue
                    key = (
                        *(name, seed, method),
                        "default" if groups is None else groups,
                        "none" if anchor is None else anchor,
                    )
                    if table.has(*key):
                        continue
                    if base is None:
                        base = round(error_of(net, *test), 3)
                    row = row_of(net, seed, method, groups, anchor, test)
                    table.add(*key, bn_error=base, **row)


if __name__ == "__main__":
    main()
