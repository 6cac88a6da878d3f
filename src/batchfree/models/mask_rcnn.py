"""Mask R-CNN with a norm of one's choice in each part, assembled from torchvision's parts.

Backbone, FPN, box head and mask head take their norms separately, because their batches differ: the
backbone sees one or two images, the heads many regions of the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, RPNHead, TwoMLPHead
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor as BoxPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from batchfree._checks import check_choice
from batchfree.models.cascade import CascadeRoIHeads
from batchfree.models.detection_c4 import c4_parts
from batchfree.models.detection_init import Initialization, initialize
from batchfree.models.detection_transform import DetectionTransform
from batchfree.models.resnet import build_model
from batchfree.nn import FrozenBatchNorm, NormLayer, norm_layer

BoxHead = Literal["4conv1fc", "2fc"]
Neck = Literal["fpn", "c4"]
STAGES = 5
_BOX_SIZE, _MASK_SIZE = 7, 14
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Norms:
    """The norm of each part; `None` is a convolution with a bias instead.

    Attributes:
        backbone: of the ResNet; it has to be given, `norm_layer("none")` leaves it without one.
        fpn: of the lateral and output convolutions of the FPN.
        box_head: of the convolutions of the box head; a head of fully connected layers has none.
        mask_head: of the convolutions of the mask head.

    Example:
        >>> Norms.everywhere(norm_layer("gn")).box_head.kind
        'gn'
    """

    backbone: NormLayer = field(default_factory=lambda: norm_layer("gn"))
    fpn: NormLayer | None = None
    box_head: NormLayer | None = None
    mask_head: NormLayer | None = None

    @classmethod
    def everywhere(cls, norm: NormLayer) -> Norms:
        """The same norm in all four parts."""
        return cls(norm, norm, norm, norm)


def mask_rcnn(
    backbone: str = "resnet50",
    num_classes: int = 91,
    norms: Norms | None = None,
    *,
    neck: Neck = "fpn",
    box_head: BoxHead = "4conv1fc",
    cascade: bool = False,
    freeze_at: int = 0,
    initialization: Initialization = "detectron",
    zero_init_residual: bool = False,
    fpn_channels: int = 256,
    head_channels: int = 256,
    fc_channels: int = 1024,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
    backbone_options: dict[str, Any] | None = None,
    **options: Any,
) -> MaskRCNN:
    """Mask R-CNN on a ResNet, with random weights.

    With `Norms(norm_layer("frozen_bn"))` and `box_head="2fc"` it is torchvision's
    `maskrcnn_resnet50_fpn`, names and all, so that its checkpoints load. Every ResNet has the
    stride in the 3x3 convolution of its blocks, as the paper's and torchvision's have.

    Args:
        backbone: a model of `batchfree.models.MODELS`.
        num_classes: categories and the background, which is class 0.
        norms: of each part; Group Norm with 32 groups in all of them by default.
        neck: `"fpn"`, or `"c4"` for regions pooled from the fourth stage's input, whose heads are
            the ResNet's own last stage.
        box_head: the paper's four convolutions and a fully connected layer, or the older two fully
            connected layers; not for `"c4"`.
        cascade: three box heads at IoU 0.5, 0.6 and 0.7 (`CascadeRoIHeads`).
        freeze_at: stages that do not train: 0 none, 1 the stem, 2 the stem and the first stage, to
            5. BatchNorms in them freeze with their statistics. From scratch it has to be 0: frozen
            random layers cost 3.3 AP.
        initialization: of FPN and heads: Detectron's or torchvision's.
        zero_init_residual: gamma 0 in the last norm of each block; it hurts detection from scratch.
        fpn_channels: channels of the FPN's maps.
        head_channels: channels of the heads' convolutions.
        fc_channels: channels of the fully connected layers.
        anchor_sizes: sides of anchors in pixels; one for each of the FPN's five levels, or all at
            the one level of `"c4"`.
        aspect_ratios: height over width of the anchors.
        min_size: the shorter side that images are scaled to, pixels; of several, training draws
            one for each image and evaluation takes the last.
        max_size: what the longer side may come to, pixels.
        image_mean: of the backbone's training, RGB in [0, 1].
        image_std: likewise.
        backbone_options: of the model, such as `width` of `resnet_small`.
        options: of torchvision's `MaskRCNN`: `box_batch_size_per_image`, `rpn_post_nms_top_n_train`
            and the others.

    Returns:
        torchvision's `MaskRCNN`. In training it takes images, a list of (3, H, W) float tensors in
        [0, 1], and targets, and returns a dict of losses; in evaluation it takes images and returns
        dicts of boxes (N, 4), labels (N,), scores (N,) and masks (N, 1, H, W).

    Raises:
        ValueError: an unknown name, or options that exclude each other.

    Source: He et al., "Mask R-CNN", 2017; Wu & He 2018, section 4.2; Detectron's `GN` configs.

    Example:
        >>> import torch
        >>> small = {"width": 16, "stem": "7x7"}
        >>> net = mask_rcnn("resnet_small", 11, fpn_channels=32, head_channels=32, fc_channels=64,
        ...                 min_size=64, backbone_options=small).eval()
        >>> sorted(net([torch.rand(3, 64, 64)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    check_choice(neck, get_args(Neck), "neck")
    check_choice(box_head, get_args(BoxHead), "box_head")
    check_choice(initialization, get_args(Initialization), "initialization")
    if not 0 <= freeze_at <= STAGES:
        raise ValueError(f"freeze_at must be 0 (nothing) to {STAGES} (all stages), got {freeze_at}")
    sides = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    _check_sizes(num_classes, sides, max_size, anchor_sizes, aspect_ratios, image_std)
    norms = norms if norms is not None else Norms.everywhere(norm_layer("gn"))
    body = build_model(
        backbone,
        num_classes=1,
        norm=norms.backbone,
        zero_init_residual=zero_init_residual,
        **(backbone_options or {}),
    )
    del body.fc
    if hasattr(body, "relu"):  # the norm before it activates
        body.relu = nn.Identity()
    freeze(body, freeze_at)
    heads = {
        "head_channels": head_channels,
        "fc_channels": fc_channels,
        "num_classes": num_classes,
    }
    sizes = tuple(anchor_sizes)
    levels: tuple[tuple[int, ...], ...]
    if neck == "c4":
        if cascade:
            raise ValueError("cascade heads are built on the FPN: take neck='fpn'")
        levels, parts = (sizes,), c4_parts(body, num_classes, head_channels)
    else:
        levels = tuple((s,) for s in sizes)
        if len(levels) != STAGES:
            raise ValueError(
                f"anchor_sizes must name one side for each of the FPN's {STAGES} levels, got "
                f"{list(sizes)}"
            )
        parts = _fpn_parts(body, norms, box_head, fpn_channels, **heads)
    anchors = AnchorGenerator(levels, (tuple(aspect_ratios),) * len(levels))
    model = MaskRCNN(
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(parts["backbone"].out_channels, anchors.num_anchors_per_location()[0]),
        min_size=sides,
        max_size=max_size,
        image_mean=list(image_mean),
        image_std=list(image_std),
        **parts,
        **options,
    )
    model.transform = DetectionTransform.like(model.transform)
    if cascade:
        model.roi_heads = CascadeRoIHeads.from_heads(
            model.roi_heads,
            lambda: _box_head(box_head, fpn_channels, norms, head_channels, fc_channels),
            fc_channels,
            num_classes,
        )
    initialize(model, initialization)
    return model


def _check_sizes(
    num_classes: int,
    min_size: tuple[int, ...],
    max_size: int,
    anchor_sizes: Sequence[int],
    aspect_ratios: Sequence[float],
    image_std: Sequence[float],
) -> None:
    if num_classes < 2:
        raise ValueError(
            f"num_classes counts the categories and the background, so 2 is the least, got "
            f"{num_classes}"
        )
    positive = {
        "min_size": min_size,
        "max_size": (max_size,),
        "anchor_sizes": anchor_sizes,
        "aspect_ratios": aspect_ratios,
        "image_std": image_std,
    }
    for name, values in positive.items():
        if len(values) == 0 or not all(value > 0 for value in values):
            got = values[0] if len(values) == 1 else list(values)
            raise ValueError(f"{name} must be above 0, got {got}")


def freeze(body: nn.Module, freeze_at: int) -> None:
    """Stops the first stages of a ResNet from training, with their BatchNorms' statistics.

    Args:
        body: a ResNet.
        freeze_at: as `mask_rcnn` takes it.
    """
    stages = [["conv1", "bn1"], *([f"layer{i}"] for i in range(1, STAGES))]
    for name in (n for names in stages[:freeze_at] for n in names):
        stage = getattr(body, name, None)
        if stage is None:
            continue
        stage.requires_grad_(False)
        setattr(body, name, _frozen(stage))


def _frozen(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        frozen = FrozenBatchNorm(
            module.num_features, module.eps, activation=getattr(module, "activation", None)
        )
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, _frozen(child))
    return module


def _fpn_parts(
    body: nn.Module,
    norms: Norms,
    box_head: BoxHead,
    fpn_channels: int,
    head_channels: int,
    fc_channels: int,
    num_classes: int,
) -> dict[str, Any]:
    """What torchvision's MaskRCNN is made of, on an FPN."""
    maps = [str(i) for i in range(4)]
    backbone = BackboneWithFPN(
        body,
        return_layers={f"layer{i + 1}": m for i, m in enumerate(maps)},
        in_channels_list=stage_channels(body),
        out_channels=fpn_channels,
        norm_layer=norms.fpn,
    )
    mask_head = MaskRCNNHeads(fpn_channels, [head_channels] * 4, 1, norm_layer=norms.mask_head)
    activate_in_norm(mask_head)
    return {
        "backbone": backbone,
        "box_roi_pool": MultiScaleRoIAlign(maps, _BOX_SIZE, sampling_ratio=2),
        "box_head": _box_head(box_head, fpn_channels, norms, head_channels, fc_channels),
        "box_predictor": BoxPredictor(fc_channels, num_classes),
        "mask_roi_pool": MultiScaleRoIAlign(maps, _MASK_SIZE, sampling_ratio=2),
        "mask_head": mask_head,
        "mask_predictor": MaskRCNNPredictor(head_channels, head_channels, num_classes),
    }


def _box_head(
    kind: BoxHead, in_channels: int, norms: Norms, head_channels: int, fc_channels: int
) -> nn.Module:
    if kind == "2fc":
        return TwoMLPHead(in_channels * _BOX_SIZE**2, fc_channels)
    head = FastRCNNConvFCHead(
        (in_channels, _BOX_SIZE, _BOX_SIZE),
        [head_channels] * 4,
        [fc_channels],
        norm_layer=norms.box_head,
    )
    activate_in_norm(head)
    return head


def stage_channels(body: Any) -> list[int]:
    """Channels that the four stages of a ResNet of this package put out."""
    if hasattr(body, "out_channels"):
        return list(body.out_channels)
    return [body.inplanes >> i for i in (3, 2, 1, 0)]


def activate_in_norm(head: nn.Module) -> None:
    """Moves each ReLU that follows a norm of this package into the norm's own call."""
    for block in head.modules():
        if isinstance(block, nn.Sequential) and len(block) == 3 and hasattr(block[1], "activation"):
            block[1].activation = "relu"  # type: ignore[assignment]
            block[2] = nn.Identity()
