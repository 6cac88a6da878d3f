"""Plans and reports in the terminal: plain lines, or rich tables where rich is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from batchfree.audit.findings import percent
from batchfree.convert.plan import ConversionPlan
from batchfree.convert.report import ConversionReport, LayerDrift

PLAN = ("layer", "old", "action", "new", "reason")
REPORT = ("layer", "old", "new", "predicted", "error", "cosine", "reason")


def plan_headline(plan: ConversionPlan) -> str:
    """What happens, in a sentence."""
    kept = sum(x.action == "keep" for x in plan.layers)
    left = sum(x.action == "leave" for x in plan.layers)
    return (
        f"{plan.model}: {len(plan.converted)} BatchNorms to convert, {kept} kept, "
        f"{left} other norm layers"
    )


def plan_rows(plan: ConversionPlan) -> list[tuple[str, ...]]:
    """The cells of the table."""
    rows: list[tuple[str, ...]] = []
    for x in plan.layers:
        path = x.path + (f" (and {', '.join(x.aliases)})" if x.aliases else "")
        rows.append((path or "the model", x.old, x.action, x.new, x.reason))
    return rows


def report_headline(report: ConversionReport) -> str:
    """What came of it, in a sentence."""
    text = f"{report.model}: {len(report.converted)} BatchNorms became GroupNorms ({report.method})"
    if report.output_error is not None:
        text += f"; outputs moved by {percent(report.output_error)}"
    if report.uncompared:
        text += f"; outputs were not compared: {report.uncompared}"
        measured = [x for x in report.converted if x.error is not None]
        if measured and measured[-1].error is not None:
            text += (
                f"; {measured[-1].path!r}, the last layer, moved by {percent(measured[-1].error)}"
            )
    if report.changed is not None:
        text += f", {report.changed:.1f}% of {report.held_out} predictions changed"
    return text


def report_cost(report: ConversionReport) -> str:
    """Data, passes and time."""
    data = f"{report.calibration} samples to calibrate, {report.held_out} held out"
    return f"{data}; {report.passes:g} forward passes, {report.seconds:.1f} s"


def report_rows(report: ConversionReport) -> list[tuple[str, ...]]:
    """The cells of the table."""

    def row(x: LayerDrift) -> tuple[str, ...]:
        amounts = ("" if v is None else percent(v) for v in (x.predicted, x.error))
        cosine = "" if x.cosine is None else f"{x.cosine:.4f}"
        return (x.path or "the model", x.old, x.new or "stays", *amounts, cosine, x.reason)

    return [row(x) for x in report.layers]


def plan_lines(plan: ConversionPlan) -> str:
    """The plan as plain text."""
    return _lines(plan_headline(plan), PLAN, plan_rows(plan), plan.notes)


def report_lines(report: ConversionReport) -> str:
    """The report as plain text."""
    notes = [report_cost(report), *report.notes]
    return _lines(report_headline(report), REPORT, report_rows(report), notes)


def plan_table(plan: ConversionPlan) -> Any:
    """The plan as a rich table; a string where rich is not installed."""
    return _table(plan_headline(plan), PLAN, plan_rows(plan), plan.notes)


def report_table(report: ConversionReport) -> Any:
    """The report as a rich table; a string where rich is not installed."""
    notes = [report_cost(report), *report.notes]
    return _table(report_headline(report), REPORT, report_rows(report), notes)


def _lines(
    head: str, columns: Sequence[str], rows: list[tuple[str, ...]], notes: Iterable[str]
) -> str:
    widths = [max(len(r[i]) for r in (columns, *rows)) for i in range(len(columns))]
    lines = [
        "  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in (columns, *rows)
    ]
    return "\n".join([head, *(lines if rows else []), *(f"note: {n}" for n in notes)])


def _table(
    head: str, columns: Sequence[str], rows: list[tuple[str, ...]], notes: Iterable[str]
) -> Any:
    try:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return _lines(head, columns, rows, notes)
    shown = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    parts: list[Any] = [Text(head, style="bold"), *([shown] if rows else [])]
    return Group(*parts, *(Text(f"note: {n}", style="dim") for n in notes))
