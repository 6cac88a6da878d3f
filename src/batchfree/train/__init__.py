"""Training of image classifiers with any norm. Needs `batchfree[train]`."""

from batchfree.train.callbacks import CurvePoint
from batchfree.train.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from batchfree.train.output import OutputError
from batchfree.train.run import FitResult, TrainingInterrupted, fit
from batchfree.train.validate import validate

__all__ = [
    "Config",
    "CurvePoint",
    "DataConfig",
    "FitResult",
    "ModelConfig",
    "OptimizerConfig",
    "OutputError",
    "ScheduleConfig",
    "TrainerConfig",
    "TrainingInterrupted",
    "fit",
    "validate",
]
