"""A trained BatchNorm model becomes a GroupNorm model that still works."""

from batchfree.convert.blending import collapse, set_alpha
from batchfree.convert.converting import ConversionResult, convert
from batchfree.convert.layers import BlendNorm, ConvertedNorm
from batchfree.convert.plan import ConversionPlan, PlannedLayer, plan_conversion
from batchfree.convert.report import ConversionReport, LayerDrift
from batchfree.convert.saving import load_converted, read_manifest, save_converted

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
    "load_converted",
    "plan_conversion",
    "read_manifest",
    "save_converted",
    "set_alpha",
]
