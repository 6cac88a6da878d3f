"""Where samples influence each other, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.audit.alignment import Apart
from batchfree.audit.calls import Comparison, Healing, Recording
from batchfree.audit.randomness import Draws
from batchfree.audit.runs import Forward, Runs, everyone, output_distance, per_sample
from batchfree.audit.tree import batch_size, map_tensors, take, tensors

# A difference above this many units of rounding is no rounding; one below is looked at in float64.
SURELY = 1e4
EXACT = 1e-9
"""Relative difference in float64 above which it is not rounding."""


@dataclass(frozen=True)
class Local:
    """Where samples that run apart differ from the batch, module by module.

    Attributes:
        comparison: differences by module.
        coupled: modules whose difference is more than rounding.
        rounding: modules whose difference is rounding alone, or could not be told from it.
        refused: the error with which the model refuses a batch of one, or None.
        held: whether all random draws could be repeated.
        random: whether there were any.
        unverified: why the small differences could not be looked at in float64, or None.
    """

    comparison: Comparison
    coupled: tuple[str, ...]
    rounding: tuple[str, ...]
    refused: str | None
    held: bool
    random: bool
    unverified: str | None


def local_coupling(runs: Runs, mode: str, recording: Recording, draws: Draws, probes: int) -> Local:
    """Compares some samples, each apart, with the recorded batch."""
    found, refused, held = Comparison(), None, True
    groups: list[tuple[int, ...]] = [(i,) for i in spread(runs.size, probes)]
    try:
        held &= _compare(runs, mode, recording, draws, groups[0], found)
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
        if runs.size < 3:
            raise
        groups = [(i, (i + 1) % runs.size) for (i,) in groups]
        held &= _compare(runs, mode, recording, draws, groups[0], found)
    for samples in groups[1:]:
        held &= _compare(runs, mode, recording, draws, samples, found)
    order = [name for name in (*recording.order, "") if name in found.differences]
    amounts = {n: found.differences[n].amount for n in dict.fromkeys(order)}
    dtype = working_dtype(runs)
    surely = SURELY * torch.finfo(dtype).eps
    coupled = {n for n, a in amounts.items() if a > surely}
    doubtful = {n for n, a in amounts.items() if 0 < a <= surely}
    unverified = None
    if doubtful and dtype != torch.float64:
        try:
            coupled |= _verify(runs, mode, recording, doubtful, len(groups[0]))
        except Exception as error:
            unverified = f"{type(error).__name__}: {error}"
    return Local(
        found,
        tuple(n for n in amounts if n in coupled),
        tuple(n for n in amounts if n in doubtful - coupled),
        refused,
        held,
        draws.any,
        unverified,
    )


def _compare(
    runs: Runs,
    mode: str,
    recording: Recording,
    draws: Draws,
    samples: tuple[int, ...],
    into: Comparison,
) -> bool:
    """Adds one run apart to `into`; returns whether its random draws could be repeated."""
    who = Apart(samples, runs.size)
    healing, again = Healing(runs.model, recording, who), Draws(draws, who)
    runs.run(mode, samples, draws=again, around=healing.running())
    into.merge(healing.found)
    return again.held and len(again.drawn) == len(draws.drawn)


def _verify(
    runs: Runs, mode: str, recording: Recording, doubtful: set[str], apart: int
) -> set[str]:
    """Those modules that differ in float64 too, in a batch just large enough.

    Where there are only a few, each is run by itself on the inputs that it had.
    """
    found = set()
    for name in doubtful:
        calls = recording.calls[name]
        inputs = calls[0].inputs
        if name == "" or len(doubtful) > 8 or len(calls) > 1 or batch_size(inputs) != runs.size:
            return doubtful & _differing(runs, mode, runs.model, runs.batch, runs.forward, apart)
        module = runs.model.get_submodule(name)
        if "" in _differing(runs, mode, module, inputs, _call_with, apart):
            found.add(name)
    return found


def _call_with(module: nn.Module, inputs: Any) -> Any:
    args, kwargs = inputs
    return module(*args, **kwargs)


def _differing(
    runs: Runs, mode: str, model: nn.Module, batch: Any, forward: Forward, apart: int
) -> set[str]:
    """The modules of a model, a part of the audited one, that differ in float64."""
    small = Runs(model, take(batch, range(2 * apart), runs.size), runs.restore, forward)
    small.mode_of = runs
    with small.in_float64():
        recording, draws = Recording(small.model), Draws()
        small.run(mode, draws=draws, around=recording.running())
        found = Comparison()
        _compare(small, mode, recording, draws, tuple(range(apart)), found)
    runs.done += small.done if model is runs.model else 0
    return {name for name, d in found.differences.items() if d.amount > EXACT}


def working_dtype(runs: Runs) -> torch.dtype:
    """The widest rounding in the model: its parameters' narrowest floating-point dtype."""
    found = {p.dtype for p in runs.model.parameters() if p.dtype.is_floating_point}
    return max(found or {torch.float32}, key=lambda d: torch.finfo(d).eps)


def spread(size: int, count: int) -> list[int]:
    """So many samples of a batch, the first and the last among them."""
    if count >= size:
        return list(range(size))
    if count == 1:
        return [0]
    return sorted({round(k * (size - 1) / (count - 1)) for k in range(count)})


def replacement_matrix(
    runs: Runs, mode: str, draws: Draws, output: Any, limit: int
) -> list[list[float]]:
    """Entry [i][j]: how far sample i's output moves when sample j is replaced by another one.

    Relative distances to the whole batch's `output`; the diagonal is a sample's own replacement,
    set to 0. Of the first `limit` samples; empty where the output has no samples.
    """
    samples = range(min(runs.size, limit))
    whole = per_sample(output, runs.size)
    if not whole[0]:
        return []
    matrix = [[0.0] * len(samples) for _ in samples]
    for j in samples:
        order = list(range(runs.size))
        order[j] = (j + 1) % runs.size
        moved = per_sample(_again(runs, mode, draws, order), runs.size)
        for i in samples:
            if i != j:
                matrix[i][j] = output_distance(whole[i], moved[i])
    return matrix


def loss_interaction(runs: Runs, mode: str) -> float:
    """How far the numbers among the model's outputs are from sums or means over samples.

    Of such a sum the second difference is zero: replacing two samples moves it by what replacing
    each of them does. Relative to the larger of these two; in float64. 0 where there is no number.
    """
    n = runs.size
    whole = list(range(n))
    others = (1, 0) if n == 2 else (2, min(3, n - 1))
    first, second = [others[0], *whole[1:]], [0, others[1], *whole[2:]]
    both = [*others, *whole[2:]]
    draws = Draws()

    def numbers(order: Sequence[int], draws: Draws) -> list[float]:
        output = runs.run(mode, order, draws=draws)
        return [t.item() for t in tensors(output) if t.dim() == 0 and t.is_floating_point()]

    with runs.in_float64():
        found = [numbers(whole, draws)]
        found += [numbers(order, Draws(draws, everyone(n))) for order in (first, second, both)]
    most = 0.0
    for base, a, b, ab in zip(*found, strict=False):
        scale = max(abs(a - base), abs(b - base))
        if scale > 0:
            most = max(most, abs(ab - a - b + base) / scale)
    return most


def unrepeatable(runs: Runs, mode: str, recording: Recording, draws: Draws) -> set[str]:
    """Modules that give something else when the same batch runs again with the same draws."""
    healing = Healing(runs.model, recording, everyone(runs.size))
    runs.run(mode, draws=Draws(draws, everyone(runs.size)), around=healing.running())
    return {name for name, d in healing.found.differences.items() if d.amount > 1e-6}


def _again(runs: Runs, mode: str, draws: Draws, order: Sequence[int]) -> object:
    return runs.run(mode, order, draws=Draws(draws, everyone(runs.size)))


def gradient_matrix(runs: Runs, mode: str, probes: int) -> dict[int, list[float]]:
    """For some samples i: |d loss_i / d x_j| over |d loss_i / d x_i|, for each j.

    loss_i is the sum of sample i's outputs with fixed random weights. Empty where the output has
    no samples or the input no gradient.
    """
    output, inputs = runs.run_with_gradient(mode)
    parts = per_sample(output, runs.size)
    leaves = [t for t in tensors(inputs) if t.requires_grad]
    found: dict[int, list[float]] = {}
    for i in spread(runs.size, probes):
        losses = [_weighted(t) for t in parts[i] if t.requires_grad]
        if not losses:
            continue
        total = torch.stack(losses).sum()
        gradients = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        norms = _norms(inputs, gradients, runs.size)
        if norms[i] > 0:
            found[i] = [norm / norms[i] for norm in norms]
    return found


def _weighted(t: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(t.shape, generator=generator).to(t.device, t.dtype)
    return (t * weights).sum().double()


def _norms(inputs: Any, gradients: Sequence[Tensor | None], size: int) -> list[float]:
    """Of each sample, over all inputs that belong to samples."""
    given = iter(gradients)

    def gradient(t: Tensor) -> Any:
        return next(given) if t.requires_grad else None

    tree = map_tensors(gradient, inputs)
    shared = {id(t) for t in tensors(tree)}  # what take() leaves as it is belongs to no sample
    return [
        sum(
            float(t.double().square().sum())
            for t in tensors(take(tree, (j,), size))
            if id(t) not in shared
        )
        ** 0.5
        for j in range(size)
    ]
