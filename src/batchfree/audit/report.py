"""What an audit found: frozen dataclasses, JSON, and the verdict."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["coupling", "bits", "warning", "note"]
LEVELS: tuple[Level, ...] = ("coupling", "bits", "warning", "note")
"""From the worst: samples influence each other; only rounding differs; something to act on;
something to know."""

SCHEMA = "batchfree-audit-1"


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        kind: what, in a word or two: `coupling`, `bits`, `buffers`, `degenerate`, ...
        level: how bad, one of `LEVELS`.
        module: the module's name in the model; "" for the model itself.
        type: the module's class.
        mode: `eval`, `train`, or None where it does not depend on it.
        amount: how much, as `message` says; None where there is nothing to measure.
        message: what was seen.
        advice: what to do.
        reason: why, with the paper's section where it has one.
    """

    kind: str
    level: Level
    module: str
    type: str
    mode: str | None
    amount: float | None
    message: str
    advice: str
    reason: str = ""


@dataclass(frozen=True)
class Layer:
    """One norm layer, or another module that can carry batch state, in the order of the forward.

    Attributes:
        module: its name.
        type: its class.
        kind: what it is, as `static.KINDS` names it.
        channels: how many it normalises; None where unknown.
        affine: whether it has gamma and beta.
        training: whether it stood in training mode as it was found.
        groups: the groups it has, or those that the policy would choose for it.
        elements: the values that one statistic is taken over in this batch; None if not run.
        train_coupling: local coupling in train mode; None if not measured.
        eval_coupling: local coupling in eval mode; None if not measured.
        gap: relative difference of its output between train and eval mode; None if not measured.
    """

    module: str
    type: str
    kind: str
    channels: int | None
    affine: bool
    training: bool
    groups: int | None
    elements: int | None = None
    train_coupling: float | None = None
    eval_coupling: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Mode:
    """Coupling in one mode.

    Attributes:
        mode: `eval` or `train`.
        coupled: whether samples influence each other by more than rounding.
        bitwise: whether every module gave the same bits apart and in the batch.
        entries: the modules where coupling enters, in order, with the local relative difference.
        values: entry [i][j] is how far output i moves when sample j is replaced; empty if unknown.
        gradients: for some i, |d loss_i / d x_j| over |d loss_i / d x_i| for each j.
        moved: buffers that the forward changed.
        random: whether the model draws random numbers in this mode.
        held: whether all of them could be dealt out again to samples that ran apart.
    """

    mode: str
    coupled: bool
    bitwise: bool
    entries: tuple[tuple[str, float], ...]
    values: tuple[tuple[float, ...], ...] = ()
    gradients: tuple[tuple[int, tuple[float, ...]], ...] = ()
    moved: tuple[str, ...] = ()
    random: bool = False
    held: bool = True


@dataclass(frozen=True)
class SweepPoint:
    """A batch of this size against the whole one, in train mode.

    Attributes:
        size: samples in a batch.
        output: mean over samples of the relative distance of the outputs.
        mean: mean over BN layers of |batch mean - whole batch's mean| over the standard deviation.
        variance: mean over BN layers of |log(batch variance / whole batch's)|.
    """

    size: int
    output: float | None
    mean: float | None
    variance: float | None


@dataclass(frozen=True)
class AuditReport:
    """Where a model depends on its batch, how much, and what to do about it.

    Attributes:
        model: its name or class.
        samples: the size of the batch it was audited with.
        modes: `eval` and `train`, as far as they were audited.
        layers: norm layers and other modules with batch state.
        findings: the worst first.
        sweep: batch sizes against the whole batch.
        tolerance: relative distance that counts as the same output in `smallest_batch`.
        smallest_batch: the smallest size within the tolerance of the whole batch; None where no
            size below it is, or where it was not measured.
        skipped: modes that were asked for and could not be audited, as a finding says.
        passes: forward passes of the whole batch that the audit took, forward-backward as three.
        seconds: how long.
        torch: PyTorch's version.
    """

    model: str
    samples: int
    modes: tuple[Mode, ...]
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    sweep: tuple[SweepPoint, ...] = ()
    tolerance: float = 0.05
    smallest_batch: int | None = None
    skipped: tuple[str, ...] = ()
    passes: float = 0.0
    seconds: float = 0.0
    torch: str = ""
    schema: str = field(default=SCHEMA)

    @property
    def ok(self) -> bool:
        """Whether every mode asked for was audited, and no sample influences another in it."""
        return not self.skipped and not self.at_least("coupling")

    def at_least(self, level: str) -> tuple[Finding, ...]:
        """The findings of this level and worse."""
        worst = [*LEVELS].index(level)  # type: ignore[arg-type]
        return tuple(f for f in self.findings if LEVELS.index(f.level) <= worst)

    def mode(self, name: str) -> Mode | None:
        """The part about `eval` or `train`; None where it was not audited."""
        return next((m for m in self.modes if m.mode == name), None)

    def to_json(self) -> str:
        """All of it as JSON; NaN and infinity are the strings "nan" and "inf"."""
        return json.dumps(plain({"ok": self.ok, **asdict(self)}), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """One self-contained page: overview, layers, heat maps and the curve over batch sizes."""
        from batchfree.audit.html import page

        return page(self)

    def __str__(self) -> str:
        from batchfree.audit.text import summary

        return summary(self)

    def __rich__(self) -> Any:
        from batchfree.audit.text import table

        return table(self)


def plain(value: Any) -> Any:
    """Values for JSON: NaN and infinity become the strings "nan" and "inf"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
