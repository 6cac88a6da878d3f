"""What the rows say, in sentences: the headline, the lead, and what is missing."""

from __future__ import annotations

from batchfree.experiments.paper import IMAGENET_RESNET50
from batchfree.experiments.results import Results
from batchfree.report import series
from batchfree.report.series import Cell
from batchfree.report.styles import norm_label, norm_name


def headline(results: Results) -> str:
    """One sentence on what was found, whichever way it went.

    A change counts as a rise or a fall where the seeds' ranges at the two ends do not overlap;
    where they do, or where an end has one seed only, the sentence says so.
    """
    names = series.norms(results)
    told = [norm for norm in ("bn", "gn") if norm in names] or names[:2]
    if not told:
        return "No run has finished yet"
    return "; ".join(_clause(results, norm) for norm in told)


def lead(results: Results) -> list[str]:
    """A few sentences under the headline: the gap to BN, the paper's finding, the extent."""
    sentences = [_gap(results)] if series.norms(results) else []
    bn, gn = IMAGENET_RESNET50.errors["bn"], IMAGENET_RESNET50.errors["gn"]
    sentences.append(
        f"In the paper ({IMAGENET_RESNET50.setting}) BN goes from {bn[32]}% at 32 images per GPU "
        f"to {bn[2]}% at 2, and GN stays between {min(gn.values())}% and {max(gn.values())}%. "
        "That is another task at another scale: compare the shapes, not the percentages."
    )
    return [sentence for sentence in sentences if sentence]


def missing(results: Results) -> list[str]:
    """What the experiment still lacks: norms, sizes, seeds. Empty where it is complete."""
    if not results.rows:
        return ["There are no finished runs, so there is nothing to draw."]
    found = []
    every_seed = set(series.seeds(results.rows))
    names = series.norms(results)
    for norm in ("bn", "gn"):
        if norm not in names:
            found.append(f"No run of {norm_name(norm)}.")
    for norm in names:
        cells = {cell.size: cell for cell in series.cells(results, norm)}
        absent = [size for size in results.sizes if size not in cells]
        if absent:
            found.append(f"{norm_label(norm)}: no run at normalisation batch {_listed(absent)}.")
        short = {size: every_seed - set(cell.seeds) for size, cell in cells.items()}
        if series.is_shared(results, norm):
            lacking = short[results.sizes[0]]
            if lacking:
                found.append(f"{norm_label(norm)}: {_seeds(lacking)} missing.")
            continue
        for size, lacking in short.items():
            if lacking:
                found.append(
                    f"{norm_label(norm)} at normalisation batch {size}: {_seeds(lacking)} missing."
                )
    return found


def cautions(results: Results) -> list[str]:
    """What a reader has to know of results that are complete."""
    every_seed = series.seeds(results.rows)
    if len(every_seed) != 1:
        return []
    return [
        f"One seed ({every_seed[0]}) only: how far another would differ is not known, so a small "
        "difference may be chance."
    ]


def percent(value: float) -> str:
    """An error as text, `5.2%`."""
    return f"{value:.1f}%"


def _clause(results: Results, norm: str) -> str:
    cells, name = series.cells(results, norm), norm_name(norm)
    first, last = cells[0], cells[-1]
    if series.is_shared(results, norm):
        return f"{name}’s is {percent(first.mean)} at every size" + _alone(first)
    where = f"{percent(first.mean)} at normalisation batch {first.size}"
    if first.size == last.size:
        return f"{name}’s error is {where}, the only size that has run" + _alone(first)
    ends = f"{where} to {percent(last.mean)} at {last.size}"
    if _alone(first) or _alone(last):
        return f"{name}’s error goes from {ends} (one seed)"
    if last.low > first.high:
        return f"{name}’s error rises from {ends}"
    if last.high < first.low:
        return f"{name}’s error falls from {ends}"
    return f"{name}’s error stays within the spread of its seeds, from {ends}"


def _alone(cell: Cell) -> str:
    return " (one seed)" if len(cell.seeds) == 1 else ""


def _gap(results: Results) -> str:
    parts = []
    for size in dict.fromkeys((results.sizes[0], results.sizes[-1])):
        bn, gn = series.cell(results, "bn", size), series.cell(results, "gn", size)
        if bn and gn:
            gap = gn.mean - bn.mean
            side = "above" if gap > 0 else "below"
            far = f"{abs(gap):.1f} points {side} BN’s" if abs(gap) >= 0.05 else "level with BN’s"
            parts.append(f"{far} at {size}")
    return f"By normalisation batch, GN’s error is {' and '.join(parts)}." if parts else ""


def _seeds(seeds: set[int]) -> str:
    word = "seeds" if len(seeds) > 1 else "seed"
    return f"{word} {_listed(sorted(seeds))}"


def _listed(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
