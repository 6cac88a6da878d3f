"""The data of a run: datasets by config, and the loaders that Lightning asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, Subset

from batchfree._errors import ConfigError
from batchfree.train.config import Config, DataConfig
from batchfree.train.loaders import Shuffled, StepLoader, data_loader, validation_batches


@dataclass
class Data:
    """The images of a run.

    Attributes:
        train: an endless stream by position.
        samples_per_epoch: training images in a pass, None where the stream never repeats.
        validation: a finite dataset.
        num_classes: the number of classes.
    """

    train: Dataset[Any]
    samples_per_epoch: int | None
    validation: Dataset[Any]
    num_classes: int


def build_data(config: DataConfig, seed: int) -> Data:
    """The datasets that a config names; validation images do not depend on the seed.

    Raises:
        DataError: an image folder that is missing, empty or does not fit.
        ConfigError: a size that the digits do not come in.
    """
    if config.kind == "digits_in_the_wild":
        from batchfree.data import DigitsInTheWild

        common: dict[str, Any] = {"size": config.size, "difficulty": config.difficulty}
        try:
            digits = DigitsInTheWild("train", num_samples=config.train_samples, seed=seed, **common)
        except ValueError as e:
            raise ConfigError(f"data: {e}") from e
        endless = config.train_samples is None
        return Data(
            train=digits if endless else Shuffled(digits, seed),
            samples_per_epoch=config.train_samples,
            validation=DigitsInTheWild("test", num_samples=config.val_samples, seed=0, **common),
            num_classes=10,
        )
    from batchfree.data.image_folder import ImageFolder

    assert config.root is not None  # `validate` has seen to it
    images = ImageFolder(config.root, "train", size=config.size)
    validation: Any = ImageFolder(config.root, "val", size=config.size, classes=images.classes)
    if config.val_samples is not None and config.val_samples < len(validation):
        # Every k-th image: the first ones would be of the first classes only.
        step = len(validation) / config.val_samples
        validation = Subset(validation, [int(i * step) for i in range(config.val_samples)])
    return Data(
        train=Shuffled(images, seed),
        samples_per_epoch=len(images),
        validation=validation,
        num_classes=len(images.classes),
    )


def preprocessing(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, RGB in [0, 1], that the data's images were normalised by."""
    if config.kind == "digits_in_the_wild":
        from batchfree.data.digits_in_the_wild import MEAN, STD

        return (MEAN,) * 3, (STD,) * 3
    from batchfree.data import image_folder

    return tuple(image_folder.MEAN), tuple(image_folder.STD)


class DataModule(pl.LightningDataModule):
    """The loaders of this rank.

    Args:
        config: the run.
        data: its images.
        num_batches: batches of the whole training, gradient accumulation counted apart.
    """

    def __init__(self, config: Config, data: Data, num_batches: int) -> None:
        super().__init__()
        self.config, self.data, self.num_batches = config, data, num_batches

    def train_dataloader(self) -> StepLoader:
        """The training batches, resumable at any step."""
        trainer, config = self._trainer(), self.config
        accumulate = config.trainer.accumulate
        return StepLoader(
            self.data.train,
            self.num_batches,
            config.batch_size // (trainer.world_size * accumulate),
            consumed=lambda: trainer.global_step * accumulate,
            workers=config.data.workers,
            pin_memory=self._pin(),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation batches of this rank, as many as any other's."""
        trainer, config = self._trainer(), self.config.data
        batches = validation_batches(
            len(self.data.validation),  # type: ignore[arg-type]
            config.eval_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return data_loader(self.data.validation, batches, config.workers, self._pin())

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None
        return self.trainer

    def _pin(self) -> bool:
        return self._trainer().strategy.root_device.type == "cuda"
