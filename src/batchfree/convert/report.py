"""What a conversion did: frozen dataclasses and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from batchfree.audit.report import plain

SCHEMA = "batchfree-convert-1"


@dataclass(frozen=True)
class LayerDrift:
    """One norm layer after the conversion.

    Attributes:
        path: its name in the model.
        old: the class that stood there.
        new: what stands there now; "" where it stayed.
        groups: its number of groups; 0 where it stayed.
        reason: why it stayed, or why these groups.
        predicted: relative error that the fit expected of this layer by itself, on the inputs that
            it was fitted on: root of E(y - u)^2 / Var(u); None where it was not calibrated.
        cosine: between its output and the original's on held-out inputs; None where it did not run.
        error: relative error of its output against the original's, likewise.
    """

    path: str
    old: str
    new: str
    groups: int
    reason: str = ""
    predicted: float | None = None
    cosine: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did and how far the result stands from the original.

    Attributes:
        model: its name or class.
        method: how gamma and beta were found.
        layers: every norm layer.
        calibration: images that the layers were fitted on.
        held_out: images that the drift was measured on.
        anchor: of the rescaling before the norms; None where there is none.
        predicted: relative error of the outputs that the layers' own would add up to if each kept
            its size; the root of the sum of squares.
        output_cosine: between the model's outputs and the original's on held-out inputs.
        output_error: relative error of the outputs, likewise.
        uncompared: why the outputs were not compared, where held-out inputs were run: their shapes
            differ, as a detector's do, or they are integers.
        changed: share of held-out samples, %, whose largest output is another.
        passes: forward passes over the calibration data that were begun.
        seconds: how long.
        notes: what to know.
    """

    model: str
    method: str
    layers: tuple[LayerDrift, ...]
    calibration: int = 0
    held_out: int = 0
    anchor: float | None = None
    predicted: float | None = None
    output_cosine: float | None = None
    output_error: float | None = None
    uncompared: str = ""
    changed: float | None = None
    passes: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    schema: str = field(default=SCHEMA)

    @property
    def converted(self) -> tuple[LayerDrift, ...]:
        """The layers that changed."""
        return tuple(layer for layer in self.layers if layer.new)

    @property
    def left(self) -> tuple[LayerDrift, ...]:
        """The layers that stayed, each with its reason."""
        return tuple(layer for layer in self.layers if not layer.new)

    def to_json(self) -> str:
        """All of it as JSON; NaN and infinity are strings."""
        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """One self-contained page: overview, drift over the layers, and what was left."""
        from batchfree.convert.html import page

        return page(self)

    def __str__(self) -> str:
        from batchfree.convert.text import report_lines

        return report_lines(self)

    def __rich__(self) -> Any:
        from batchfree.convert.text import report_table

        return report_table(self)
