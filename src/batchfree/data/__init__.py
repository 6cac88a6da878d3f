"""Embedded data sets, image folders (`batchfree[train]`), COCO folders (`batchfree[detect]`)."""

from batchfree.data.digits_in_the_wild import DigitsInTheWild

__all__ = ["DigitsInTheWild"]
