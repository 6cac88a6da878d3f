"""Functional ops: one contract, several backends."""

from batchfree.ops.backend import backend
from batchfree.ops.group_norm import group_norm

__all__ = ["backend", "group_norm"]
