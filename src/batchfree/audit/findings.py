"""From what was measured to findings: what was seen, what to do, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from batchfree.audit.calls import Difference
from batchfree.audit.coupling import Local
from batchfree.audit.report import LEVELS, Finding, Layer, Level, SweepPoint
from batchfree.audit.static import BATCH_KINDS, advice_for, kind_of


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """The worst first, in the order of the forward within a level."""
    return tuple(sorted(findings, key=lambda f: LEVELS.index(f.level)))


def coupling_findings(
    model: nn.Module,
    mode: str,
    local: Local,
    layers: dict[str, Layer],
    sliced: dict[str, float],
    unrepeatable: set[str],
) -> Iterator[Finding]:
    """One for each module where coupling enters, and what could not be told from it."""
    modules = dict(model.named_modules())
    for name in local.coupled:
        difference = local.comparison.differences[name]
        # Its input was set to the batch's, so that no draw but its own can make a BatchNorm differ.
        hidden = not local.held and kind_of(modules[name], False) not in BATCH_KINDS
        if hidden or name in unrepeatable:
            yield _random(name, modules[name], mode, difference.amount)
            continue
        yield _coupled(name, modules[name], mode, difference, layers.get(name))
    for name, amount in sliced.items():
        if name not in local.coupled:
            yield _coupled(name, modules[name], mode, Difference(amount), layers.get(name))
    if local.rounding:
        yield _bits(mode, local)
    if local.refused:
        yield Finding(
            "refuses one", "warning", "", type(model).__name__, mode, None,
            f"does not run on a single sample: {local.refused}",
            "fewer than two values stand behind a statistic there; use GroupNorm, or more samples",
            "BatchNorm's statistics of one value are that value",
        )  # fmt: skip


def _coupled(
    name: str, module: nn.Module, mode: str, difference: Difference, layer: Layer | None
) -> Finding:
    kind = kind_of(module, False)
    advice, reason = advice_for(kind, layer.groups if layer else None)
    if difference.grows:
        seen = "its output has a dimension as long as the batch: samples are set against each other"
    elif difference.between and any(module.children()):
        seen = (
            "samples influence each other in its own code, between the modules it calls: an "
            f"intermediate value moves by {percent(difference.amount)} without the batchmates"
        )
    else:
        seen = f"its output for a sample moves by {percent(difference.amount)} without batchmates"
    return Finding(
        "coupling", "coupling", name, type(module).__name__, mode, difference.amount, seen, advice,
        reason,
    )  # fmt: skip


def _random(name: str, module: nn.Module, mode: str, amount: float) -> Finding:
    return Finding(
        "randomness", "warning", name, type(module).__name__, mode, amount,
        f"differs by {percent(amount)} apart and in the batch, and draws random numbers that "
        "cannot be dealt out to samples: coupling can neither be shown nor excluded",
        "audit in eval mode, or with that randomness turned off",
    )  # fmt: skip


def _bits(mode: str, local: Local) -> Finding:
    worst = max(local.rounding, key=lambda n: local.comparison.differences[n].amount)
    amount = local.comparison.differences[worst].amount
    why = (
        f"could not be repeated in float64 ({local.unverified}), and is as small as rounding"
        if local.unverified
        else "vanishes in float64, so it is rounding and no dependence on the batch's content"
    )
    return Finding(
        "bits", "bits", worst, "", mode, amount,
        f"not batch-invariant to the bit: {len(local.rounding)} modules differ by up to "
        f"{amount:.1e}, which {why}",
        "leave it, unless results must be the same to the bit: then fix the batch's size",
        "libraries choose another algorithm, and another order of sums, for another batch",
    )  # fmt: skip


def static_findings(model: nn.Module, layers: list[Layer]) -> Iterator[Finding]:
    """What the classes alone tell, and degenerate norms at this input's size."""
    for layer in layers:
        said = _static(layer)
        if said is not None:
            level, message, advice, reason = said
            yield Finding(
                "static", level, layer.module, layer.type, None, None, message, advice, reason
            )
        if layer.elements == 1:
            yield _degenerate(layer)
        if (
            layer.kind in BATCH_KINDS
            and layer.kind != "FrozenBatchNorm"
            and layer.train_coupling == 0
        ):
            gamma = getattr(model.get_submodule(layer.module), "weight", None)
            if gamma is not None and not bool(gamma.any()):
                yield _asleep(layer)


def _static(layer: Layer) -> tuple[Level, str, str, str] | None:
    if layer.kind == "FrozenBatchNorm":
        return (
            "note", "frozen BatchNorm: no dependence on the batch, and no normalisation either",
            "leave it for fine-tuning near its pre-training; never train from scratch with it",
            "Wu & He 2018, section 4.2: detection fine-tunes with frozen BatchNorm because batches "
            "are small",
        )  # fmt: skip
    if layer.kind == "BatchNorm in eval":
        return (
            "note", "BatchNorm in eval mode inside a model in training: frozen, as long as nobody "
            "calls train() on the model",
            "make it a FrozenBatchNorm, which train() does not thaw",
            "",
        )  # fmt: skip
    if layer.kind == "BatchNorm without running statistics":
        return (
            "warning", "keeps no running statistics: takes the batch's in eval mode too",
            f"convert to GroupNorm with {layer.groups} groups", "",
        )  # fmt: skip
    if layer.kind == "InstanceNorm with running statistics":
        return (
            "warning", "normalises by each sample in training and by running statistics in eval: "
            "two different functions",
            "construct it with track_running_stats=False", "",
        )  # fmt: skip
    return None


def _asleep(layer: Layer) -> Finding:
    return Finding(
        "zero gamma", "warning", layer.module, layer.type, "train", None,
        "its gamma is zero, so that its output is the same for any batch now; from the first step "
        "on it will depend on the batch",
        f"convert to GroupNorm with {layer.groups} groups" if layer.groups else "convert it too",
        "the last gamma of a residual block starts at 0 (Goyal et al. 2017)",
    )  # fmt: skip


def _degenerate(layer: Layer) -> Finding:
    return Finding(
        "degenerate", "warning", layer.module, layer.type, None, None,
        "each statistic is of a single value at this input size, so the normalised value is zero "
        "and the output the bias alone",
        "use fewer groups (Groups(min_elements_per_group=...)), a larger input, or no norm here",
        "a value minus its own mean is zero",
    )  # fmt: skip


def buffer_finding(model: nn.Module, mode: str, moved: tuple[str, ...]) -> Finding:
    """What a forward left behind."""
    expected = mode == "train" and all(_is_running(model, name) for name in moved)
    shown = ", ".join(moved[:3]) + (", ..." if len(moved) > 3 else "")
    return Finding(
        "buffers", "note" if expected else "warning", "", type(model).__name__, mode,
        float(len(moved)),
        f"a forward in {mode} mode changes {len(moved)} buffers: {shown}",
        "leave it: running statistics" if expected
        else "find out what writes to them; a later answer depends on earlier batches",
        "" if expected else "state that a forward leaves makes the next output depend on it",
    )  # fmt: skip


def _is_running(model: nn.Module, buffer: str) -> bool:
    owner, _, name = buffer.rpartition(".")
    known = ("running_mean", "running_var", "num_batches_tracked")
    return name in known and kind_of(model.get_submodule(owner), False) is not None


def skipped_finding(model: nn.Module, mode: str, message: str) -> Finding:
    """A mode in which the model does not run: nothing is known of it."""
    return Finding(
        "not audited", "warning", "", type(model).__name__, mode, None, message,
        f"give a batch that it takes in {mode} mode (a detector's targets, for one), or leave that "
        f"mode out with modes=",
    )  # fmt: skip


def loss_finding(model: nn.Module, mode: str, amount: float) -> Finding:
    """A loss that is no sum over samples, of a model that is otherwise independent."""
    return Finding(
        "loss", "coupling", "", type(model).__name__, mode, amount,
        "a number that it returns is no sum or mean over samples: replacing two of them moves it "
        f"otherwise than replacing each, by {percent(amount)} of the larger",
        "expected where samples are set against each other (contrastive losses) or a loss is "
        "divided by a count of the whole batch; then its gradients depend on the batch",
    )  # fmt: skip


def not_finite_finding(model: nn.Module, mode: str, name: str) -> Finding:
    """The first module that gives NaN or infinity."""
    return Finding(
        "not finite", "warning", name, _class(model, name), mode, None,
        "its output holds NaN or infinity",
        "mend that first: what comes after it cannot be compared",
    )  # fmt: skip


def gradient_finding(
    model: nn.Module, mode: str, worst: tuple[float, int, int], undecided: Finding | None
) -> Finding:
    """A gradient between samples, which proves coupling that values did not show.

    Args:
        model: the audited one.
        mode: `eval` or `train`.
        worst: the gradient's size relative to the sample's own, the loss's and the input's sample.
        undecided: a finding that randomness hid something, which this decides.
    """
    amount, i, j = worst
    seen = (
        f"sample {i}'s loss has a gradient of {percent(amount)} of its own with respect to "
        f"sample {j}"
    )
    if undecided is None:
        return Finding(
            "gradient", "coupling", "", _class(model, ""), mode, amount,
            f"{seen}, though values did not move",
            "look for operations between samples that cancel in this batch",
        )  # fmt: skip
    advice, reason = advice_for(kind_of(model.get_submodule(undecided.module), False), None)
    return Finding(
        "coupling", "coupling", undecided.module, undecided.type, mode, amount,
        f"{seen}; its random draws hide by how much its output moves", advice, reason,
    )  # fmt: skip


def gap_finding(model: nn.Module, amount: float, name: str) -> Finding:
    """The module whose output differs most between the modes."""
    return Finding(
        "train/eval gap", "note", name, _class(model, name), None, amount,
        f"the largest gap of a module between train and eval mode, on the same input: "
        f"{percent(amount)}",
        "expected of dropout; of BatchNorm it is the distance between the batch's and the running "
        "statistics",
    )  # fmt: skip


def size_finding(points: list[SweepPoint], smallest: int | None, tolerance: float) -> Finding:
    """From which batch size on the output is that of the whole batch."""
    found = f"from {smallest} samples on" if smallest else "at no smaller size"
    listed = ", ".join(f"{percent(p.output)} at {p.size}" for p in points if p.output is not None)
    return note(
        f"the output stays within {percent(tolerance)} of the whole batch's {found}: {listed}",
        "train",
        "batch size",
    )


def classes_finding(model: nn.Module, alike: float, mixed: float) -> Finding:
    """Batches of one class against mixed ones of the same size."""
    return Finding(
        "not i.i.d.", "warning" if alike > 1.2 * mixed else "note", "", _class(model, ""), "train",
        alike,
        f"in batches of one class the output moves by {percent(alike)}, in mixed batches of the "
        f"same size by {percent(mixed)}",
        "shuffle across classes, or normalise without the batch",
        "batch statistics of samples that are not i.i.d. (Wu & He 2018, section 4.2: regions of "
        "one image)",
    )  # fmt: skip


def padding_finding(model: nn.Module, moved: float) -> Finding:
    """An image that its batch pads."""
    return Finding(
        "padding", "warning", "", _class(model, ""), "eval", moved,
        f"an image's output moves by {percent(moved)} when a larger mate makes the batch pad it",
        "batch images of like size, or mask the padding",
        "padding reaches statistics and borders, with GroupNorm too",
    )  # fmt: skip


def metric_finding(model: nn.Module, evaluated: float, trained: float) -> Finding:
    """The user's metric in both modes."""
    return Finding(
        "metric gap", "note", "", _class(model, ""), None, trained - evaluated,
        f"the metric is {evaluated:.6g} in eval and {trained:.6g} in train mode",
        "a large gap means that running statistics do not stand for the batch's",
    )  # fmt: skip


def _class(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name)).__name__


def percent(amount: float) -> str:
    """A relative amount for reading: 12%, 0.03%, more than it is."""
    if not math.isfinite(amount):
        return "more than can be compared"
    return f"{100 * amount:.2g}%" if amount < 1 else f"{amount:.2g} times its size"


def note(message: str, mode: str | None = None, kind: str = "not measured") -> Finding:
    """Something to know of the audit itself."""
    return Finding(kind, "note", "", "", mode, None, message, "")
