"""Recipes: functions that return a complete `Config`, one per published experiment.

`batchfree train NAME` runs one; `RECIPES` holds them by name. Needs `batchfree[train]`.
"""

from __future__ import annotations

from collections.abc import Callable

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.recipes.digits import (
    digits_converted,
    digits_small,
    digits_small_bn,
    digits_small_gn,
    digits_small_gn_ws,
    digits_small_in,
    digits_small_ln,
)
from batchfree.recipes.imagenet import (
    imagenet,
    imagenet_r50_bn,
    imagenet_r50_converted,
    imagenet_r50_gn,
    imagenet_r50_in,
    imagenet_r50_ln,
    imagenet_r101_bn,
    imagenet_r101_gn,
)
from batchfree.train import Config

__all__ = ["RECIPES", "digits_small", "get_recipe", "imagenet"]

RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        digits_small_bn,
        digits_small_gn,
        digits_small_gn_ws,
        digits_small_in,
        digits_small_ln,
        digits_converted,
        imagenet_r50_bn,
        imagenet_r50_gn,
        imagenet_r50_in,
        imagenet_r50_ln,
        imagenet_r101_bn,
        imagenet_r101_gn,
        imagenet_r50_converted,
    )
}


def get_recipe(name: str) -> Config:
    """The config of a recipe by its name.

    Raises:
        ConfigError: there is no such recipe.

    Example:
        >>> get_recipe("imagenet_r50_gn").model.norm
        'gn'
        >>> get_recipe("imagenet_r50_gm")
        Traceback (most recent call last):
        ...
        batchfree._errors.ConfigError: there is no recipe 'imagenet_r50_gm'; did you mean \
'imagenet_r50_gn'? `batchfree train --list` names them all
    """
    if name not in RECIPES:
        hint = suggest(name, RECIPES) or "; "
        raise ConfigError(
            f"there is no recipe {name!r}{hint if hint != '; ' else ';'} "
            "`batchfree train --list` names them all"
        )
    return RECIPES[name]()
