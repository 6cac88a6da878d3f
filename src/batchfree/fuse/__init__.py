"""Norm, residual and activation of any model in one call."""

from batchfree.fuse.find import Fusion, find_fusions
from batchfree.fuse.rewrite import fuse, out_of_place

__all__ = ["Fusion", "find_fusions", "fuse", "out_of_place"]
