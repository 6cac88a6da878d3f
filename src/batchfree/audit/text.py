"""A report in the terminal: plain lines, or rich tables where rich is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchfree.audit.findings import percent
from batchfree.audit.report import AuditReport, Finding


def headline(report: AuditReport) -> str:
    """The verdict in a sentence."""
    coupled = [m.mode for m in report.modes if m.coupled]
    audited = " and ".join(m.mode for m in report.modes)
    if report.ok:
        exact = all(m.bitwise for m in report.modes)
        return f"{report.model}: no sample depends on another in {audited} mode" + (
            ", to the bit" if exact else "; results differ by rounding only"
        )
    if not coupled:
        return f"{report.model}: could not be audited in {' and '.join(report.skipped)} mode" + (
            f"; no sample depends on another in {audited} mode" if audited else ""
        )
    where = len({f.module for f in report.at_least("coupling")})
    return (
        f"{report.model}: samples depend on each other in {' and '.join(coupled)} mode; "
        f"it enters at {where} module{'s' * (where != 1)}"
    )


def grouped(findings: tuple[Finding, ...]) -> Iterator[tuple[Finding, int, float | None]]:
    """Findings that say the same of several modules as one: the first, how many, the largest."""

    def key(f: Finding) -> tuple[Any, ...]:
        family = f.advice.split(" with ")[0]
        return (f.level, f.kind, f.mode, f.type, family)

    by_key: dict[tuple[Any, ...], list[Finding]] = {}
    for f in findings:
        by_key.setdefault(key(f), []).append(f)
    for alike in by_key.values():
        amounts = [f.amount for f in alike if f.amount is not None]
        yield alike[0], len(alike), max(amounts, default=None)


def summary(report: AuditReport) -> str:
    """The verdict and the findings, as plain text."""
    lines = [headline(report)]
    for finding, count, amount in grouped(report.findings):
        where = place(finding, count)
        mode = f" [{finding.mode}]" if finding.mode else ""
        most = f" (up to {percent(amount)})" if count > 1 and amount is not None else ""
        lines.append(f"  {finding.level}{mode} {where}: {finding.message}{most}")
        if finding.advice:
            lines.append(f"      {finding.advice}")
    return "\n".join(lines)


def place(finding: Finding, count: int) -> str:
    """Where a finding is: a module's name and class, and how many more there are alike."""
    name = finding.module or ("the model" if finding.type else "")
    kind = f" ({finding.type})" if finding.type and finding.module else ""
    more = f" and {count - 1} more" if count > 1 else ""
    return f"{name}{kind}{more}" or "the audit"


def table(report: AuditReport) -> Any:
    """The same as a rich table; a string where rich is not installed."""
    try:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return summary(report)
    colors = {"coupling": "red", "bits": "yellow", "warning": "yellow", "note": "dim"}
    shown = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("level", "mode", "where", "seen", "what to do"):
        shown.add_column(column, overflow="fold")
    for finding, count, amount in grouped(report.findings):
        most = f" (up to {percent(amount)})" if count > 1 and amount is not None else ""
        shown.add_row(
            Text(finding.level, style=colors[finding.level]),
            finding.mode or "",
            Text(place(finding, count)),
            Text(finding.message + most),
            Text(finding.advice),
        )
    cost = f"{report.samples} samples, {report.passes:g} forward passes, {report.seconds:.1f} s"
    style = "bold green" if report.ok else "bold red"
    return Group(Text(headline(report), style=style), shown, Text(cost, style="dim"))
