"""Layers, the norm factory, the group policy, BatchNorm over a chosen normalisation batch."""

from batchfree.nn.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FrozenBatchNorm,
    SyncBatchNorm,
)
from batchfree.nn.factory import NormLayer, norm_layer
from batchfree.nn.group_norm import GroupNorm, GroupNorm1, InstanceNorm
from batchfree.nn.groups import Groups
from batchfree.nn.identity import NoNorm
from batchfree.nn.weight_standardization import WeightStandardizedConv2d, standardize_weights

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FrozenBatchNorm",
    "GroupNorm",
    "GroupNorm1",
    "Groups",
    "InstanceNorm",
    "NoNorm",
    "NormLayer",
    "SyncBatchNorm",
    "WeightStandardizedConv2d",
    "norm_layer",
    "standardize_weights",
]
