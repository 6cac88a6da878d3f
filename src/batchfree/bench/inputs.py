"""A setting, which is a case with its dtype, layout and mode, and the tensors that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree.bench.suites import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")
MODES = ("forward", "forward+backward")
PARAMETERS = ("same", "float32")

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Setting:
    """A case as it is timed.

    Attributes:
        suite: the case's suite.
        case: shape, groups, activation, residual.
        dtype: of x, a key of `DTYPES`.
        layout: `contiguous` or `channels_last`.
        mode: `forward` (under no_grad) or `forward+backward`.
        parameters: weight and bias in x's dtype (`same`) or in `float32`.
        device: `cpu` or `cuda`.
    """

    suite: str
    case: Case
    dtype: str = "float32"
    layout: str = "contiguous"
    mode: str = "forward"
    parameters: str = "same"
    device: str = "cpu"

    @property
    def bytes(self) -> int:
        """Bytes of x."""
        return self.case.elements * DTYPES[self.dtype].itemsize

    @property
    def floor_bytes(self) -> int:
        """Bytes that have to move: each input read once, each output written once.

        Forward reads x (and the residual) and writes y. Backward reads x and dy and writes dx; with
        a residual under an activation it also reads the residual (or y) and writes its gradient.
        """
        residual, activation = self.case.residual, self.case.activation is not None
        times = 3 if residual else 2
        if self.mode == "forward+backward":
            times += 5 if residual and activation else 3
        return times * self.bytes


def settings(
    pairs: Sequence[tuple[str, Case]],
    *,
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = ("contiguous",),
    modes: Sequence[str] = MODES,
    parameters: str = "same",
    device: str = "cpu",
) -> list[Setting]:
    """Every combination that exists; layouts of one case follow each other.

    channels_last exists for 4 and 5 dimensions.
    """
    return [
        Setting(suite, case, dtype, layout, mode, parameters, device)
        for suite, case in pairs
        for dtype in dtypes
        for mode in modes
        for layout in layouts
        if layout == "contiguous" or len(case.shape) in _CHANNELS_LAST
    ]


@dataclass(frozen=True)
class Inputs:
    """The tensors of a setting, shared by its peers: x, residual, gamma, beta, dy, BN's buffers."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    dy: Tensor
    mean: Tensor
    variance: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What a backward differentiates by."""
        several = (self.x, self.residual, self.weight, self.bias)
        return tuple(tensor for tensor in several if tensor is not None)


def make_inputs(setting: Setting) -> Inputs:
    """Random tensors of a setting, the same for the same setting."""
    case, dtype = setting.case, DTYPES[setting.dtype]
    generator = torch.Generator(setting.device).manual_seed(0)
    grad = setting.mode == "forward+backward"
    last = _CHANNELS_LAST.get(len(case.shape), torch.contiguous_format)
    memory_format = last if setting.layout == "channels_last" else torch.contiguous_format

    def tensor() -> Tensor:
        value = torch.randn(case.shape, generator=generator, device=setting.device)
        return value.to(dtype).contiguous(memory_format=memory_format)

    def vector(value: float) -> Tensor:
        kind = torch.float32 if setting.parameters == "float32" else dtype
        return torch.full((case.shape[1],), value, dtype=kind, device=setting.device)

    return Inputs(
        x=tensor().requires_grad_(grad),
        residual=tensor().requires_grad_(grad) if case.residual else None,
        weight=vector(1).requires_grad_(grad),
        bias=vector(0).requires_grad_(grad),
        dy=tensor() if grad else torch.empty(0),
        mean=vector(0),
        variance=vector(1),
    )
