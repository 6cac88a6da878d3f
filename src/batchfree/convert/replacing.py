"""Putting new modules into a model in the place of old ones, wherever the model holds them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from batchfree._errors import ConfigError
from batchfree.convert.batches import Forward, run
from batchfree.convert.kinds import is_uninitialised


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        ConfigError: it is no module, or a scripted one.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, parallel) else model._orig_mod
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            "a torch.jit module cannot be rewritten; convert the model before scripting"
        )
    return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; of lazy layers too."""
    # UninitializedBuffer cannot be copied by itself.
    known = {
        id(b): nn.UninitializedBuffer(device=b.device, dtype=b.dtype)  # type: ignore[call-arg]
        for b in model.buffers()
        if isinstance(b, nn.UninitializedBuffer)
    }
    return copy.deepcopy(model, known)


def initialised(model: nn.Module, batch: Any, forward: Forward) -> nn.Module:
    """The model, or where it is lazy a copy of it that has seen the batch once, in eval mode."""
    if not any(is_uninitialised(m) for m in model.modules()):
        return model
    model = copied(model)
    modes = [(m, m.training) for m in model.modules()]
    run(model.eval(), batch, forward)
    for module, training in modes:
        module.training = training
    return model


def replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts each new module in the place of its old one, in place; shared modules stay shared.

    Returns:
        The model, or the new module where the model itself is replaced.
    """
    by_id = {id(old): module for old, module in new.items()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
        # Models keep layers in plain lists and attributes too, to call them from there.
        for name, value in vars(parent).items():
            if name != "_modules":
                _replace_in(vars(parent), name, value, by_id)
    return by_id.get(id(model), model)


def _replace_in(holder: Any, key: Any, value: Any, by_id: dict[int, nn.Module]) -> None:
    if id(value) in by_id:
        holder[key] = by_id[id(value)]
    elif type(value) is list:
        for i, item in enumerate(value):
            if isinstance(item, nn.Module):
                _replace_in(value, i, item, by_id)
    elif type(value) is tuple and any(id(item) in by_id for item in value):
        holder[key] = tuple(by_id.get(id(item), item) for item in value)
    elif type(value) is dict:
        for k, item in value.items():
            if isinstance(item, nn.Module):
                _replace_in(value, k, item, by_id)


def without_inplace(model: nn.Module) -> nn.Module:
    """Turns off what activations and dropout do in place: the result is the same.

    A hook on the layer before, as Opacus and others set them, forbids it.
    """
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            vars(module)["inplace"] = False
    return model
