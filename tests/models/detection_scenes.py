"""Tiny images with rectangles on them, as detection targets, for tests of models and training."""

import torch


def rectangles(count=2, size=64, instances=3, classes=3, seed=0):
    """Images and targets; an image's rectangles have the brightness of their class."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for number in range(count):
        image = torch.rand(3, size, size, generator=generator) * 0.3
        corners = torch.randint(0, size // 2, (instances, 2), generator=generator)
        sides = torch.randint(size // 5, size // 2, (instances, 2), generator=generator)
        boxes = torch.cat([corners, corners + sides], 1)
        labels = torch.randint(1, classes + 1, (instances,), generator=generator)
        masks = torch.zeros(instances, size, size, dtype=torch.uint8)
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            image[:, y1:y2, x1:x2] = 0.3 + 0.2 * int(labels[i])
            masks[i, y1:y2, x1:x2] = 1
        images.append(image)
        targets.append(
            {
                "boxes": boxes.float().reshape(-1, 4),
                "labels": labels,
                "masks": masks,
                "image_id": number,
                "area": (sides[:, 0] * sides[:, 1]).float(),
                "iscrowd": torch.zeros(instances, dtype=torch.int64),
            }
        )
    return images, targets


SMALL = {
    "fpn_channels": 16,
    "head_channels": 16,
    "fc_channels": 32,
    "min_size": 64,
    "max_size": 64,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "backbone_options": {"width": 8, "stem": "7x7"},
    "box_batch_size_per_image": 16,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
}
