"""Tensors inside nested inputs and outputs: lists, tuples, dicts, dataclasses, plain objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rebuild = Callable[[list[Any]], Any]


def children(tree: Any) -> tuple[list[tuple[str, Any]], Rebuild] | None:
    """The named parts of a container and how to put new ones in their place; None of a leaf."""
    if isinstance(tree, (Tensor, str, bytes, type, torch.nn.Module)):
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        names = [str(name) for name in tree._fields]
        return list(zip(names, tree, strict=True)), lambda parts: type(tree)(*parts)
    if isinstance(tree, (list, tuple)):
        return [(str(i), part) for i, part in enumerate(tree)], lambda parts: type(tree)(parts)
    if isinstance(tree, Mapping):
        keys = list(tree)
        return [(str(key), tree[key]) for key in keys], lambda parts: _like(tree, keys, parts)
    if dataclasses.is_dataclass(tree):
        names = [item.name for item in dataclasses.fields(tree)]  # with slots there is no __dict__
        return [(n, getattr(tree, n)) for n in names], lambda p: _object_like(tree, names, p)
    if _is_plain_object(tree):
        names = list(vars(tree))
        return [(name, vars(tree)[name]) for name in names], lambda p: _object_like(tree, names, p)
    return None


def _is_plain_object(tree: Any) -> bool:
    """An object that only holds things, such as torchvision's ImageList."""
    return (
        hasattr(tree, "__dict__")
        and not callable(tree)
        and any(isinstance(value, (Tensor, list, tuple, dict)) for value in vars(tree).values())
    )


def _like(tree: Mapping[Any, Any], keys: list[Any], parts: list[Any]) -> Any:
    rebuilt: Any = copy.copy(tree)
    try:
        for key, part in zip(keys, parts, strict=True):
            if rebuilt[key] is not part:
                rebuilt[key] = part
    except TypeError:  # a mapping that cannot be written to
        return dict(zip(keys, parts, strict=True))
    return rebuilt


def _object_like(tree: Any, names: list[str], parts: list[Any]) -> Any:
    rebuilt = copy.copy(tree)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(rebuilt, name, part)  # frozen dataclasses too
    return rebuilt


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with function(t) in the place of each tensor t."""
    if isinstance(tree, Tensor):
        return function(tree)
    found = children(tree)
    if found is None:
        return tree
    parts, rebuild = found
    new = [map_tensors(function, part) for _, part in parts]
    if all(a is b for a, (_, b) in zip(new, parts, strict=True)):
        return tree
    return rebuild(new)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Each tensor of the tree, in its order."""
    if isinstance(tree, Tensor):
        yield tree
        return
    found = children(tree)
    for _, part in found[0] if found else ():
        yield from tensors(part)


def batch_size(batch: Any) -> int | None:
    """The number of samples of a model's input; None where nothing tells.

    A tensor has them in dimension 0, a list of images or dicts is one sample an element, a tuple is
    several arguments of which the first that tells counts, a dict the same by name.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, list) and not _is_list_of_batches(batch):
        return len(batch)
    found = children(batch)
    sizes = (batch_size(part) for _, part in found[0]) if found else iter(())
    return next((n for n in sizes if n is not None), None)


def _is_list_of_batches(parts: list[Any]) -> bool:
    """[features of all samples, features of all samples, ...] instead of one part a sample."""
    if not parts or not all(isinstance(part, Tensor) and part.dim() >= 4 for part in parts):
        return False
    return len({part.shape[0] for part in parts}) == 1


def take(batch: Any, samples: Sequence[int], size: int) -> Any:
    """The input of these samples alone, in this order; what does not belong to samples stays."""
    if isinstance(batch, Tensor):
        if batch.dim() == 0 or batch.shape[0] != size:
            return batch
        return batch[torch.as_tensor(samples, device=batch.device)]
    if isinstance(batch, list) and len(batch) == size and not _is_list_of_batches(batch):
        # Each sample its own copy: a model may change its input.
        return [map_tensors(Tensor.clone, batch[i]) for i in samples]
    found = children(batch)
    if found is None:
        return batch
    parts, rebuild = found
    return rebuild([take(part, samples, size) for _, part in parts])


def cloned(tree: Any) -> Any:
    """A copy of the tensors, so that what a model does to them is not seen."""
    return map_tensors(lambda t: t.detach().clone(), tree)


def in_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in another dtype."""
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, tree)
