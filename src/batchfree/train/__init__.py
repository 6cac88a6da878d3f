"""Training of classifiers and detectors with any norm. Needs `batchfree[train]`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchfree.train.callbacks import CurvePoint
    from batchfree.train.checks import validate
    from batchfree.train.config import (
        Config,
        DataConfig,
        ModelConfig,
        OptimizerConfig,
        ScheduleConfig,
        TrainerConfig,
    )
    from batchfree.train.detection_config import (
        DetectionConfig,
        DetectionDataConfig,
        DetectorConfig,
    )
    from batchfree.train.detection_run import DetectionResult
    from batchfree.train.output import OutputError
    from batchfree.train.run import FitResult, TrainingInterrupted, fit

__all__ = [
    "Config",
    "CurvePoint",
    "DataConfig",
    "DetectionConfig",
    "DetectionDataConfig",
    "DetectionResult",
    "DetectorConfig",
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

# Loaded when they are asked for: configs are needed where Lightning, ten seconds on a slow machine,
# is not.
_HOME = {
    "CurvePoint": "callbacks",
    "DetectionConfig": "detection_config",
    "DetectionDataConfig": "detection_config",
    "DetectionResult": "detection_run",
    "DetectorConfig": "detection_config",
    "OutputError": "output",
    "FitResult": "run",
    "TrainingInterrupted": "run",
    "fit": "run",
    "validate": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME.get(name, 'config')}")
    return getattr(home, name)
