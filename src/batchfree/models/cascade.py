"""Cascade R-CNN's box heads on torchvision's: three stages, each trained on the boxes before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.ops import clip_boxes_to_image

IOUS = (0.5, 0.6, 0.7)
_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

Target = dict[str, Tensor]


class AgnosticPredictor(nn.Module):
    """Scores for each class, and one box for all of them.

    Args:
        in_channels: channels of the head's output.
        num_classes: categories and the background.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) to logits (R, classes) and deltas (R, 4)."""
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)


class CascadeRoIHeads(RoIHeads):
    """Three box heads at IoU 0.5, 0.6 and 0.7; the mask head is Mask R-CNN's.

    Each stage takes the boxes that the one before it regressed, labels them by its own IoU and
    regresses them again, one box for all classes. Losses of the stages are added; the gradient that
    reaches the shared features is divided by their number. In evaluation the boxes are the last
    stage's, the scores the stages' mean. Masks are trained on the first stage's regions.

    Source: Cai & Vasconcelos, "Cascade R-CNN", 2018; the details are detectron2's
    `CascadeROIHeads`.
    """

    @classmethod
    def from_heads(
        cls,
        heads: RoIHeads,
        make_box_head: Callable[[], nn.Module],
        fc_channels: int,
        num_classes: int,
    ) -> CascadeRoIHeads:
        """The cascade with the sampling, pooling and mask parts of `heads`.

        Args:
            heads: of a Mask R-CNN.
            make_box_head: makes the box head of a stage.
            fc_channels: what it puts out.
            num_classes: categories and the background.
        """
        cascade = cls(
            heads.box_roi_pool,
            nn.ModuleList(make_box_head() for _ in IOUS),
            nn.ModuleList(AgnosticPredictor(fc_channels, num_classes) for _ in IOUS),
            fg_iou_thresh=IOUS[0],
            bg_iou_thresh=IOUS[0],
            batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
            positive_fraction=heads.fg_bg_sampler.positive_fraction,
            bbox_reg_weights=_WEIGHTS[0],
            score_thresh=heads.score_thresh,
            nms_thresh=heads.nms_thresh,
            detections_per_img=heads.detections_per_img,
            mask_roi_pool=heads.mask_roi_pool,
            mask_head=heads.mask_head,
            mask_predictor=heads.mask_predictor,
        )
        cascade.coders = [BoxCoder(w) for w in _WEIGHTS]
        cascade.matchers = [Matcher(t, t, allow_low_quality_matches=False) for t in IOUS]
        return cascade

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As `torchvision.models.detection.roi_heads.RoIHeads`."""
        if not self.training:
            return self._detect(features, proposals, image_shapes), {}
        assert targets is not None
        # The mask head trains on the regions of the first stage, before they move.
        sampled, matched, labels, regression = self.select_training_samples(proposals, targets)
        first = [p.clone() for p in sampled], matched, labels
        losses: dict[str, Tensor] = {}
        boxes = sampled
        for stage in range(len(IOUS)):
            if stage:
                labels, regression = self._label(stage, boxes, targets)
            logits, deltas = self._predict(stage, features, boxes, image_shapes)
            classes = logits.shape[1]
            scores, box = fastrcnn_loss(logits, deltas.repeat(1, classes), labels, regression)
            losses[f"loss_classifier_{stage + 1}"] = scores
            losses[f"loss_box_reg_{stage + 1}"] = box
            boxes = self._move(stage, boxes, deltas, image_shapes)
        losses["loss_mask"] = self._mask_loss(features, image_shapes, targets, *first)
        return [], losses

    def _predict(
        self, stage: int, features: dict[str, Tensor], boxes: list[Tensor], shapes: Any
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, shapes)
        if self.training:
            pooled = _ScaledGradient.apply(pooled, 1 / len(IOUS))
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _move(
        self, stage: int, boxes: list[Tensor], deltas: Tensor, shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """The boxes after a stage's regression, inside their images, without a gradient."""
        moved = self.coders[stage].decode(deltas.detach().float(), boxes).reshape(-1, 4)
        parts = moved.split([len(b) for b in boxes])
        return [clip_boxes_to_image(b, s) for b, s in zip(parts, shapes, strict=True)]

    def _label(
        self, stage: int, boxes: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels and regression targets of all boxes by a stage's IoU; none is drawn or added."""
        self.proposal_matcher = self.matchers[stage]
        truth = [t["boxes"].to(boxes[0].dtype) for t in targets]
        matched, labels = self.assign_targets_to_proposals(
            boxes, truth, [t["labels"] for t in targets]
        )
        self.proposal_matcher = self.matchers[0]
        truth = [t if len(t) else t.new_zeros(1, 4) for t in truth]
        # A box that the clipping left without area has no finite target; it regresses nothing.
        for box, label in zip(boxes, labels, strict=True):
            label[((box[:, 2:] - box[:, :2]) <= 0).any(1)] = 0
        safe = [_with_area(b) for b in boxes]
        wanted = self.coders[stage].encode(
            [t[m] for t, m in zip(truth, matched, strict=True)], safe
        )
        return labels, list(wanted)

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        shapes: list[tuple[int, int]],
        targets: list[Target],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes = [b[p] for b, p in zip(boxes, positive, strict=True)]
        matched = [m[p] for m, p in zip(matched, positive, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, shapes)))
        masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
        return maskrcnn_loss(logits, boxes, masks, classes, matched)

    def _detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        total: Tensor | float = 0.0
        for stage in range(len(IOUS)):
            logits, deltas = self._predict(stage, features, boxes, shapes)
            total = total + logits.float().softmax(1)
            if stage < len(IOUS) - 1:
                boxes = self._move(stage, boxes, deltas, shapes)
        assert isinstance(total, Tensor)
        self.box_coder = self.coders[-1]
        # The softmax inside gives the mean of the stages' scores back.
        means = (total / len(IOUS)).log()
        found = self.postprocess_detections(means, deltas.repeat(1, means.shape[1]), boxes, shapes)
        self.box_coder = self.coders[0]
        results = [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(*found, strict=True)]
        pooled = self.mask_roi_pool(features, [r["boxes"] for r in results], shapes)
        logits = self.mask_predictor(self.mask_head(pooled))
        masks = maskrcnn_inference(logits, [r["labels"] for r in results])
        for result, mask in zip(results, masks, strict=True):
            result["masks"] = mask
        return results


def _with_area(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1e-3)], 1)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
