"""A model named on the command line, with its weights."""

from batchfree._naming import load_model

__all__ = ["load_model"]
