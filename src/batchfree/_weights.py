"""Reading a file of weights without running what may be in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from batchfree._errors import DataError

METADATA_KEY = "batchfree"
"""Of what this package writes into the metadata of its safetensors files."""


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state_dict in a file, out of a training checkpoint too, and what the file says of itself.

    Args:
        path: a `.safetensors` file, or one of `torch.save` with tensors and plain values only
            (`weights_only=True`).

    Raises:
        DataError: a file that is missing, damaged, or holds code or no state_dict.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint at {str(path)!r}")
    told: Any = None
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
                state: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} holds no weights that can be read safely: it is damaged, or more than tensors "
            f"is pickled in it, which can run code when it is read ({type(error).__name__}); save "
            "the state_dict, with safetensors or torch.save"
        ) from error
    if isinstance(state, dict) and isinstance(state.get(METADATA_KEY), dict):
        told = state[METADATA_KEY]
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(k, str) for k in state):
        raise DataError(f"{path} holds no state_dict: names and tensors were expected")
    return state, told if isinstance(told, dict) else {}
