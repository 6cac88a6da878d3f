"""The measurements of one audit, in their order, and what each of them found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from batchfree._errors import ConfigError
from batchfree.audit import measures
from batchfree.audit.calls import Healing, Recording
from batchfree.audit.coupling import (
    Local,
    gradient_matrix,
    local_coupling,
    loss_interaction,
    replacement_matrix,
    unrepeatable,
)
from batchfree.audit.findings import (
    buffer_finding,
    classes_finding,
    coupling_findings,
    gap_finding,
    gradient_finding,
    loss_finding,
    metric_finding,
    not_finite_finding,
    note,
    padding_finding,
    size_finding,
    skipped_finding,
)
from batchfree.audit.randomness import Draws
from batchfree.audit.report import Finding, Layer, Mode, SweepPoint
from batchfree.audit.runs import Runs, everyone
from batchfree.audit.static import BATCH_KINDS, kind_of, known_modules, layer_of
from batchfree.audit.tree import tensors
from batchfree.nn import Groups

Progress = Callable[[str, float], None]
"""Told what comes next and which part of the work is done, from 0 to 1."""


class Measurements:
    """The measurements of one audit, and what they found."""

    def __init__(self, runs: Runs, probes: int, progress: Progress | None, policy: Groups) -> None:
        self.runs, self.probes, self.progress = runs, probes, progress
        self.layers: dict[str, Layer] = {
            known.name: layer_of(known, policy) for known in known_modules(runs.model)
        }
        self.found: dict[str, Mode] = {}
        self.skipped: list[str] = []
        self.findings: list[Finding] = []
        self.points: list[SweepPoint] = []
        self.smallest: int | None = None
        self.draws: dict[str, Draws] = {}
        self._reference: dict[str, tuple[Tensor, Tensor]] = {}
        self._whole: Any = None

    def audit_modes(self, modes: list[str]) -> None:
        """Coupling in each mode; one in which the model raises is skipped, if there is another."""
        for place, mode in enumerate(modes):
            self.say(f"{mode} mode", 0.4 * place)
            try:
                self._audit_mode(mode, both=len(modes) > 1)
            except _Raised as error:
                if len(modes) == 1 or (place == len(modes) - 1 and not self.found):
                    raise ConfigError(str(error)) from error.__cause__
                self.skipped.append(mode)
                self.findings.append(skipped_finding(self.runs.model, mode, str(error)))

    def _audit_mode(self, mode: str, both: bool) -> None:
        runs = self.runs
        recording, draws = Recording(runs.model), Draws()
        runs.set_mode(mode)
        before = {n: b.detach().clone() for n, b in runs.model.named_buffers()}
        try:
            runs.run(mode, draws=draws, around=recording.running())
        except Exception as error:
            raise _Raised(
                f"the model raises in {mode} mode on the whole batch: {_words(error)}"
            ) from error
        moved = measures.moved_buffers(runs.model, before)
        if moved:
            self.findings.append(buffer_finding(runs.model, mode, moved))
        if next(tensors(recording.calls[""][0].output), None) is None:
            kind = type(recording.calls[""][0].output).__name__
            raise _Raised(
                f"the model returns a {kind} without a tensor in {mode} mode: nothing to compare"
            )
        self._take_elements(recording)
        self._not_finite(recording, mode)
        try:
            local = local_coupling(runs, mode, recording, draws, self.probes)
        except Exception as error:
            raise _Raised(
                f"in {mode} mode the model runs on the whole batch and not on a part of it: "
                f"{_words(error)}"
            ) from error
        sliced = self._slices(mode, recording, local)
        before_these = len(self.findings)
        kinds = {kind_of(runs.model.get_submodule(name), False) for name in local.coupled}
        # Custom code may draw what nobody can deal out again; a BatchNorm does not.
        again = (
            unrepeatable(runs, mode, recording, draws) if kinds.difference(BATCH_KINDS) else set()
        )
        self.findings += coupling_findings(runs.model, mode, local, self.layers, sliced, again)
        if mode == "eval" and both:
            self._gap(recording)
        output = recording.calls[""][0].output
        if mode == "train":
            self._reference = measures.reference_moments(runs, recording)
            self._whole = output
        recording.calls.clear()  # every activation, and a gradient is about to hold them too
        gradients = self._gradients(mode)
        new = self.findings[before_these:]
        coupled = any(f.level == "coupling" for f in new)
        numbers = any(t.dim() == 0 for t in tensors(output))
        if numbers and not coupled and local.held:
            new += self._loss(mode)
            coupled = any(f.level == "coupling" for f in new)
        self.say(f"{mode} mode: how much", 0.4 * (mode == "train") + 0.2)
        values = self._values(mode, draws, output) if coupled else []
        entries = [(f.module, _or_infinite(f.amount)) for f in new if f.level == "coupling"]
        self.found[mode] = Mode(
            mode=mode,
            coupled=coupled,
            bitwise=not coupled and not local.rounding,
            entries=tuple(entries),
            values=tuple(map(tuple, values)),
            gradients=gradients,
            moved=moved,
            random=local.random,
            held=local.held,
        )
        self._mark_layers(mode, local, sliced)
        self.draws[mode] = draws

    def _loss(self, mode: str) -> list[Finding]:
        """Numbers among the outputs, which no run of some samples can be compared with."""
        try:
            amount = loss_interaction(self.runs, mode)
        except Exception as error:
            found = [note(f"its losses were not looked at: {_words(error)}", mode)]
        else:
            found = [loss_finding(self.runs.model, mode, amount)] if amount > 1e-6 else []
        self.findings += found
        return found

    def _take_elements(self, recording: Recording) -> None:
        """How many values each statistic is of, from the input that the layer got."""
        for name, layer in self.layers.items():
            calls = recording.calls.get(name)
            x = next(tensors(calls[0].inputs), None) if calls else None
            if x is None or x.dim() < 2 or not layer.channels or layer.elements is not None:
                continue
            per_channel = x.numel() // max(x.shape[0] * layer.channels, 1)
            if layer.kind == "GroupNorm" and layer.groups:
                elements = per_channel * layer.channels // layer.groups
            elif layer.kind.startswith("InstanceNorm"):
                elements = per_channel
            elif layer.kind in BATCH_KINDS and layer.kind != "FrozenBatchNorm":
                elements = per_channel * x.shape[0]
            else:
                continue
            self.layers[name] = replace(layer, elements=elements)

    def _not_finite(self, recording: Recording, mode: str) -> None:
        name = measures.first_not_finite(recording)
        if name is not None:
            self.findings.append(not_finite_finding(self.runs.model, mode, name))

    def _slices(self, mode: str, recording: Recording, local: Local) -> dict[str, float]:
        """Of modules whose rows are no samples: whether rows influence each other."""
        self.runs.set_mode(mode)
        found = {}
        for name in local.comparison.lost:
            module = self.runs.model.get_submodule(name)
            calls = recording.calls.get(name)
            if not calls or any(module.children()):
                continue
            try:
                amount = measures.slice_coupling(module, calls[0])
            except Exception:  # noqa: S112 - it takes no half of its rows: nothing to tell
                continue
            if amount is not None and amount > 1e-3:
                found[name] = amount
        return found

    def _values(self, mode: str, draws: Draws, output: Any) -> list[list[float]]:
        try:
            return replacement_matrix(self.runs, mode, draws, output, limit=4)
        except Exception as error:
            self.findings.append(note(f"samples could not be replaced: {_words(error)}", mode))
            return []

    def _gradients(self, mode: str) -> tuple[tuple[int, tuple[float, ...]], ...]:
        try:
            found = gradient_matrix(self.runs, mode, probes=1)
        except Exception as error:
            self.findings.append(note(f"gradients were not measured: {_words(error)}", mode))
            return ()
        finally:
            self.runs.restore()
        worst = max(
            ((norm, i, j) for i, row in found.items() for j, norm in enumerate(row) if j != i),
            default=None,
        )
        if worst and worst[0] > 1e-6:
            self._prove_by_gradient(mode, worst)
        return tuple((i, tuple(row)) for i, row in found.items())

    def _prove_by_gradient(self, mode: str, worst: tuple[float, int, int]) -> None:
        """A gradient between samples is coupling, also where values could not show it."""
        here = [f for f in self.findings if f.mode == mode]
        if any(f.level == "coupling" for f in here):
            return
        undecided = next((f for f in here if f.kind == "randomness"), None)
        if undecided is not None:
            self.findings.remove(undecided)
        self.findings.append(gradient_finding(self.runs.model, mode, worst, undecided))

    def _mark_layers(self, mode: str, local: Local, sliced: dict[str, float]) -> None:
        for name, layer in self.layers.items():
            amount = None
            if name in local.comparison.differences:
                amount = local.comparison.differences[name].amount
            amount = sliced.get(name, amount)
            if amount is not None:
                if mode == "train":
                    self.layers[name] = replace(layer, train_coupling=amount)
                else:
                    self.layers[name] = replace(layer, eval_coupling=amount)

    def _gap(self, recording: Recording) -> None:
        """Each layer's output in train mode against eval mode, on the inputs of eval mode."""
        healing = Healing(self.runs.model, recording, everyone(self.runs.size))
        try:
            self.runs.run("train", around=healing.running())
        except Exception as error:
            self.findings.append(note(f"the gap was not measured: {_words(error)}", "train"))
            return
        worst: tuple[float, str] | None = None
        for name, difference in healing.found.differences.items():
            if name in self.layers:
                self.layers[name] = replace(self.layers[name], gap=difference.amount)
            if difference.amount > 1e-3 and (worst is None or difference.amount > worst[0]):
                worst = difference.amount, name
        if worst is not None:
            self.findings.append(gap_finding(self.runs.model, *worst))

    def measure_sizes(self, tolerance: float) -> None:
        """Batches of other sizes against the whole one, where samples are coupled at all."""
        self.say("batch sizes", 0.8)
        if not self.found["train"].coupled or self.runs.size < 3:
            return
        try:
            self.points = measures.sweep(
                self.runs, self.draws["train"], self._whole, self._reference
            )
        except Exception as error:
            self.findings.append(note(f"batch sizes were not measured: {_words(error)}", "train"))
            return
        self.smallest = measures.smallest_within(self.points, tolerance)
        if any(p.output is not None for p in self.points):
            self.findings.append(size_finding(self.points, self.smallest, tolerance))

    def measure_classes(self, labels: Sequence[Any]) -> None:
        """Batches of one class against mixed ones."""
        found = measures.one_class_batches(self.runs, labels, self.draws["train"])
        if found is not None and found[0] > 1e-6:
            self.findings.append(classes_finding(self.runs.model, *found))

    def measure_padding(self, batch: Any) -> None:
        """Lists of images: an image whose mate makes the batch pad it."""
        try:
            moved = measures.padding_coupling(self.runs, batch)
        except Exception as error:
            self.findings.append(note(f"padding was not measured: {_words(error)}", "eval"))
            return
        if moved is not None and moved > 1e-6:
            self.findings.append(padding_finding(self.runs.model, moved))

    def measure_metric(self, loader: Iterable[Any], metric: measures.Metric) -> None:
        """A metric of the user's in both modes."""
        self.say("the metric in both modes", 0.9)
        runs = self.runs
        values = measures.metric_gap(runs.model, loader, metric, runs.set_mode)
        self.findings.append(metric_finding(runs.model, *values))

    def say(self, what: str, part: float) -> None:
        """Tells the progress."""
        if self.progress is not None:
            self.progress(what, part)


class _Raised(Exception):
    """The model raised where it had to run; its message is for a person."""


def _words(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"


def _or_infinite(amount: float | None) -> float:
    """An amount that was not measured counts as any amount."""
    return float("inf") if amount is None else amount
