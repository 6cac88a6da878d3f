"""Calibration inputs: read once, checked, and run through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from batchfree._errors import ConfigError, DataError
from batchfree.audit.tree import batch_size, map_tensors, take, tensors

Forward = Callable[[nn.Module, Any], Any]


# Sides below which no detector's image lies; with fewer, (1 or 3, C, L) is a batch of sequences.
_LEAST_SIDE = 8


def call_model(model: nn.Module, batch: Any) -> Any:
    """model(batch); a dict is spread. A tuple arrives as one argument: give another `forward=`."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(batch)


def _reading(first: Any, data: Any) -> Callable[[Any], Any]:
    """How to take the inputs out of each batch of a loader; its first batch decides for all."""
    if getattr(data, "collate_fn", None) is default_collate:
        return _stacked  # never makes a list of images
    if isinstance(first, list) and _is_list_of_images(first):
        return _as_it_is
    if isinstance(first, (tuple, list)) and first:
        images = isinstance(first[0], tuple) and _is_list_of_images(first[0])
        return _first_as_list if images else _first
    return _first


def _as_it_is(batch: Any) -> Any:
    return batch


def _first(batch: Any) -> Any:
    """Of (inputs, labels) the inputs."""
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _first_as_list(batch: Any) -> Any:
    """Of (images, targets) as torchvision's references collate them, tuples both, the images."""
    found = _first(batch)
    return list(found) if isinstance(found, tuple) else found


def _stacked(batch: Any) -> Any:
    """Of what `default_collate` made, to which ((a, b), label) is [[a, b], label]."""
    return _as_arguments(_first(batch))


def _as_arguments(part: Any) -> Any:
    if isinstance(part, list) and any(isinstance(t, Tensor) for t in part):
        return tuple(part)
    return part


def _is_list_of_images(items: Any) -> bool:
    """Whether it is what detectors take: tensors (1 or 3, H, W), sides of 8 pixels or more."""
    return bool(items) and all(
        isinstance(t, Tensor)
        and t.dim() == 3
        and t.shape[0] in (1, 3)
        and min(t.shape[1:]) >= _LEAST_SIDE
        for t in items
    )


def read_batches(data: Any, samples: int, chunk: int) -> list[Any]:
    """The first `samples` samples in batches of at most `chunk`.

    Args:
        data: a tensor (N, ...), one batch as the model takes it (a dict, or a list of images), or
            an iterable of batches; of a tuple or list (inputs, labels) the first is taken. Several
            inputs come as ((a, b), labels) or as a dict; the tuple goes to `forward` as it is.
            Images are a list of tensors (1 or 3, H, W), 8 pixels or more a side, or
            (tuple of images, targets). The first batch decides for all, and a DataLoader that
            collates as PyTorch does by default holds no list of images. So batches (1, C, L) or
            (3, C, L) of sequences from elsewhere come as tuples (x, y) or as one tensor.
        samples: how many at most.
        chunk: the largest batch.

    Raises:
        DataError: no sample, or values that are NaN or infinite.
        ConfigError: something that holds no tensor.
    """
    single = isinstance(data, (Tensor, dict)) or (
        isinstance(data, list) and _is_list_of_images(data)
    )
    if not single and not isinstance(data, Iterable):
        raise ConfigError(
            f"calibration data is a tensor or an iterable of batches, got {type(data).__name__}"
        )
    found: list[Any] = []
    seen = 0
    reading: Callable[[Any], Any] | None = _as_it_is if single else None
    for raw in [data] if single else data:
        if reading is None:
            reading = _reading(raw, data)
        batch = reading(raw)
        if next(tensors(batch), None) is None:
            raise ConfigError(f"a calibration batch holds no tensor, got {type(batch).__name__}")
        size = batch_size(batch)
        if size is None:
            raise ConfigError("a calibration batch does not tell its number of samples")
        size = min(size, samples - seen)
        for start in range(0, size, chunk):
            at = range(start, min(start + chunk, size))
            found.append(take(batch, list(at), batch_size(batch) or 0))
        seen += size
        if seen >= samples:
            break
    if seen == 0:
        raise DataError("the calibration data is empty: the loader gave no sample")
    for number, batch in enumerate(found):
        for t in tensors(batch):
            if t.is_floating_point() and not bool(t.isfinite().all()):
                raise DataError(
                    f"calibration batch {number} holds NaN or infinity; look at the loading and "
                    "the normalisation of the images"
                )
    return found


def split_batches(
    calibration: Any, held_out: Any, samples: int, chunk: int
) -> tuple[list[Any], list[Any]]:
    """Batches to fit on and batches to measure on, the latter set apart where they are not given.

    Raises:
        ConfigError, DataError: as `read_batches`.
    """
    # The drift keeps every layer's output of a batch, of both models.
    few = min(chunk, 8)
    apart = [] if held_out is None else read_batches(held_out, samples, few)
    if calibration is None:
        return [], apart
    if apart:
        return read_batches(calibration, samples, chunk), apart
    ones = read_batches(calibration, samples + 32, 1)
    spare = max(len(ones) - samples, min(32, len(ones) // 8))
    fitted = ones[: len(ones) - spare]
    return _joined(fitted, chunk), _joined(ones[len(ones) - spare :], few)


def _joined(ones: Sequence[Any], chunk: int) -> list[Any]:
    """Batches of single samples put together, where their shapes agree."""
    batches: list[list[Any]] = []
    for one in ones:
        alike = bool(batches) and len(batches[-1]) < chunk
        if alike and not isinstance(one, list):
            shapes = ([t.shape for t in tensors(x)] for x in (batches[-1][0], one))
            alike = next(shapes) == next(shapes)
        if alike:
            batches[-1].append(one)
        else:
            batches.append([one])
    return [_together(parts) for parts in batches]


def _together(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _together([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [item for part in parts for item in part]
    if isinstance(first, tuple):
        return tuple(_together(list(items)) for items in zip(*parts, strict=True))
    return first


def count(batches: list[Any]) -> int:
    """The number of samples."""
    return sum(batch_size(b) or 0 for b in batches)


def moved(batch: Any, model: nn.Module) -> Any:
    """The batch on the model's device, in its floating-point dtype; a copy."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)

    def move(t: Tensor) -> Tensor:
        t = t.detach().clone()
        if like is None:
            return t
        return t.to(like.device, like.dtype if t.is_floating_point() else t.dtype)

    return map_tensors(move, batch)


def run(model: nn.Module, batch: Any, forward: Forward) -> Any:
    """A forward in eval mode without gradients.

    Raises:
        ConfigError: the model cannot run on the batch.
    """
    try:
        with torch.no_grad():
            return forward(model, moved(batch, model))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, (ConfigError, DataError)):
            raise
        shapes = ", ".join(str(tuple(t.shape)) for t in list(tensors(batch))[:3])
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the model cannot run on calibration data of shape {shapes}: {type(error).__name__}: "
            f"{first}; where it is called otherwise than model(batch), give forward=, a function "
            "of the model and the batch; of a loader's (a, b) the batch is a alone, so several "
            "inputs come as ((a, b), labels) or as a dict"
        ) from error
