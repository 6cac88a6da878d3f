"""Converted models as files: weights with a manifest, from which the model is built again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchfree._errors import ConfigError, DataError
from batchfree._files import write_atomically
from batchfree._naming import load_model
from batchfree.convert.kinds import Source, replacement
from batchfree.convert.layers import BlendNorm, ConvertedNorm
from batchfree.convert.plan import ConversionPlan
from batchfree.convert.plan_reading import check_eps
from batchfree.convert.replacing import copied, replaced, without_inplace

SCHEMA = "batchfree-converted-1"
_KEY = "batchfree"
# A manifest names what is called to build a model: only libraries' own lists of architectures.
_TRUSTED = ("torchvision:", "timm:", "batchfree.recipes.")


def save_converted(
    path: str | Path,
    model: nn.Module,
    plan: ConversionPlan,
    *,
    source: str,
    method: str,
    calibration: int = 0,
    anchor: float | None = None,
    preprocessing: str = "",
) -> None:
    """Writes a converted model, fine-tuned or not, as safetensors with a manifest; whole or not.

    Args:
        path: of the file.
        model: the converted model.
        plan: by which it was converted.
        source: what builds the BatchNorm architecture: `torchvision:NAME`, `timm:NAME`, or another
            name, for which `load_converted` has to be given the model.
        method: how it was converted.
        calibration: samples that it was calibrated on.
        anchor: as for `convert`.
        preprocessing: in words, what its inputs have to go through.

    Raises:
        ConfigError: a layer of the plan is not in the model, or its state holds more than tensors.
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {}
    for row in plan.converted:
        module = modules.get(row.path)
        if not isinstance(module, (nn.GroupNorm, BlendNorm)):
            raise ConfigError(
                f"the model has no GroupNorm at {row.path!r}, where the plan has one: it is of "
                "another conversion"
            )
        scaled = isinstance(module, (ConvertedNorm, BlendNorm)) and module.scale is not None
        layers[row.path] = {
            "groups": module.num_groups,
            "scaled": scaled,
            "affine": getattr(module, "weight", None) is not None,
            "blend": isinstance(module, BlendNorm),
            "eps": module.group_eps if isinstance(module, BlendNorm) else module.eps,
        }
    from batchfree import __version__

    manifest = {
        "schema": SCHEMA,
        "source": source,
        "method": method,
        "anchor": anchor,
        "calibration": calibration,
        "preprocessing": preprocessing,
        "batchfree": __version__,
        "torch": torch.__version__,
        "inplace": any(getattr(m, "inplace", None) is True for m in model.modules()),
        "layers": layers,
        "plan": json.loads(plan.to_json()),
    }
    # Clones: tensors that modules share would not be written twice.
    state = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"{key!r} of the state_dict is a {type(value).__name__}: safetensors holds tensors"
            )
        state[key] = value.detach().cpu().clone().contiguous()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(state, {_KEY: json.dumps(manifest)}))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What a file of `save_converted` says of itself.

    Raises:
        DataError: the file is missing, damaged, or of something else.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no converted model at {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except Exception as error:  # a damaged file fails in as many ways as it has parts
        raise DataError(
            f"{path} is no safetensors file, or it is damaged: {type(error).__name__}; pickled "
            "checkpoints are not read, since they can hold code"
        ) from error
    try:
        manifest: dict[str, Any] = json.loads(text or "")
        if manifest["schema"] != SCHEMA or not isinstance(manifest["layers"], dict):
            raise ValueError(f"schema {manifest['schema']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} has no manifest of a conversion; `batchfree convert --output` writes one"
        ) from error
    return manifest


def load_converted(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The converted model of a file, built anew.

    Args:
        path: of `save_converted`, `ConversionResult.save` or `batchfree convert --output`.
        model: the BatchNorm architecture, with any weights; it is not touched. By default it is
            built by the manifest's name, which has to be one of torchvision's or timm's.

    Returns:
        The model, in train mode as a new one, in the dtype that it was saved in.

    Raises:
        DataError: the file is missing, damaged, or holds no converted model, or weights that are
            NaN or infinite.
        ConfigError: the weights do not fit the architecture, or the manifest does not name one that
            is built unasked.

    Example:
        >>> import batchfree, tempfile, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32))
        >>> _ = net(torch.randn(8, 3, 8, 8))
        >>> result = batchfree.convert(net.eval())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.save(f"{folder}/net.safetensors", source="mine")
        ...     loaded = batchfree.load_converted(f"{folder}/net.safetensors", model=net)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> bool((loaded(x) == result.model(x)).all())
        True
    """
    from safetensors.torch import load_file

    manifest = read_manifest(path)
    built = model is None
    if model is None:
        name = str(manifest.get("source"))
        if not name.startswith(_TRUSTED):
            raise ConfigError(
                f"{path} is a conversion of {name!r}, which is not built unasked: give the "
                "BatchNorm architecture, load_converted(path, model=...), and fine-tune it in "
                "Python; commands start from files of torchvision:, timm: and recipes' networks"
            )
        model = load_model(name)
    else:
        model = copied(model).train()
    try:
        plan = ConversionPlan.from_json(json.dumps(manifest["plan"]))
        layers: dict[str, Any] = manifest["layers"]
        for row in plan.converted:
            _check_layer(layers[row.path], row.path)
            row.groups = layers[row.path]["groups"]
        new = {
            source.module: _rebuilt(source, layers[row.path]) for row, source in plan.sources(model)
        }
    except (_Damaged, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the manifest of {path} is damaged: {_worded(error)}") from error
    model = replaced(model, new)
    if not manifest.get("inplace"):
        without_inplace(model)
    state = load_file(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DataError(
                f"{name!r} in {path} holds NaN or infinity: the training diverged, perhaps"
            )
    floating = {t.dtype for t in state.values() if t.is_floating_point()}
    if len(floating) == 1:
        model.to(floating.pop())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        hint = "; give the architecture itself, model=" * built
        raise ConfigError(
            f"the weights in {path} do not fit this architecture: {last}{hint}"
        ) from error
    return model


def _worded(error: Exception) -> str:
    return str(error) if isinstance(error, _Damaged) else repr(error)


class _Damaged(ValueError):
    """A field of a manifest that nothing can be built with."""


def _check_layer(kept: dict[str, Any], path: str) -> None:
    """The fields of a layer that a manifest tells; whether groups fit, the plan says."""
    if type(kept["groups"]) is not int:
        raise _Damaged(f"layer {path!r}: groups must be int, got {kept['groups']!r}")
    for name in ("scaled", "affine", "blend"):
        if type(kept[name]) is not bool:
            raise _Damaged(f"layer {path!r}: {name} must be true or false, got {kept[name]!r}")
    try:
        check_eps(kept["eps"], path)
    except ConfigError as error:
        raise _Damaged(str(error)) from error


def _rebuilt(source: Source, kept: dict[str, Any]) -> nn.Module:
    norm = replacement(source, kept["groups"], scaled=kept["scaled"], bare=not kept["affine"])
    norm.eps = float(kept["eps"])
    if not kept["blend"]:
        return norm
    mean, variance = source.running_mean, source.running_var
    like = source.weight
    mean = torch.zeros_like(like) if mean is None else mean
    variance = torch.ones_like(like) if variance is None else variance
    return BlendNorm(norm, mean, variance, like, source.bias, eps=source.eps)
