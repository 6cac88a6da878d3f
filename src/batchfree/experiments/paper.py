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


@dataclass(frozen=True)
class PaperDetection:
    """Average precision that a paper reports.

    Attributes:
        source: the paper.
        setting: model and data, as a heading.
        rows: in reading order.
    """

    source: str
    setting: str
    rows: tuple[PaperDetector, ...]


@dataclass(frozen=True)
class PaperDetector:
    """A row of such a table.

    Attributes:
        label: the norms.
        box_AP, mask_AP: percent; None where the paper gives none.
        note: where it stands in the paper, or what is said instead of a number.
    """

    label: str
    box_AP: float | None
    mask_AP: float | None
    note: str


_WU_HE = "Wu & He, Group Normalization, ECCV 2018, section 4.2"
COCO_FINE_TUNED = PaperDetection(
    source=_WU_HE,
    setting="Mask R-CNN R50-FPN on COCO, fine-tuned from ImageNet",
    rows=(
        PaperDetector("GN", 40.3, 35.7, "Table 6, 2x"),
        PaperDetector("GN, longer", 40.8, 36.1, "Table 6, 3x"),
        PaperDetector("BN*", 38.6, 34.5, "Table 6, 2x"),
        PaperDetector("BN*, plain 4conv1fc", 38.6, 34.2, "Table 5, heads only"),
        PaperDetector("BN*, GN box head", 39.5, 34.4, "Table 5, heads only"),
        PaperDetector("GN, GN box head", 40.0, 34.8, "Table 5, heads only"),
        PaperDetector("BN*, BN box head", None, None, "about 9 box AP lower"),
        PaperDetector("BN, not frozen", None, None, "about 6 box AP lower, batch 2"),
        PaperDetector("GN, from scratch", 39.5, 35.2, "Table 7, 3x"),
    ),
)
COCO_SCRATCH = PaperDetection(
    source=_WU_HE,
    setting="Mask R-CNN on COCO, from scratch",
    rows=(
        PaperDetector("R50, GN", 39.5, 35.2, "Table 7, 3x"),
        PaperDetector("R101, GN", 41.0, 36.4, "Table 7, 3x"),
        PaperDetector("R50, GN, fine-tuned", 40.8, 36.1, "Table 6, 3x"),
        PaperDetector("LN instead of GN", None, None, "1.9 box AP lower, R50-C4, fine-tuned"),
    ),
)
