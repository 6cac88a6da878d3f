"""The random draws of a forward: recorded for a batch, and dealt out again to its samples.

Dropout draws one mask for the batch; a sample that runs alone would get another one, and seem to
depend on its batchmates. Here it gets its own rows of the batch's mask.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from batchfree.audit.alignment import Apart, pair

_SEED = 0


class Draws(TorchDispatchMode):
    """Records the random draws inside the block, or repeats those of an earlier block.

    Args:
        earlier: the draws to repeat; None records only.
        who: which of the earlier batch's samples run inside.

    Attributes:
        drawn: the draws, in order.
        held: whether every draw could be repeated so far.
    """

    def __init__(self, earlier: Draws | None = None, who: Apart | None = None) -> None:
        super().__init__()
        self.earlier, self.who = earlier, who
        self.drawn: list[Tensor | None] = []
        self.held = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _draws_nothing(func, args):
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        own, repeats = _draw_of(func, out)
        if self.earlier is not None:
            place = len(self.drawn)
            own, out = self._repeat(place, func, args, own if repeats else None, out)
        self.drawn.append(None if own is None else own.clone())
        return out

    def _repeat(
        self, place: int, func: Any, args: tuple[Any, ...], own: Tensor | None, out: Any
    ) -> tuple[Tensor | None, Any]:
        assert self.earlier is not None
        assert self.who is not None
        before = self.earlier.drawn[place] if place < len(self.earlier.drawn) else None
        if own is None or before is None:
            self.held &= own is None and _integer(out)
            return own, out
        found = pair(before, own, self.who)
        if found.batch is None:
            self.held = False
            return own, out
        if func is torch.ops.aten.native_dropout.default:
            x, p = args[:2]
            keep = found.batch
            scaled = x * keep * (0.0 if p >= 1 else 1 / (1 - p))
            return keep, (scaled.to(x.dtype), keep)
        own.copy_(found.batch)
        return own, out

    @property
    def any(self) -> bool:
        """Whether anything was drawn."""
        return bool(self.drawn)


def _draws_nothing(func: Any, args: tuple[Any, ...]) -> bool:
    """Operators that may draw and here do not: attention without dropout, inference."""
    name = func._schema.name
    if "dot_product" in name or "attention" in name:
        arguments = {a.name: i for i, a in enumerate(func._schema.arguments)}
        place = arguments.get("dropout_p")
        return place is None or len(args) <= place or args[place] == 0
    if name == "aten::native_dropout":
        return len(args) > 2 and (args[2] is False or args[1] == 0)
    if "rrelu" in name:
        return len(args) > 4 and args[4] is False
    return False


# Operators whose result holds nothing but what was drawn.
_PURE = {
    *("rand", "randn", "rand_like", "randn_like", "bernoulli", "normal"),
    *("bernoulli_", "uniform_", "normal_", "exponential_", "log_normal_", "cauchy_", "geometric_"),
}


def _draw_of(func: Any, out: Any) -> tuple[Tensor | None, bool]:
    """The tensor that holds the draw, and whether it can be dealt out again."""
    if func is torch.ops.aten.native_dropout.default:
        return out[1], True
    name = func._schema.name.removeprefix("aten::")
    if name in _PURE and isinstance(out, Tensor) and not _integer(out):
        return out, True
    return None, False


def _integer(out: Any) -> bool:
    """Permutations and random indices: of a batch they cannot be cut, so each run draws its own."""
    return isinstance(out, Tensor) and not out.is_floating_point()


@contextmanager
def seeded() -> Iterator[None]:
    """Every generator at the same start inside, and where it was after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        random.seed(_SEED)
        if numpy:
            numpy.random.seed(_SEED)
        try:
            yield
        finally:
            random.setstate(state)
            if numpy:
                numpy.random.set_state(numpy_state)
