"""Named suites of shapes: which norms the networks of each field really contain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from batchfree._checks import suggest
from batchfree._errors import ConfigError

LARGE = 2**25
"""Elements above which a case is left out on a CPU unless it is asked for: 128 MiB in float32."""


@dataclass(frozen=True)
class Case:
    """One norm to time: act(GN(x) + residual).

    Attributes:
        name: where in the network it stands.
        shape: of x, (N, C, *).
        groups: the number of groups.
        activation: None, or a name that `batchfree.group_norm` takes.
        residual: whether a tensor is added before the activation.
        count: how often the network holds such a norm.
    """

    name: str
    shape: tuple[int, ...]
    groups: int = 32
    activation: str | None = None
    residual: bool = False
    count: int = 1

    @property
    def elements(self) -> int:
        """Elements of x."""
        return math.prod(self.shape)

    @property
    def large(self) -> bool:
        """Whether a CPU leaves it out by default."""
        return self.elements > LARGE

    @property
    def fusion(self) -> str:
        """What is computed, in words: `GN+residual+relu`."""
        words = ("GN", "residual" * self.residual, self.activation)
        return "+".join(word for word in words if word)


def cases(suite: str) -> list[Case]:
    """The cases of a suite.

    Raises:
        ConfigError: there is no suite of that name.

    Example:
        >>> from batchfree.bench.suites import cases
        >>> cases("target")[0]
        Case(name='block 64, batch 2', shape=(2, 320, 64, 64), groups=32, activation='silu', \
residual=False, count=8)
    """
    if suite not in SUITES:
        raise ConfigError(
            f"there is no suite {suite!r}{suggest(suite, SUITES)}; suites: {', '.join(SUITES)}"
        )
    return SUITES[suite]()


def _resnet50(batch: int, height: int, width: int, where: str = "") -> list[Case]:
    """The 53 norms of ResNet-50: GN+ReLU, GN+residual+ReLU at a block's end, GN on a shortcut."""

    def at(stride: int) -> tuple[int, int]:
        return math.ceil(height / stride), math.ceil(width / stride)

    def case(name: str, channels: int, stride: int, count: int, end: bool = False) -> Case:
        shape = (batch, channels, *at(stride))
        return Case(f"{where}{name}, batch {batch}", shape, 32, "relu", end, count)

    found = [case("stem", 64, 2, 1)]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        name, width_of, stride = f"layer{stage + 1}", 64 * 2**stage, 4 * 2**stage
        inner = 2 * blocks
        if stage:  # the stride stands in the 3x3 convolution, after the first norm
            found.append(case(f"{name} before the stride", width_of, stride // 2, 1))
            inner -= 1
        found.append(case(f"{name} inside", width_of, stride, inner))
        end = case(f"{name} end", 4 * width_of, stride, blocks, end=True)
        shortcut = replace(
            end,
            name=f"{where}{name} shortcut, batch {batch}",
            activation=None,
            residual=False,
            count=1,
        )
        found += [end, shortcut]
    return found


def _resnet50_at_224() -> list[Case]:
    """ResNet-50 at 224 px, batches 1, 2, 8 and 32."""
    return [case for batch in (1, 2, 8, 32) for case in _resnet50(batch, 224, 224)]


def _mask_rcnn() -> list[Case]:
    """800x1333 padded to a multiple of 32; GN in backbone, FPN and 4conv heads (Wu & He, 4.2)."""
    found = []
    for batch in (1, 2):
        found += _resnet50(batch, 800, 1344, "backbone ")
        for level in range(2, 6):
            size = (math.ceil(800 / 2**level), math.ceil(1344 / 2**level))
            found.append(Case(f"FPN P{level}, batch {batch}", (batch, 256, *size), count=2))
        box, mask = (512 * batch, 256, 7, 7), (128 * batch, 256, 14, 14)
        found.append(Case(f"box head, batch {batch}", box, activation="relu", count=4))
        found.append(Case(f"mask head, batch {batch}", mask, activation="relu", count=4))
    return found


def _sd_unet() -> list[Case]:
    """Stable Diffusion 1.x at 512 px, batch 2 (with and without the prompt)."""
    silu = {
        64: {320: 8, 640: 2, 960: 1},
        32: {320: 1, 640: 6, 960: 1, 1280: 1, 1920: 1},
        16: {640: 1, 1280: 6, 1920: 1, 2560: 2},
        8: {1280: 11, 2560: 3},
    }
    found = [
        Case(f"block {size}, batch 2", (2, channels, size, size), 32, "silu", False, count)
        for size, counts in silu.items()
        for channels, count in counts.items()
    ]
    attention = ((320, 64, 5), (640, 32, 5), (1280, 16, 5), (1280, 8, 1))
    return found + [
        Case(f"attention {size}, batch 2", (2, channels, size, size), count=count)
        for channels, size, count in attention
    ]


def _sd_vae() -> list[Case]:
    """The decoder of Stable Diffusion's VAE at 512 px."""
    norms = ((512, 64, 10), (512, 128, 6), (512, 256, 1), (256, 256, 5), (256, 512, 1))
    return [
        Case(f"decoder {size}", (1, channels, size, size), 32, "silu", False, count)
        for channels, size, count in (*norms, (128, 512, 6))
    ]


def _hunyuan_vae() -> list[Case]:
    """HunyuanVideo's VAE: a tile as sglang measures it, a whole clip, and smaller tiles."""
    shapes = {
        "small tile": ((512, 5, 32, 32), (512, 5, 64, 64), (256, 9, 64, 64), (128, 17, 64, 64)),
        "tile": ((512, 20, 64, 64), (512, 20, 128, 128), (256, 20, 256, 256), (128, 20, 256, 256)),
        "clip": ((512, 16, 180, 320),),
    }
    return [
        Case(f"{name} {shape[-1]}", (1, *shape), 32, "silu")
        for name, several in shapes.items()
        for shape in several
    ]


def _medical_3d() -> list[Case]:
    """nnU-Net's levels at a patch of 128^3, batch 2: Instance Norm, and GN of 8 groups."""
    levels = ((32, 128), (32, 64), (64, 64), (128, 32), (256, 16), (320, 8), (320, 4))
    return [
        Case(f"{name} {size}", (2, channels, size, size, size), groups or channels, "relu")
        for channels, size in levels
        for name, groups in (("IN", 0), ("GN 8", 8))
    ]


def _tiny() -> list[Case]:
    """Tensors under 64 KiB, where the host's overhead decides."""
    shapes = ((1, 32, 2, 2), (1, 64, 4, 4), (4, 64, 32), (2, 64, 7, 7), (1, 256, 7, 7))
    fusions: tuple[tuple[str | None, bool], ...] = (("silu", False), ("relu", True), (None, False))
    return [
        Case("tiny", shape, 16, activation, residual)
        for shape in shapes
        for activation, residual in fusions
    ]


_TARGET_SILU = (
    ("sd-unet", (2, 320, 64, 64)),
    ("sd-unet", (2, 960, 64, 64)),
    ("sd-unet", (2, 640, 32, 32)),
    ("sd-unet", (2, 1920, 32, 32)),
    ("sd-unet", (2, 1280, 16, 16)),
    ("sd-unet", (2, 2560, 16, 16)),
    ("sd-vae", (1, 512, 64, 64)),
    ("hunyuan-vae", (1, 512, 5, 32, 32)),
)
_TARGET_RELU = (
    *((2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14)),
    *((8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)),
    (32, 2048, 7, 7),
)


def _target() -> list[Case]:
    """GN+SiLU and GN+residual+ReLU of 1 to 32 MB in float32, drawn from the other suites."""
    wanted = [(suite, shape, "silu", False) for suite, shape in _TARGET_SILU]
    wanted += [("resnet50", shape, "relu", True) for shape in _TARGET_RELU]
    return [
        next(
            case
            for case in cases(suite)
            if (case.shape, case.activation, case.residual) == (shape, activation, residual)
        )
        for suite, shape, activation, residual in wanted
    ]


def _target_plain() -> list[Case]:
    """The shapes of `target` with neither activation nor residual."""
    return [replace(case, activation=None, residual=False) for case in _target()]


def _gpu() -> list[Case]:
    """From 1 MB to a clip's 335 MB in bfloat16, drawn from the other suites: for `make gpu`."""
    wanted = (
        ("hunyuan-vae", (1, 128, 20, 256, 256)),
        ("hunyuan-vae", (1, 512, 5, 64, 64)),
        ("sd-vae", (1, 128, 512, 512)),
        ("sd-vae", (1, 512, 128, 128)),
        ("sd-unet", (2, 320, 64, 64)),
        ("sd-unet", (2, 1280, 16, 16)),
        ("resnet50", (32, 64, 112, 112)),
        ("resnet50", (32, 256, 56, 56)),
        ("resnet50", (32, 1024, 14, 14)),
        ("resnet50", (8, 128, 28, 28)),
        ("mask-rcnn", (2, 64, 400, 672)),
        ("mask-rcnn", (2, 256, 200, 336)),
        ("mask-rcnn", (1024, 256, 7, 7)),
        ("mask-rcnn", (256, 256, 14, 14)),
    )
    return [
        next(case for case in cases(suite) if case.shape == shape and case.activation)
        for suite, shape in wanted
    ]


SUITES: dict[str, Callable[[], list[Case]]] = {
    "target": _target,
    "target-plain": _target_plain,
    "resnet50": _resnet50_at_224,
    "mask-rcnn": _mask_rcnn,
    "sd-unet": _sd_unet,
    "sd-vae": _sd_vae,
    "hunyuan-vae": _hunyuan_vae,
    "medical-3d": _medical_3d,
    "tiny": _tiny,
    "gpu": _gpu,
}
