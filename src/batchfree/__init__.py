"""Normalisation that does not depend on the batch.

`batchfree.group_norm` and `batchfree.GroupNorm` normalise each sample over groups of its channels
(Wu & He, ECCV 2018), with the residual and the activation in the same call. Importing this package
imports torch and nothing heavier; `batchfree.models`, `data`, `train` and `report` need the extras
of the same names (`pip install "batchfree[train,report]"`).
"""

from batchfree._errors import (
    BackendError,
    ConfigError,
    ConversionWarning,
    DataError,
    DegenerateGroupWarning,
    ResultsError,
)
from batchfree.audit import AuditReport, assert_batch_independent, audit
from batchfree.convert import (
    ConversionPlan,
    ConversionReport,
    ConversionResult,
    convert,
    load_converted,
    plan_conversion,
    save_converted,
)
from batchfree.fuse import fuse
from batchfree.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FrozenBatchNorm,
    GroupNorm,
    GroupNorm1,
    Groups,
    InstanceNorm,
    NoNorm,
    NormLayer,
    SyncBatchNorm,
    WeightStandardizedConv2d,
    norm_layer,
    standardize_weights,
)
from batchfree.ops import backend, group_norm

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "BackendError",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConfigError",
    "ConversionPlan",
    "ConversionReport",
    "ConversionResult",
    "ConversionWarning",
    "DataError",
    "DegenerateGroupWarning",
    "FrozenBatchNorm",
    "GroupNorm",
    "GroupNorm1",
    "Groups",
    "InstanceNorm",
    "NoNorm",
    "NormLayer",
    "ResultsError",
    "SyncBatchNorm",
    "WeightStandardizedConv2d",
    "__version__",
    "assert_batch_independent",
    "audit",
    "backend",
    "convert",
    "fuse",
    "group_norm",
    "load_converted",
    "norm_layer",
    "plan_conversion",
    "save_converted",
    "standardize_weights",
]
