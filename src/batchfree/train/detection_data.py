"""The data of a detection run: sets by config, and the loaders that Lightning asks for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from batchfree._errors import ConfigError, DataError
from batchfree.data.detection import DetectionSet, detection_transform
from batchfree.data.detection_batches import (
    AspectRatioBatches,
    detection_loader,
    evaluation_batches,
)
from batchfree.train.detection_config import DetectionConfig, DetectionDataConfig
from batchfree.train.loaders import StepLoader

_TELL_EVERY = 10  # seconds


@dataclass
class DetectionData:
    """The images of a run.

    Attributes:
        train: the training set; None where a run only evaluates.
        validation: the set that is evaluated on.
        val_samples: how many of its images are.
    """

    train: DetectionSet | None
    validation: DetectionSet
    val_samples: int


def build_detection_data(
    config: DetectionDataConfig, seed: int, *, train: bool = True
) -> DetectionData:
    """The sets that a config names; the validation set does not depend on the seed.

    Images keep their size: the network scales them, on its own device.

    Args:
        config: the data.
        seed: of the embedded scenes.
        train: whether the training set is needed.

    Raises:
        DataError: a COCO set that is missing or damaged.
        ConfigError: a size that the scenes do not come in.
    """
    transform = detection_transform(flip=config.flip)
    training: DetectionSet | None = None
    validation: DetectionSet
    if config.kind == "scenes":
        from batchfree.data.scenes import DigitScenes

        try:
            if train:
                training = DigitScenes(
                    "train", config.train_samples, config.size, seed, transforms=transform
                )
            validation = DigitScenes("test", config.val_samples, config.size, 0)
        except ValueError as e:
            raise ConfigError(f"data: {e}") from e
    else:
        training, validation = _coco(config, train, transform)
    limit = config.val_samples or len(validation)
    return DetectionData(training, validation, min(limit, len(validation)))


def _coco(
    config: DetectionDataConfig, train: bool, transform: Any
) -> tuple[DetectionSet | None, DetectionSet]:
    from batchfree.data.coco import CocoDataset

    options: Any = {
        "on_bad": config.on_bad,
        "image_check": config.image_check,
        "progress": _told_slowly(),
    }
    training = None
    if train:
        training = CocoDataset(
            config.root,
            config.train_split,
            annotations=config.train_annotations,
            images=config.train_images,
            transforms=transform,
            **options,
        )
    validation = CocoDataset(
        config.root,
        config.val_split,
        annotations=config.val_annotations,
        images=config.val_images,
        categories=training.categories if training else None,
        **options,
    )
    same = training and training.report.annotation_file == validation.report.annotation_file
    if same and (config.train_annotations is None or config.val_annotations is None):
        raise DataError(
            f"{str(validation.report.annotation_file)!r} is all there is, to train and to evaluate "
            "on: name another, --data.val_annotations FILE; or name it as both "
            "data.train_annotations and data.val_annotations, to evaluate on what is trained on"
        )
    return training, validation


def _told_slowly() -> Callable[[int, int], None]:
    """Says how far a check of images is, every ten seconds: COCO's takes minutes on few cores."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY:
            last = time.monotonic()
            print(
                f"checking image files: {done:,} of {total:,} (data.image_check)",
                file=sys.stderr,
                flush=True,
            )

    return progress


class DetectionLoader(StepLoader):
    """The training batches of one rank, from any step on.

    Args:
        dataset: the training set.
        num_batches: batches of the whole training.
        batch_size: images per batch and rank.
        seed: of the order and the augmentation.
        options: as `StepLoader`.
    """

    def __init__(
        self,
        dataset: DetectionSet,
        num_batches: int,
        batch_size: int,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dataset, num_batches, batch_size, **options)
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self.dataset, DetectionSet)
        batches = AspectRatioBatches(
            self.dataset.sizes,
            self.batch_size,
            num_batches=self.num_batches,
            start=self.start,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        return iter(detection_loader(self.dataset, batches, self.workers, self.pin_memory))


class DetectionDataModule(pl.LightningDataModule):
    """The loaders of this rank.

    Args:
        config: the run.
        data: its images.
        num_batches: batches of the whole training.
    """

    def __init__(self, config: DetectionConfig, data: DetectionData, num_batches: int) -> None:
        super().__init__()
        self.config, self.data, self.num_batches = config, data, num_batches

    def train_dataloader(self) -> DetectionLoader:
        """The training batches, resumable at any step."""
        trainer, config = self._trainer(), self.config
        accumulate = config.trainer.accumulate
        assert self.data.train is not None
        return DetectionLoader(
            self.data.train,
            self.num_batches,
            config.batch_size // (trainer.world_size * accumulate),
            seed=config.seed,
            consumed=lambda: trainer.global_step * accumulate,
            workers=config.data.workers,
            pin_memory=self._pin(),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation batches of this rank, as many as any other's."""
        trainer, config = self._trainer(), self.config.data
        batches = evaluation_batches(
            self.data.val_samples,
            config.eval_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return detection_loader(self.data.validation, batches, config.workers, self._pin())

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None
        return self.trainer

    def _pin(self) -> bool:
        return self._trainer().strategy.root_device.type == "cuda"
