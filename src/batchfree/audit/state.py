"""A model left as it was found, whatever the block does to it or raises."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self.kept: dict[str, Any] = {}
        self.contents: dict[str, Any] = {}
        for name, value in vars(module).items():
            if name in _OWN:
                continue
            self.kept[name] = value
            if isinstance(value, (list, dict, OrderedDict, set)):
                self.contents[name] = value.copy()
        self.registered = {
            name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")
        }

    def tensors(self) -> Iterator[Tensor]:
        for name in ("_parameters", "_buffers"):
            yield from (t for t in self.registered[name].values() if t is not None)
        yield from (v for v in self.kept.values() if isinstance(v, Tensor))

    def restore(self) -> None:
        own = vars(self.module)
        for name in [n for n in own if n not in self.kept and n not in _OWN]:
            del own[name]
        own.update(self.kept)
        for name, content in self.contents.items():
            container = self.kept[name]
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for name, content in self.registered.items():
            own[name].clear()
            own[name].update(content)
        self.module.training = self.training
