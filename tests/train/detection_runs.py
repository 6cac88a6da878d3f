"""A detection run that takes seconds: a tiny network on embedded scenes."""

import torch
from lightning.pytorch.callbacks import Callback

from batchfree.train import DetectionConfig, fit

MODEL = {
    "backbone": "resnet_small",
    "channels_per_group": 4,
    "width": 8,
    "stem": "7x7",
    "fpn_channels": 16,
    "head_channels": 16,
    "fc_channels": 32,
    "min_size": [128],
    "max_size": 128,
    "anchor_sizes": [12, 20, 32, 48, 64],
    "rois_per_image": 16,
    "anchors_per_image": 32,
    "train_proposals": 30,
    "test_proposals": 30,
    "image_mean": [0.45] * 3,
    "image_std": [0.25] * 3,
}


def tiny(**sections):
    """5 steps of 2 images, evaluated on 3 images at 2, 4 and 5."""
    base = DetectionConfig().replace(
        name="tiny",
        batch_size=2,
        model=MODEL,
        data={"train_samples": 7, "val_samples": 3},
        optimizer={"base_batch_size": 2},
        schedule={"warmup": 2},
        trainer={
            "max_steps": 5,
            "evaluate_every": 2,
            "log_every": 1,
            "accelerator": "cpu",
            "devices": 1,
            "threads": 1,
        },
    )
    return base.replace(**sections)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values[trainer.global_step] = float(outputs["loss"])


def losses(config, **options):
    watch = Losses()
    return fit(config, callbacks=[watch], progress=False, **options), watch.values


def same_weights(a, b):
    return all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
