"""The calls of a model's modules: recorded for a batch, then compared while some samples run apart.

During the run apart every input and output is compared with the batch's rows and set to them, so a
difference never travels on: each one is seen where it arises and nowhere else.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.audit.alignment import Apart, Pair, distance, find_rows, pair
from batchfree.audit.tree import children, map_tensors

GROWS = float("inf")
"""The distance of an output that has a dimension as long as the batch."""


def names_of(model: nn.Module) -> dict[int, str]:
    """The name of each module by its id; of a shared one the first. The model itself is ""."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        names.setdefault(id(module), name)
    return names


@contextmanager
def hooked(
    model: nn.Module,
    before: Callable[[nn.Module, Any, Any], None],
    after: Callable[[nn.Module, Any, Any, Any], None],
) -> Iterator[None]:
    """Calls before(module, args, kwargs) and after(module, args, kwargs, output) around each."""
    handles = []
    for module in dict.fromkeys(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Memory:
    """Copies of tensors as they are now; one copy for what several modules hand on unchanged."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def keep(self, tree: Any) -> Any:
        """The tree with copies for tensors."""
        return map_tensors(self._one, tree)

    def _one(self, t: Tensor) -> Tensor | None:
        if t.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(t):
            return None  # neither can be compared row by row
        version = -1 if t.is_inference() else t._version
        known = self._kept.get(id(t))
        if known is None or known[0]() is not t or known[1] != version:
            known = weakref.ref(t), version, t.detach().clone()
            self._kept[id(t)] = known
        return known[2]


@dataclass
class Call:
    """One call of a module in the run of the whole batch."""

    inputs: Any
    output: Any = None


class Recording:
    """Every call of every module while the block runs.

    Attributes:
        calls: by the module's name, in order.
        order: the names, in the order of their first return.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.order: dict[str, None] = {}
        self._model, self._names = model, names_of(model)
        self._memory = Memory()
        self._open: list[Call] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Records inside the block."""
        self._open.clear()
        with hooked(self._model, self._before, self._after):
            yield
        self._memory = Memory()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(self._memory.keep((args, kwargs)))
        self.calls[self._names[id(module)]].append(call)
        self._open.append(call)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._open.pop().output = self._memory.keep(output)
        self.order.setdefault(self._names[id(module)])


@dataclass
class Difference:
    """How far a module's output for samples apart stands from theirs in the batch.

    Attributes:
        amount: relative distance, as in `alignment.distance`.
        between: whether it arose in the module's own code, between the modules that it calls.
        grows: whether the output has a dimension as long as the batch.
    """

    amount: float = 0.0
    between: bool = False
    grows: bool = False

    def add(self, amount: float, *, between: bool = False, grows: bool = False) -> None:
        """The larger of this and another."""
        if amount > self.amount:
            self.amount, self.between, self.grows = amount, between, grows


@dataclass
class Comparison:
    """What a run apart found.

    Attributes:
        differences: by the module's name; a module that agrees to the bit has the amount 0.
        lost: modules with a call whose rows could not be told.
    """

    differences: dict[str, Difference] = field(default_factory=lambda: defaultdict(Difference))
    lost: set[str] = field(default_factory=set)

    def merge(self, other: Comparison) -> None:
        """Takes in what another run apart found."""
        for name, d in other.differences.items():
            self.differences[name].add(d.amount, between=d.between, grows=d.grows)
        self.lost |= other.lost


class Healing:
    """Compares each call of a run apart with a recording, and sets it to the recording's rows."""

    def __init__(self, model: nn.Module, recording: Recording, who: Apart) -> None:
        self.found = Comparison()
        self._model, self._recording, self._who = model, recording, who
        self._names = names_of(model)
        self._count: dict[str, int] = defaultdict(int)
        self._open: list[tuple[str, Call | None, Tensor | None]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compares and heals inside the block."""
        with hooked(self._model, self._before, self._after):
            yield

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names[id(module)]
        caller = self._open[-1][0] if self._open else None
        calls, place = self._recording.calls.get(name, []), self._count[name]
        self._count[name] += 1
        call = self._counterpart(calls, place, (args, kwargs))
        rows = None
        if call is None:
            self.found.lost.add(name)
        elif caller is not None:
            rows = self._meet_inputs(caller, name, call.inputs, (args, kwargs))
        self._open.append((name, call, rows))

    def _counterpart(self, calls: list[Call], place: int, inputs: Any) -> Call | None:
        """The call of the batch's run that this one, the module's `place`-th, belongs to.

        That of the same place; but a module may be called for each sample by itself, in any order:
        then that with the same inputs, or where none has them, the nearest.
        """
        if place >= len(calls):
            return None
        own = calls[place]
        by_sample = len(calls) >= self._who.size > len(self._who.samples)
        if not by_sample or self._apart_by(own, inputs) < 1e-3:
            return own
        return min(calls, key=lambda call: self._apart_by(call, inputs))

    def _apart_by(self, call: Call, inputs: Any) -> float:
        """The largest distance of its inputs; infinite where their rows cannot be told."""
        found = [pair for pair, _ in self._pairs(call.inputs, inputs)]
        return max(
            (GROWS if p.batch is None else distance(p.batch, p.apart) for p in found), default=0.0
        )

    def _meet_inputs(self, caller: str, name: str, batch: Any, apart: Any) -> Tensor | None:
        """Blames the caller for what differs already; returns which rows the input stands in."""
        pairs = list(self._pairs(batch, apart))
        rows = None
        for found, whole in pairs:
            if found.batch is not None and distance(found.batch, found.apart) < 1e-3:
                continue
            rows = find_rows(whole, found.apart)
            if rows is not None:
                break
        if rows is not None:
            pairs = list(self._pairs(batch, apart, rows))
        for found, whole in pairs:
            self._meet(found, whole, caller, name, between=True)
        return rows

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name, call, rows = self._open.pop()
        if call is None:
            return
        self.found.differences[name]  # it was compared
        for found, whole in self._pairs(call.output, output, rows):
            self._meet(found, whole, name, name, between=False)

    def _pairs(
        self, batch: Any, apart: Any, rows: Tensor | None = None
    ) -> Iterator[tuple[Pair, Tensor]]:
        """Each tensor of a tree with its rows in the batch's tree, and the batch's tensor."""
        yield from pairs_of(batch, apart, self._who, rows)

    def _meet(self, found: Pair, whole: Tensor, blamed: str, lost: str, *, between: bool) -> None:
        if found.grows:
            self.found.differences[blamed].add(GROWS, between=between, grows=True)
        elif found.batch is None:
            self.found.lost.add(lost)
        elif whole.dim():  # a loss is a number of the whole batch, and may be
            amount = distance(found.batch, found.apart)
            if amount:
                self.found.differences[blamed].add(amount, between=between)
                with torch.no_grad():
                    found.apart.copy_(found.batch)


def pairs_of(
    batch: Any, apart: Any, who: Apart, rows: Tensor | None = None
) -> Iterator[tuple[Pair, Tensor]]:
    """Walks two trees of the same structure; a list of one part a sample is cut to the samples."""
    if isinstance(apart, Tensor):
        if isinstance(batch, Tensor):
            yield pair(batch, apart, who, rows), batch
        return
    ours, theirs = children(batch), children(apart)
    if ours is None or theirs is None:
        return
    whole, some = [p for _, p in ours[0]], [p for _, p in theirs[0]]
    if len(whole) == len(some):
        for b, a in zip(whole, some, strict=True):
            yield from pairs_of(b, a, who, rows)
    elif len(whole) == who.size and len(some) == len(who.samples):
        for i, a in zip(who.samples, some, strict=True):
            yield from _equals(whole[i], a)


def _equals(batch: Any, apart: Any) -> Iterator[tuple[Pair, Tensor]]:
    """Inside of one sample's part: the same tensors are expected, none is cut."""
    if isinstance(apart, Tensor):
        if isinstance(batch, Tensor):
            yield Pair(apart, batch if batch.shape == apart.shape else None), batch
        return
    ours, theirs = children(batch), children(apart)
    if ours is None or theirs is None:
        return
    for (_, b), (_, a) in zip(ours[0], theirs[0], strict=False):
        yield from _equals(b, a)
