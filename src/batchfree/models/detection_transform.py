"""torchvision's transform inside a detector, for images of any aspect ratio."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class DetectionTransform(GeneralizedRCNNTransform):
    """torchvision's, where no side of an image is scaled to less than a pixel.

    torchvision rounds sides down, so that an image more than `max_size` times as long as it is wide
    would come out with a side of none. Such an image's shorter side becomes one pixel, its longer
    side `max_size`; every other image is scaled as by torchvision.

    Example:
        >>> transform = DetectionTransform(96, 96, [0.5] * 3, [0.5] * 3)
        >>> images, _ = transform([torch.rand(3, 3, 2000)])
        >>> images.image_sizes
        [(1, 96)]
    """

    fixed_size: tuple[int, int] | None

    @classmethod
    def like(cls, other: GeneralizedRCNNTransform) -> DetectionTransform:
        """With the settings of another, in its mode."""
        out = cls(
            other.min_size,
            other.max_size,
            other.image_mean,
            other.image_std,
            other.size_divisible,
            other.fixed_size,
            _skip_resize=other._skip_resize,
        )
        return out.train(other.training)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image (3, H, W) and its target, scaled."""
        height, width = image.shape[-2:]
        if (
            self.fixed_size is not None
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or math.floor(min(height, width) * (self.max_size / max(height, width))) > 0
        ):
            return super().resize(image, target)
        wide = width > height
        self.fixed_size = (self.max_size, 1) if wide else (1, self.max_size)  # width, height
        try:
            return super().resize(image, target)
        finally:
            self.fixed_size = None
