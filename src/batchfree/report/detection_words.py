"""What the rows of a detection experiment say, in sentences, whichever way it went."""

from __future__ import annotations

from dataclasses import dataclass

from batchfree.experiments.detection_results import FINE_TUNED, SCRATCH, DetectionResults
from batchfree.report import detection_series as series
from batchfree.report.detection_series import Cell

_Kind = tuple[str, str, str]
_GN: _Kind = ("gn", "gn", FINE_TUNED)
_FROZEN: _Kind = ("frozen_bn", "none", FINE_TUNED)


@dataclass(frozen=True)
class Claim:
    """A comparison that the paper makes.

    Attributes:
        first, second: norms and start of the two arms.
        name, other: what they are called in the sentence.
        paper: what the paper found, to go after its name.
        headline: whether it leads the page.
    """

    first: _Kind
    second: _Kind
    name: str
    other: str
    paper: str
    headline: bool = False


CLAIMS = {
    "detection": (
        Claim(_GN, _FROZEN, "GN everywhere", "BN*", "has 40.3 against 38.6", True),
        Claim(
            ("frozen_bn", "bn", FINE_TUNED), _FROZEN, "BN in FPN and heads",
            "BN* with plain heads", "loses about 9 to BN in the box head", True,
        ),
        Claim(
            ("frozen_bn", "gn", FINE_TUNED), _FROZEN, "GN in FPN and heads of BN*",
            "BN* with plain heads", "has 39.5 against 38.6",
        ),
        Claim(
            ("bn", "bn", FINE_TUNED), _FROZEN, "BN that is not frozen", "BN*",
            "loses about 6 at batch 2",
        ),
        Claim(
            ("gn", "gn", SCRATCH), _GN, "GN from scratch", "GN fine-tuned",
            "has 39.5 against 40.8, both at 3x",
        ),
    ),
    "scratch": (
        Claim(
            ("bn", "bn", SCRATCH), ("gn", "gn", SCRATCH), "BN", "GN",
            "has no such number from scratch; fine-tuned at batch 2 BN loses about 6", True,
        ),
        Claim(
            ("ln", "ln", SCRATCH), ("gn", "gn", SCRATCH), "LN", "GN",
            "loses 1.9 with LN on C4, fine-tuned",
        ),
        Claim(
            ("none", "none", SCRATCH), ("gn", "gn", SCRATCH), "No norm", "GN", "has no such number",
        ),
    ),
}  # fmt: skip


def headline(results: DetectionResults) -> str:
    """One sentence on what was found.

    A difference counts where the ranges of the seeds do not overlap; where they do, or where there
    is one seed only, the sentence says so.
    """
    if not results.rows:
        return "No run has finished yet"
    told = [
        clause
        for claim in CLAIMS[results.experiment]
        for batch in _leading(results)
        if claim.headline and (clause := _clause(results, claim, batch))
    ]
    if not told:
        return "; ".join(_alone(results)[:3])
    start = "Trained from scratch, " if results.experiment == "scratch" else "Fine-tuned, "
    return start + "; ".join(told)


def lead(results: DetectionResults) -> list[str]:
    """The other comparisons, each with what the paper found, and what may not be compared."""
    sentences = []
    for claim in CLAIMS[results.experiment]:
        clauses = {b: _clause(results, claim, b) for b in series.batches(results)}
        above = _leading(results) if claim.headline else []
        told = "; ".join(clause for b, clause in clauses.items() if clause and b not in above)
        if any(clauses.values()):
            begin = f"{told}. T" if told else f"{claim.name} against {claim.other}: t"
            sentences.append(f"{begin}he paper {claim.paper} (box AP on COCO).")
    sentences.append(
        "The scenes are digits on photographs and the network is a small one: compare the signs "
        "and the order with the paper’s, not the size of AP."
    )
    return sentences


def _leading(results: DetectionResults) -> list[int]:
    """The batches of the headline: all of one comparison, else the largest, the paper's."""
    found = series.batches(results)
    return found if results.experiment == "scratch" else found[:1]


def missing(results: DetectionResults) -> list[str]:
    """The planned runs that have not finished."""
    done = {row.name for row in results.rows}
    left = [name for name in results.planned if name not in done]
    if not left:
        return []
    return [f"{len(left)} of {len(results.planned)} runs have not finished: {', '.join(left)}."]


def cautions(results: DetectionResults) -> list[str]:
    """What a reader has to know of results that are complete."""
    found = []
    for arm in series.arms(results):
        for row in series.diverged(results, arm):
            name = series.label(results, arm)
            found.append(f"{name}, seed {row.seed}: {row.failure}. It has no AP in the tables.")
    seeds = sorted({row.seed for row in results.rows})
    if len(seeds) == 1:
        found.append(
            f"One seed ({seeds[0]}) only: how far another would differ is not known, so a small "
            "difference may be chance."
        )
    return found


def _clause(results: DetectionResults, claim: Claim, batch: int) -> str:
    """`BN is 12.0 box AP below GN at batch 2 (45.1 against 57.1)`; empty without both arms."""
    first = series.find(results, *claim.first, batch)
    second = series.find(results, *claim.second, batch)
    if first is None or second is None:
        return ""
    where = ""
    if results.experiment == "scratch" or len(series.batches(results)) > 1:
        where = f" at batch {batch}"
    failed = len(series.diverged(results, first))
    one, other = series.cell(results, first), series.cell(results, second)
    if one is None and failed:
        return f"{claim.name} diverged{where} in every seed"
    if one is None or other is None:
        return ""
    lost = f"; {failed} of its runs diverged" if failed else ""
    numbers = f"({one.mean:.1f} against {other.mean:.1f}{_doubt(one, other)}{lost})"
    return f"{claim.name} is {_gap(one, other)} {claim.other}{where} {numbers}"


def _gap(one: Cell, other: Cell) -> str:
    gap = one.mean - other.mean
    if abs(gap) < 0.05:
        return "level with"
    return f"{abs(gap):.1f} box AP {'above' if gap > 0 else 'below'}"


def _doubt(one: Cell, other: Cell) -> str:
    if min(len(one.seeds), len(other.seeds)) == 1:
        return ", one seed"
    return "" if one.is_apart(other) else ", within the spread of the seeds"


def _alone(results: DetectionResults) -> list[str]:
    told = []
    for arm in series.arms(results):
        cell = series.cell(results, arm)
        end = "diverged" if cell is None else f"reaches {cell.mean:.1f} box AP"
        told.append(f"{series.label(results, arm)} {end}")
    return told
