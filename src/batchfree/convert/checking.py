"""What may go wrong with a conversion, or be left out of it without a word, and how it is said."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from batchfree._errors import ConfigError
from batchfree.audit.static import kind_of
from batchfree.audit.tree import batch_size, take, tensors
from batchfree.convert.batches import Forward, run
from batchfree.convert.calibrate import Work
from batchfree.convert.drift import Sums
from batchfree.convert.plan import ConversionPlan, PlannedLayer
from batchfree.convert.replacing import without_inplace


def check_elements(row: PlannedLayer, positions: int, degenerate: str) -> None:
    """A group of one element is zero whatever the input."""

    def holds(groups: int) -> bool:
        return row.channels // groups * positions > 1

    row.candidates = [g for g in row.candidates if holds(g)]
    if holds(row.groups):
        return
    shape = f"{row.channels} channels at {positions} position(s) in {row.groups} groups"
    if degenerate == "merge" and holds(1):
        row.choose(max(g for g in range(1, row.groups) if row.channels % g == 0 and holds(g)))
        row.reason = f"groups of one element were merged: {shape}"
    elif degenerate == "keep":
        row.action, row.reason = "keep", f"groups of one element: {shape}"
    else:
        raise ConfigError(
            f"layer {row.path!r} cannot hold: {shape} leaves one element a group, which normalises "
            f"to zero; take fewer groups, keep={row.path!r}, or degenerate='merge' or 'keep'"
        )


def single_channels(plan: ConversionPlan) -> list[str]:
    """A note on layers over vectors whose groups hold one channel, if there are any."""
    found = [x.path for x in plan.converted if x.groups == x.channels and "1d" in x.old]
    if not found:
        return []
    return [
        f"{len(found)} layers ({found[0]!r} first) get groups of one channel: on inputs (N, C) "
        "such a layer gives beta whatever comes in; calibration data would tell, fewer groups help"
    ]


def why_none(plan: ConversionPlan) -> str:
    """Why nothing is converted."""
    kept = [x for x in plan.layers if x.action == "keep"]
    if kept:
        return f"{kept[0].path!r} is kept: {kept[0].reason}"
    kinds = sorted({x.kind for x in plan.layers})
    return f"its norm layers are {', '.join(kinds)}" if kinds else "it has no norm layers"


def scripted(model: nn.Module) -> list[str]:
    """A note on BatchNorms inside scripted or traced parts, if there are any."""
    found = [
        path
        for path, m in model.named_modules()
        if isinstance(m, torch.jit.ScriptModule) and "BatchNorm" in getattr(m, "original_name", "")
    ]
    if not found:
        return []
    return [
        f"{len(found)} BatchNorms ({found[0]!r} first) are inside torch.jit modules, which cannot "
        "be rewritten: they stay; convert the model before scripting"
    ]


def not_tensors(model: nn.Module) -> list[str]:
    """A note on what a file cannot hold, if there is anything."""
    found = [k for k, v in model.state_dict().items() if not isinstance(v, torch.Tensor)]
    if not found:
        return []
    return [f"state_dict() holds more than tensors ({found[0]!r}): a file of it cannot be written"]


class FunctionalNorms(TorchFunctionMode):
    """Counts calls of batch_norm that no known norm layer makes, while it is on.

    Args:
        model: whose layers are known. With a compiled part in it nothing is counted: the compiler
            would trace the counting.

    Attributes:
        calls: how many.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls, self.depth = model, 0, 0
        self.handles: list[Any] = []
        self.off = any(
            hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
            for m in model.modules()
        )

    def __enter__(self) -> FunctionalNorms:
        if self.off:
            return self
        for module in self.model.modules():
            if kind_of(module, False) is not None:
                self.handles += [
                    module.register_forward_pre_hook(lambda *_: self._deeper(1)),
                    module.register_forward_hook(lambda *_: self._deeper(-1), always_call=True),
                ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.off:
            return
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _deeper(self, by: int) -> None:
        self.depth += by

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself; only counted."""
        if not self.depth and "batch_norm" in getattr(func, "__name__", ""):
            self.calls += 1
        return func(*args, **(kwargs or {}))

    def notes(self, forwards: int) -> list[str]:
        """What to know, of so many forwards."""
        if not self.calls:
            return []
        return [
            f"{math.ceil(self.calls / forwards)} calls of batch_norm a forward by model code, and "
            "not by a layer of the model, are left as they are"
        ]


def inplace_matters(model: nn.Module, batch: Any, forward: Forward) -> bool:
    """Whether the outputs, on up to 8 samples, are others where activations work out of place.

    So they are where model code ignores what an activation in place returns.
    """
    active = [m for m in model.modules() if getattr(m, "inplace", None) is True]
    if not active:
        return False
    size = batch_size(batch) or 1
    batch = take(batch, range(min(8, size)), size)

    def outputs() -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return list(tensors(run(model, batch, forward)))

    before = outputs()
    without_inplace(model)
    try:
        after = outputs()
    finally:
        for module in active:
            vars(module)["inplace"] = True
    whole = Sums()
    for a, b in zip(after, before, strict=False):
        if a.shape != b.shape:
            return True
        whole.add(a, b)
    return whole.error > 1e-3


@contextlib.contextmanager
def naming(works: Sequence[Work]) -> Iterator[None]:
    """Names the layer of which model code reads what only the BatchNorm had.

    Raises:
        ConfigError: with its name.
    """
    try:
        yield
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, AttributeError):
            for work in works:
                if cause.obj is work.norm:
                    path = work.row.path
                    raise ConfigError(
                        f"the model's code reads {cause.name!r} of layer {path!r}, which the "
                        f"GroupNorm in its place does not have; keep it: keep={path!r}"
                    ) from error
        raise
