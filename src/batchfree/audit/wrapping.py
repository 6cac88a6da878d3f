"""A model without what it is wrapped in, and copies of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from batchfree._errors import ConfigError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        ConfigError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, parallel) else model._orig_mod
        model = inner
    return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; of lazy layers too, whose uninitialised buffers cannot be copied themselves."""
    known = {
        id(b): nn.UninitializedBuffer(device=b.device, dtype=b.dtype)  # type: ignore[call-arg]
        for b in model.buffers()
        if isinstance(b, nn.UninitializedBuffer)
    }
    return copy.deepcopy(model, known)
