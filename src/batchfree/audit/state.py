"""A model left as it was found, whatever the block does to it or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# What nn.Module itself keeps in __dict__; each is restored by a way of its own.
_OWN = ("_parameters", "_buffers", "_modules", "training")


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restores parameters, buffers, gradients, `requires_grad`, modes, hooks and attributes.

    The model's own tensors are written back into the same memory. Yields a function that restores
    in between, so that one run does not see what the run before left.

    Example:
        >>> import torch
        >>> bn = torch.nn.BatchNorm2d(3)
        >>> with left_as_found(bn):
        ...     _ = bn(torch.randn(2, 3, 4, 4))
        >>> int(bn.num_batches_tracked)
        0
    """
    found = [_Module(module) for module in model.modules()]
    memory: dict[int, tuple[Tensor, Tensor]] = {}
    for module in found:
        for t in module.tensors():
            if id(t) not in memory and not isinstance(
                t, (nn.UninitializedParameter, nn.UninitializedBuffer)
            ):
                memory[id(t)] = (t.data, t.detach().clone())
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    gradients = [(g, g.data, g.detach().clone()) for _, _, _, g in parameters if g is not None]

    def restore() -> None:
        with torch.no_grad():
            for module in found:
                module.restore()
            for g, data, _ in gradients:  # model.double() takes gradients along
                g.data = data
            for p, data, requires_grad, gradient in parameters:
                if p.data is not data:
                    p.data = data
                p.requires_grad_(requires_grad)
                p.grad = gradient
            for data, values in (*memory.values(), *(known[1:] for known in gradients)):
                if not same_bits(data, values):
                    data.copy_(values)

    try:
        yield restore
    finally:
        restore()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same; NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point() and a.stride() == b.stride():
        bits = _BITS.get(a.element_size())
        if bits is not None:
            return torch.equal(a.view(bits), b.view(bits))
    return torch.equal(a, b)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Module:
    """What one module holds, and how to put it back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.kept = {name: value for name, value in vars(module).items() if name not in _OWN}
        self.inside = [_Inside(value) for value in self.kept.values()]
        self.registered = {
            name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")
        }

    def tensors(self) -> Iterator[Tensor]:
        for name in ("_parameters", "_buffers"):
            yield from (t for t in self.registered[name].values() if t is not None)
        for inside in self.inside:
            yield from inside.tensors()

    def restore(self) -> None:
        own = vars(self.module)
        for name in [n for n in own if n not in self.kept and n not in _OWN]:
            del own[name]
        own.update(self.kept)
        for inside in self.inside:
            inside.restore()
        for name, content in self.registered.items():
            own[name].clear()
            own[name].update(content)
        self.module.training = self.training


class _Inside:
    """What an attribute holds: containers in containers, plain objects, generators, modules.

    A module that stands in a list is none of its owner's, and is found here.
    """

    def __init__(self, value: Any, depth: int = 4) -> None:
        self.value = value
        self.content: Any = None
        self.parts: list[_Module | _Inside] = []
        below: list[Any] = []
        if isinstance(value, torch.Generator):
            self.content = value.get_state()
        elif isinstance(value, (list, dict, set)):
            self.content = value.copy()
            below = list(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, tuple):
            below = list(value)
        elif isinstance(value, nn.Module):
            self.parts = [_Module(value)] if depth == 3 else []
        elif _is_plain(value):
            self.content = dict(vars(value))
            below = list(self.content.values())
        if depth:
            self.parts += [_Inside(part, depth - 1) for part in below if not _is_atom(part)]

    def tensors(self) -> Iterator[Tensor]:
        if isinstance(self.value, Tensor):
            yield self.value
        for part in self.parts:
            yield from part.tensors()

    def restore(self) -> None:
        value: Any = self.value
        if isinstance(value, torch.Generator):
            value.set_state(self.content)
        elif isinstance(value, list):
            value[:] = self.content
        elif isinstance(value, (dict, set)):
            value.clear()
            value.update(self.content)
        elif self.content is not None:
            vars(value).clear()
            vars(value).update(self.content)
        for part in self.parts:
            part.restore()


def _is_atom(value: Any) -> bool:
    return value is None or isinstance(value, (str, bytes, int, float, complex, torch.Size, type))


def _is_plain(value: Any) -> bool:
    """An object of a class written in Python, not of PyTorch's, that only holds things."""
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not callable(value)
        and not isinstance(value, ModuleType)
        and kind.__module__.partition(".")[0] not in ("torch", "builtins")
    )
