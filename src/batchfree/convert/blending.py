"""BatchNorms that turn into GroupNorms during fine-tuning: into a model, along, and out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from batchfree.convert.calibrate import Work
from batchfree.convert.layers import BlendNorm
from batchfree.convert.replacing import replaced


def blended(model: nn.Module, works: Sequence[Work]) -> nn.Module:
    """Puts a `BlendNorm` at alpha = 1 in the place of each GroupNorm, in place."""
    new: dict[nn.Module, nn.Module] = {}
    for work in works:
        source, norm = work.source, work.norm
        if source.running_mean is not None and source.running_var is not None:
            mean, variance = source.running_mean, source.running_var
        elif work.seen is not None:
            moments = work.seen.moments()
            mean, variance = (m.to(source.weight) for m in moments)
        else:
            continue
        blend = BlendNorm(norm, mean, variance, source.weight, source.bias, eps=source.eps)
        for parameter, own in ((blend.weight, norm.weight), (blend.bias, norm.bias)):
            parameter.requires_grad_(own is None or own.requires_grad)
        new[norm] = blend.train(norm.training)
    return replaced(model, new)


def blends(model: nn.Module) -> list[BlendNorm]:
    """The layers of a model that are annealed."""
    return [m for m in model.modules() if isinstance(m, BlendNorm)]


def set_alpha(model: nn.Module, alpha: float) -> int:
    """Sets how far each layer of `method="blend"` is BatchNorm: 1 is all, 0 is GroupNorm.

    Returns:
        How many layers.

    Raises:
        ValueError: alpha is not in 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0 to 1, got {alpha}")
    found = blends(model)
    with torch.no_grad():
        for layer in found:
            layer.alpha.fill_(alpha)
    return len(found)


def collapse(model: nn.Module) -> nn.Module:
    """Puts the plain GroupNorm of alpha = 0 in the place of each `BlendNorm`, in place.

    Its parameters are new tensors: an optimiser made before does not move them.

    Returns:
        The model, or the new layer where the model itself is one.

    Example:
        >>> import batchfree, torch
        >>> from batchfree.convert import collapse, set_alpha
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32))
        >>> _ = net(torch.randn(8, 3, 8, 8))
        >>> model = batchfree.convert(net.eval(), method="blend", anchor=None).model
        >>> set_alpha(model, 0.0), type(collapse(model)[1]).__name__
        (1, 'GroupNorm')
    """
    return replaced(model, {layer: layer.collapsed() for layer in blends(model)})
