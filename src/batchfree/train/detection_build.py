"""What a detection config stands for: its network, and one from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchvision.models.detection import MaskRCNN

from batchfree._errors import ConfigError
from batchfree.data.detection import Categories
from batchfree.models import Norms, load_backbone, mask_rcnn
from batchfree.models.conventions import norm_modules, read_network
from batchfree.models.weights import check_finite
from batchfree.nn import Groups, NormLayer, norm_layer
from batchfree.train.detection_config import DetectionConfig, DetectorConfig


def build_detector(config: DetectorConfig, num_categories: int) -> tuple[MaskRCNN, list[str]]:
    """The network that a config names, its backbone's weights loaded, and remarks on these.

    Args:
        config: the network.
        num_categories: categories, without the background.

    Raises:
        ConfigError: options that the model or the norm does not take; weights that do not fit.
        DataError: weights that are missing or damaged.
    """
    model = build_random(config, num_categories)
    if config.weights is None:
        return model, []
    loaded = load_backbone(
        model,
        config.weights,
        on_mismatch="adopt" if config.adopt_conventions else "refuse",
    )
    return model, loaded.remarks


def build_random(config: DetectorConfig, num_categories: int) -> MaskRCNN:
    """The network that a config names, with random weights.

    Raises:
        ConfigError: options that the model or the norm does not take.
    """
    c = config
    body = {"width": c.width, "blocks_per_stage": c.blocks_per_stage, "stem": c.stem}
    try:
        return mask_rcnn(
            c.backbone,
            num_categories + 1,
            build_norms(c),
            neck=c.neck,
            box_head=c.box_head,
            cascade=c.cascade,
            freeze_at=c.freeze_at,
            initialization=c.initialization,
            zero_init_residual=c.zero_init_residual,
            fpn_channels=c.fpn_channels,
            head_channels=c.head_channels,
            fc_channels=c.fc_channels,
            anchor_sizes=c.anchor_sizes,
            aspect_ratios=c.aspect_ratios,
            min_size=c.min_size,
            max_size=c.max_size,
            image_mean=c.image_mean,
            image_std=c.image_std,
            backbone_options={k: v for k, v in body.items() if v is not None},
            rpn_batch_size_per_image=c.anchors_per_image,
            rpn_pre_nms_top_n_train=c.train_proposals,
            rpn_post_nms_top_n_train=c.train_proposals,
            rpn_pre_nms_top_n_test=c.test_proposals,
            rpn_post_nms_top_n_test=c.test_proposals,
            box_batch_size_per_image=c.rois_per_image,
            box_detections_per_img=c.detections_per_image,
        )
    except (TypeError, ValueError) as e:
        raise ConfigError(f"model: {e}") from e


def build_norms(config: DetectorConfig) -> Norms:
    """The norm of each part; `none` outside the backbone is a convolution with a bias."""
    groups = Groups(config.num_groups, config.channels_per_group)

    def layer(kind: Any) -> NormLayer:
        return norm_layer(kind, groups if kind == "gn" else None)

    heads = (config.fpn_norm, config.box_norm, config.mask_norm)
    return Norms(layer(config.norm), *(None if k == "none" else layer(k) for k in heads))


def describe_detector(config: DetectionConfig, categories: Categories) -> dict[str, Any]:
    """What a checkpoint says of its network, so that `load_detector` can build it again."""
    names = {"ids": list(categories.ids), "names": list(categories.names)}
    return {"config": config.to_dict(), "categories": names}


def apply_conventions(model: MaskRCNN, told: dict[str, Any]) -> None:
    """Gives a network the mean, standard deviation and eps that a checkpoint says it trained with.

    They differ from the config's where a run adopted those of its backbone's weights.
    """
    found = told.get("conventions")
    if not isinstance(found, dict):
        return
    model.transform.image_mean = [float(v) for v in found["mean"]]
    model.transform.image_std = [float(v) for v in found["std"]]
    for norm in norm_modules(model.backbone.body).values():
        norm.eps = float(found["eps"])


def load_detector(path: Path | str) -> tuple[MaskRCNN, DetectionConfig, Categories]:
    """The network of a detection checkpoint of this package, in evaluation mode.

    Args:
        path: `model.safetensors`, `checkpoints/last.ckpt` or `best.ckpt` of a run.

    Returns:
        The network, the run's config and the categories of its labels.

    Raises:
        DataError: a file that is missing, damaged, holds code, or NaN or infinite weights.
        ConfigError: a checkpoint of another kind of network.
    """
    state, told = read_network(Path(path))
    try:
        config = DetectionConfig.from_dict(told["config"])
        names = told["categories"]
        categories = Categories(tuple(names["ids"]), tuple(names["names"]))
    except (ConfigError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{path} is no detector of batchfree train: it does not say which network its weights "
            "are of; give model.safetensors or a checkpoint of a detection run"
        ) from e
    check_finite(state, Path(path))
    model = build_random(config.model, len(categories))
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ConfigError(f"{path} holds other weights than its config: {e}") from e
    apply_conventions(model, told)
    return model.eval(), config, categories
