"""The published numbers that our results are laid beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTable:
    """Validation errors that a paper reports.

    Attributes:
        source: paper and table.
        setting: model, data and the quantity, as a heading.
        sizes: images per GPU, over which BN takes its statistics.
        errors: norm to validation error in %, by images per GPU; sizes that the paper does not
            report are left out.
    """

    source: str
    setting: str
    sizes: tuple[int, ...]
    errors: Mapping[str, Mapping[int, float]]


IMAGENET_RESNET50 = PaperTable(
    source="Wu & He, Group Normalization, ECCV 2018, Tables 1 and 2",
    setting="ResNet-50 on ImageNet",
    sizes=(32, 16, 8, 4, 2),
    errors={
        "bn": {32: 23.6, 16: 23.7, 8: 24.8, 4: 27.3, 2: 34.7},
        "gn": {32: 24.1, 16: 24.2, 8: 24.0, 4: 24.2, 2: 24.1},
        "ln": {32: 25.3},
        "in": {32: 28.4},
    },
)
