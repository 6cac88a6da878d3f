"""Where a model depends on its batch, how much, and what to do about it."""

from batchfree.audit.auditing import assert_batch_independent, audit
from batchfree.audit.report import AuditReport, Finding, Layer, Mode, SweepPoint
from batchfree.audit.watch import LayerRecord, watch

__all__ = [
    "AuditReport",
    "Finding",
    "Layer",
    "LayerRecord",
    "Mode",
    "SweepPoint",
    "assert_batch_independent",
    "audit",
    "watch",
]
