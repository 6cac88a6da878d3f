"""A trained BatchNorm model becomes a GroupNorm model that still works."""

from batchfree.convert.blending import collapse, set_alpha
from batchfree.convert.converting import ConversionResult, convert
from batchfree.convert.layers import BlendNorm, ConvertedNorm
from batchfree.convert.plan import ConversionPlan, PlannedLayer, plan_conversion
from batchfree.convert.report import ConversionReport, LayerDrift

__all__ = [
    "BlendNorm",
    "ConversionPlan",
    "ConversionReport",
    "ConversionResult",
    "ConvertedNorm",
    "LayerDrift",
    "PlannedLayer",
    "collapse",
    "convert",
    "plan_conversion",
    "set_alpha",
]
