"""One norm layer of a conversion plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from batchfree.convert.plan_reading import check_eps

Action = Literal["convert", "keep", "leave"]
MEASURED = "the number of groups is chosen by measured error"
"""The reason of a layer with candidates."""


@dataclass
class PlannedLayer:
    """What becomes of one norm layer; its fields may be changed before the plan is applied.

    Attributes:
        path: its name in the model; "" for the model itself.
        old: its class.
        kind: what it is, as `batchfree.audit` names it.
        action: `convert`; `keep` a BatchNorm that stays one; `leave` a norm that is no BatchNorm.
        reason: why.
        channels: how many it normalises, 0 where unknown.
        groups: of the GroupNorm in its place, 0 where there is none. Setting it empties
            `candidates`: the number that was set is taken.
        candidates: numbers of groups of which the calibration takes the one of least error.
        eps: added to the new layer's variances; the old one's, unless it is changed.
        then: what it applies after its norm, as `name: class`, kept.
        aliases: its other names, where the module is used in several places; it stays shared.
        new: the class in its place; "" where it stays.
    """

    path: str
    old: str
    kind: str
    action: Action
    reason: str = ""
    channels: int = 0
    groups: int = 0
    candidates: list[int] = field(default_factory=list)
    eps: float = 0.0
    then: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "eps":
            check_eps(value, self.path)
        if name == "groups" and "candidates" in vars(self):  # later than __init__
            self.candidates = []
            parts = (part for part in self.reason.split("; ") if part != MEASURED)
            self.reason = "; ".join(parts)
        object.__setattr__(self, name, value)

    def choose(self, groups: int) -> None:
        """Sets the number of groups that a calibration found; the candidates stay."""
        object.__setattr__(self, "groups", groups)

    @property
    def new(self) -> str:
        """What stands in its place."""
        if self.action != "convert":
            return ""
        return f"GroupNorm({self.groups}, {self.channels})" + "".join(f" + {t}" for t in self.then)


def add_reason(row: PlannedLayer, reason: str) -> None:
    """One more reason, behind those that are there."""
    row.reason = "; ".join(part for part in (row.reason, reason) if part)
