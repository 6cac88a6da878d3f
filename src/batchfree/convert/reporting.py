"""A conversion's report, filled in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from batchfree.convert.batches import Forward
from batchfree.convert.calibrate import Work
from batchfree.convert.drift import measure
from batchfree.convert.plan import ConversionPlan
from batchfree.convert.report import ConversionReport, LayerDrift


def summarised(
    plan: ConversionPlan, method: str, works: list[Work], notes: list[str], anchor: float | None
) -> ConversionReport:
    """The report before anything is measured."""
    fits = {w.row.path: w.fit for w in works}
    layers = []
    for row in plan.layers:
        found = fits.get(row.path)
        known = found is not None and math.isfinite(found.error)
        predicted = found.error**0.5 if known and found is not None else None
        layers.append(LayerDrift(row.path, row.old, row.new, row.groups, row.reason, predicted))
    each = [x.predicted for x in layers if x.predicted is not None]
    return ConversionReport(
        model=plan.model,
        method=method,
        layers=tuple(layers),
        anchor=anchor,
        predicted=math.sqrt(sum(e * e for e in each)) if each else None,
        notes=tuple(notes),
    )


def with_drift(
    report: ConversionReport,
    result: nn.Module,
    reference: nn.Module,
    apart: list[Any],
    forward: Forward,
) -> ConversionReport:
    """The report with how far the result stands from the original on held-out batches."""
    modes = [(m, m.training) for m in result.modules()]
    paths = [x.path for x in report.converted]
    try:
        drift = measure(result.eval(), reference, paths, apart, forward)
    finally:
        for module, training in modes:
            module.training = training
    return replace(
        report,
        layers=tuple(
            replace(x, cosine=drift.layers[x.path].cosine, error=drift.layers[x.path].error)
            if x.path in drift.layers
            else x
            for x in report.layers
        ),
        output_cosine=None if drift.outputs is None else drift.outputs.cosine,
        output_error=None if drift.outputs is None else drift.outputs.error,
        uncompared=drift.uncompared,
        changed=drift.changed,
    )
