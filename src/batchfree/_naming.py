"""A model by its name: `torchvision:NAME`, `timm:NAME`, `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree._weights import read_weights


def load_model(name: str, checkpoint: Path | None = None) -> nn.Module:
    """Builds a model, with random weights or those of a checkpoint.

    Args:
        name: `torchvision:resnet50`, `timm:resnet50`, or `package.module:function`, a function
            without arguments that returns a module; the current folder counts as a place for it.
        checkpoint: weights; a `.safetensors` file, or one of `torch.save` with tensors and plain
            values only (`weights_only=True`).

    Raises:
        ConfigError: there is no such model, or the weights are of another one.
        DataError: the checkpoint is missing, damaged, or holds code.
    """
    library, colon, word = name.partition(":")
    if not colon or not library or not word:
        raise ConfigError(
            f"a model is named torchvision:NAME, timm:NAME or package.module:function, got {name!r}"
        )
    model = _BUILDERS.get(library, _by_function)(library, word)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def _of_torchvision(library: str, name: str) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{suggest(name, known)}")
    takes = inspect.signature(models.get_model_builder(name)).parameters
    extra = {"weights_backbone": None} if "weights_backbone" in takes else {}
    model: nn.Module = models.get_model(name, weights=None, **extra)
    return model


def _of_timm(library: str, name: str) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(
            'timm is not installed, which timm:NAME needs: pip install "batchfree[zoo]"'
        ) from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _by_function(module: str, function: str) -> nn.Module:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise ConfigError(f"there is no module {module!r} to take a model from") from error
        raise
    maker = getattr(found, function, None)
    if maker is None:
        raise ConfigError(f"{module} has no function {function!r}{suggest(function, vars(found))}")
    if not callable(maker):
        raise ConfigError(f"{module}:{function} is a {type(maker).__name__}, not a function")
    try:
        model = maker()
    except Exception as error:
        raise ConfigError(
            f"{module}:{function}() raises {type(error).__name__}: {error}; it is called without "
            "arguments and has to return a module"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{module}:{function} gave a {type(model).__name__}, not a module")
    return model


_BUILDERS = {"torchvision": _of_torchvision, "timm": _of_timm}


def _shortened(error: Exception) -> str:
    last = str(error).strip().splitlines()[-1].strip()
    return last if len(last) <= 300 else f"{last[:300]} ..."


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The state without what torch.compile, anywhere, and DataParallel put into the names."""
    state = {
        ".".join(part for part in name.split(".") if part != "_orig_mod"): value
        for name, value in state.items()
    }
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a checkpoint of tensors and plain values into a model.

    One of a model that was in DataParallel or compiled, whole or in parts, loads as its own.

    Raises:
        ConfigError: the weights are of another model.
        DataError: the checkpoint is missing, damaged, or holds code.
    """
    state, _ = read_weights(path)
    if state.keys() != model.state_dict().keys():
        state = _unwrapped(state)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the weights in {path} are of another model: {_shortened(error)}"
        ) from error
