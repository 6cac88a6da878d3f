"""Embedded data sets and image folders. Needs `batchfree[train]`."""

from batchfree.data.digits_in_the_wild import DigitsInTheWild

__all__ = ["DigitsInTheWild"]
