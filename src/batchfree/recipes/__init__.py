"""Recipes: functions that return a complete config, one per published experiment.

`batchfree train NAME` runs one; `RECIPES` holds them by name. Needs `batchfree[train]`.
"""

from __future__ import annotations

from collections.abc import Callable

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.recipes.coco import (
    coco,
    coco_r50_frozen_bn_2x,
    coco_r50_frozen_bn_3x,
    coco_r50_gn_2x,
    coco_r50_gn_3x,
    coco_r101_frozen_bn_2x,
    coco_r101_frozen_bn_3x,
    coco_r101_gn_2x,
    coco_r101_gn_3x,
)
from batchfree.recipes.coco_norms import (
    coco_r50_bn_2x,
    coco_r50_c4_frozen_bn_2x,
    coco_r50_c4_gn_2x,
    coco_r50_c4_ln_2x,
    coco_r50_frozen_bn_4conv1fc_2x,
    coco_r50_frozen_bn_head_bn_2x,
    coco_r50_frozen_bn_head_gn_2x,
    coco_r50_gn_head_gn_2x,
    coco_r50_ln_2x,
    coco_r50_sync_bn_2x,
)
from batchfree.recipes.coco_scratch import (
    coco_r50_gn_scratch_3x,
    coco_r50_gn_scratch_9x,
    coco_r101_gn_cascade_scratch_9x,
    coco_r101_gn_scratch_3x,
    coco_r101_gn_scratch_9x,
    coco_x152_gn_cascade_scratch_9x,
)
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
from batchfree.recipes.scenes import (
    scenes,
    scenes_backbone,
    scenes_backbone_bn,
    scenes_backbone_gn,
    scenes_bn,
    scenes_bn_batch1,
    scenes_bn_finetuned,
    scenes_frozen_bn_finetuned,
    scenes_frozen_bn_head_bn_finetuned,
    scenes_frozen_bn_head_gn_finetuned,
    scenes_gn,
    scenes_gn_batch1,
    scenes_gn_finetuned,
    scenes_ln,
)
from batchfree.train import Config, DetectionConfig

__all__ = [
    "RECIPES",
    "coco",
    "digits_small",
    "get_recipe",
    "imagenet",
    "scenes",
    "scenes_backbone",
]

RECIPES: dict[str, Callable[[], Config | DetectionConfig]] = {
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
        coco_r50_frozen_bn_2x,
        coco_r50_frozen_bn_3x,
        coco_r50_gn_2x,
        coco_r50_gn_3x,
        coco_r101_frozen_bn_2x,
        coco_r101_frozen_bn_3x,
        coco_r101_gn_2x,
        coco_r101_gn_3x,
        coco_r50_frozen_bn_4conv1fc_2x,
        coco_r50_frozen_bn_head_gn_2x,
        coco_r50_gn_head_gn_2x,
        coco_r50_frozen_bn_head_bn_2x,
        coco_r50_bn_2x,
        coco_r50_sync_bn_2x,
        coco_r50_ln_2x,
        coco_r50_c4_frozen_bn_2x,
        coco_r50_c4_gn_2x,
        coco_r50_c4_ln_2x,
        coco_r50_gn_scratch_3x,
        coco_r50_gn_scratch_9x,
        coco_r101_gn_scratch_3x,
        coco_r101_gn_scratch_9x,
        coco_r101_gn_cascade_scratch_9x,
        coco_x152_gn_cascade_scratch_9x,
        scenes_backbone_gn,
        scenes_backbone_bn,
        scenes_gn,
        scenes_bn,
        scenes_bn_batch1,
        scenes_gn_batch1,
        scenes_ln,
        scenes_gn_finetuned,
        scenes_frozen_bn_finetuned,
        scenes_frozen_bn_head_gn_finetuned,
        scenes_frozen_bn_head_bn_finetuned,
        scenes_bn_finetuned,
    )
}


def get_recipe(name: str) -> Config | DetectionConfig:
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
