"""Putting new modules into a model in the place of old ones, wherever the model holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from batchfree._errors import ConfigError
from batchfree.audit import wrapping
from batchfree.convert.batches import Forward, run
from batchfree.convert.kinds import is_uninitialised


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        ConfigError: it is no module, or a scripted one.
    """
    model = wrapping.unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            "a torch.jit module cannot be rewritten; convert the model before scripting"
        )
    return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; of lazy layers too.

    Raises:
        ConfigError: it holds something that cannot be copied.
    """
    try:
        return wrapping.copied(model)
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} cannot be copied: {first}; where it keeps an activation as an "
            "attribute, set that to None first"
        ) from error


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

    Hooks of the old ones move to the new ones.

    Returns:
        The model, or the new module where the model itself is replaced.
    """
    by_id = {id(old): module for old, module in new.items()}
    for old, module in new.items():
        for hooks in _HOOKS:
            getattr(module, hooks).update(getattr(old, hooks))
        module._is_full_backward_hook = old._is_full_backward_hook
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
        # Models keep layers in plain lists and attributes too, to call them from there.
        for name, value in list(vars(parent).items()):
            if name not in _OWN:
                vars(parent)[name] = _with_new(value, by_id)
    return by_id.get(id(model), model)


_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)
_OWN = (*_HOOKS, "_modules", "_parameters", "_buffers")


def _with_new(value: Any, by_id: dict[int, nn.Module], above: tuple[int, ...] = ()) -> Any:
    """The value with new modules in it; lists and dicts are changed in place."""
    if isinstance(value, nn.Module):
        return by_id.get(id(value), value)
    if id(value) in above:  # a list that holds itself
        return value
    inside = (*above, id(value))
    if type(value) is list:
        value[:] = [_with_new(item, by_id, inside) for item in value]
    elif type(value) is tuple:
        new = tuple(_with_new(item, by_id, inside) for item in value)
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    elif type(value) is dict:
        for key, item in value.items():
            value[key] = _with_new(item, by_id, inside)
    return value


def without_inplace(model: nn.Module) -> nn.Module:
    """Turns off what activations and dropout do in place.

    A hook on the layer before, as Opacus and others set them, forbids it. The result is the same
    except where model code calls such a module and ignores what it returns.
    """
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            vars(module)["inplace"] = False
    return model
