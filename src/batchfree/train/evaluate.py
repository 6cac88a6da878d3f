"""`evaluate`: the figures of a trained network on the validation set of its recipe."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn

from batchfree._errors import ConfigError
from batchfree.models.conventions import read_network
from batchfree.train.build import build_network
from batchfree.train.checks import validate
from batchfree.train.classification import Classifier
from batchfree.train.config import BaseConfig, Config, ModelConfig
from batchfree.train.data import DataModule, build_data, preprocessing
from batchfree.train.evaluate_checks import check_categories, check_conventions, check_model
from batchfree.train.loop import build_trainer, plan, surroundings


def evaluate(
    config: BaseConfig,
    checkpoint: Path | str,
    *,
    predictions: Path | str | None = None,
    overrides: Collection[str] = (),
) -> dict[str, float]:
    """Evaluates a checkpoint as training does.

    The config's network has to be the checkpoint's, in what weights do not show too: groups, the
    kind of norm, the images' mean, standard deviation and size, anchors. A file that does not say
    what it was trained as is taken for the config's, with a note on stderr. A
    fine-tuned converted model is built by the `converted.safetensors` that its training wrote
    beside its `model.safetensors`.

    Args:
        config: the run: a `Config` or a `DetectionConfig`.
        checkpoint: `model.safetensors`, or a checkpoint of the run.
        predictions: of a detector: a folder for its detections in COCO's results format.
        overrides: fields of a detector that are meant to differ from its training's, of
            `evaluate_checks.TEST_FIELDS`: image sizes, proposals, detections.

    Returns:
        `val_error` in percent, or COCO's figures in percent; of a detector also the AP of each
        category, `box_AP/NAME` and `mask_AP/NAME`.

    Raises:
        ConfigError: a config that cannot be used; weights of another network, naming each field
            that differs.
        DataError: images or a checkpoint that are missing or damaged; images of other categories.
    """
    path = Path(checkpoint)
    weights, told = read_network(path)
    with surroundings(config):
        if isinstance(config, Config):
            validate(config)
            if predictions is not None:
                raise ConfigError("predictions are written of detectors, this is a classifier")
            _note(check_model(config, told, path, overrides))
            return _classification(config, weights, told, path)
        # The weights are the checkpoint's: where the backbone's came from matters no more.
        validate(config.replace(model={"weights": "the checkpoint's"}))
        _note(check_model(config, told, path, overrides))
        return _detection(config, weights, told, path, predictions)


def _note(remarks: list[str]) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr, flush=True)


def _classification(
    config: Config, weights: dict[str, Any], told: dict[str, Any], path: Path
) -> dict[str, float]:
    data = build_data(config.data, config.seed)
    network = build_network(_own(config.model, path), data.num_classes)
    check_conventions(network, *preprocessing(config.data), told, path)
    _load(network, weights)
    run = plan(config, data.samples_per_epoch)
    module = Classifier(network, config, run.schedule, len(data.validation))  # type: ignore[arg-type]
    return _validate(config, module, DataModule(config, data, 1))


def _own(model: ModelConfig, path: Path) -> ModelConfig:
    """A converted model as its fine-tuning left it, where the weights lie as it wrote them."""
    beside = path.with_name("converted.safetensors")
    if model.converted is None or path.name != "model.safetensors" or not beside.is_file():
        return model
    return replace(model, converted=str(beside))


def _detection(
    config: Any,
    weights: dict[str, Any],
    told: dict[str, Any],
    path: Path,
    predictions: Path | str | None,
) -> dict[str, float]:
    from batchfree.train.detection import Detector
    from batchfree.train.detection_build import apply_conventions, build_random
    from batchfree.train.detection_data import DetectionDataModule, build_detection_data
    from batchfree.train.optim import Schedule

    data = build_detection_data(config.data, config.seed, train=False)
    categories = data.validation.categories
    check_categories(told, categories.ids, categories.names, path)
    network = build_random(config.model, len(categories))
    _load(network, weights)
    apply_conventions(network, told)
    seen = network.transform
    check_conventions(network.backbone.body, seen.image_mean, seen.image_std, told, path)
    module = Detector(network, config, Schedule("constant", total=1), data)
    figures = _validate(config, module, DetectionDataModule(config, data, 1))
    images: Any = "all" if data.val_samples == len(data.validation) else "seen"
    for kind, values in module.evaluator.per_category(images).items():
        figures |= {f"{kind}_AP/{name}": value for name, value in values.items()}
    if predictions is not None:
        module.evaluator.write(predictions)
    return figures


def _load(network: nn.Module, weights: dict[str, Any]) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as e:
        lines = " ".join(str(e).split())
        raise ConfigError(f"the weights are of another network than the recipe's: {lines}") from e


def _validate(
    config: BaseConfig, module: pl.LightningModule, data: pl.LightningDataModule
) -> dict[str, float]:
    trainer = build_trainer(config, 1, 1, [], None)
    with torch.no_grad():
        (figures,) = trainer.validate(module, datamodule=data, verbose=False)
    return {k: float(v) for k, v in figures.items() if not k.startswith("train_")}
