"""`convert`: a BatchNorm model becomes a GroupNorm model, on a copy."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from batchfree._checks import check_choice
from batchfree._errors import ConfigError, ConversionWarning
from batchfree.convert import blending
from batchfree.convert.batches import Forward, call_model, count, split_batches
from batchfree.convert.calibrate import Calibration, Progress, Work, observe, set_analytic
from batchfree.convert.checking import (
    FunctionalNorms,
    check_elements,
    inplace_matters,
    naming,
    not_tensors,
    scripted,
    single_channels,
    why_none,
)
from batchfree.convert.distill import distill
from batchfree.convert.kinds import check_finite, replacement
from batchfree.convert.plan import ConversionPlan, Keep, plan_conversion
from batchfree.convert.replacing import copied, initialised, replaced, unwrapped, without_inplace
from batchfree.convert.report import ConversionReport
from batchfree.convert.reporting import summarised, with_drift
from batchfree.convert.saving import save_converted
from batchfree.nn import Groups

Method = Literal["copy", "analytic", "calibrated", "blend", "distill"]
METHODS: tuple[Method, ...] = ("copy", "analytic", "calibrated", "blend", "distill")
Degenerate = Literal["error", "keep", "merge"]


@dataclass
class ConversionResult:
    """What `convert` returns.

    Attributes:
        model: the converted copy, in the modes that the original stood in.
        plan: what was done, the numbers of groups that the calibration chose included.
        report: how far the result stands from the original; print it, `.to_html()`, `.to_json()`.
    """

    model: nn.Module
    plan: ConversionPlan
    report: ConversionReport

    def save(self, path: str | Path, *, source: str, preprocessing: str = "") -> None:
        """Writes the model and its manifest; see `batchfree.convert.save_converted`."""
        save_converted(
            path,
            self.model,
            self.plan,
            source=source,
            method=self.report.method,
            calibration=self.report.calibration,
            anchor=self.report.anchor,
            preprocessing=preprocessing,
        )


@torch.inference_mode(False)
def convert(
    model: nn.Module,
    calibration: Any = None,
    *,
    method: Method | None = None,
    groups: Groups | int | Literal["auto"] | None = None,
    keep: str | list[str] | Keep = (),  # type: ignore[assignment]
    plan: ConversionPlan | None = None,
    anchor: float | None = 2.0,
    degenerate: Degenerate = "error",
    inplace: bool = False,
    samples: int = 256,
    held_out: Any = None,
    chunk: int = 64,
    steps: int = 200,
    forward: Forward = call_model,
    name: str | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Turns a trained BatchNorm model into a GroupNorm model that still works, on a copy.

    Args:
        model: any module with BatchNorms; it is not touched. Wrapped ones are unwrapped.
        calibration: unlabelled inputs, prepared as for the trained model: a tensor (N, ...) or a
            loader of batches; of (inputs, labels) the inputs are taken. Without it the conversion
            is data-free.
        method: `"copy"` keeps gamma and beta as they are; `"analytic"` needs no data: running
            statistics and the law of total variance; `"calibrated"` fits each layer, in the order
            of the forward, on what the layers converted before it feed it; `"blend"` is
            `calibrated` (or `analytic`) in layers that start as the BatchNorm and are annealed
            to GroupNorm in fine-tuning (`batchfree.train.blend.AnnealBlend`); `"distill"` trains
            the calibrated model, frozen parameters too, for `steps` steps to give the original's
            activations and outputs.
            By default `calibrated` with data and `analytic` without.
        groups: as for `plan_conversion`; `"auto"` needs data.
        keep: as for `plan_conversion`.
        plan: one made before by `plan_conversion`, instead of `groups` and `keep`.
        anchor: channels are rescaled before each norm to have the same say in their group, and
            given constant offsets of this size, beside which the group's variance hardly varies
            with the sample; the new layer keeps both, fixed. 0 rescales alone; None does neither
            and gives plain GroupNorms. `copy` never does.
        degenerate: what to do with a layer whose groups would hold a single element on the
            calibration data: raise, keep the BatchNorm, or merge groups until they hold two.
        inplace: leave activation modules that work in place as they are. Off, they do not in the
            result, since hooks on the layers before them, as Opacus sets, forbid it; what model
            code does in place by functions stays. Model code that ignores what such a module
            returns needs it on; where data shows that, it is.
        samples: how many calibration samples to use.
        held_out: inputs to measure the drift on; by default up to 32 of the calibration data that
            no layer was fitted on.
        chunk: samples a forward. Where all fit into one, two passes do in all; else each layer
            takes a pass that ends at it.
        steps: of distillation.
        forward: how to call the model on a batch.
        name: of the model, for the report.
        progress: told what is done and which part of the work that is.

    Returns:
        The converted model, its plan and a report.

    Raises:
        ConfigError: no BatchNorm to convert, a plan of another model, data of a shape that the
            model does not take, a method that needs data without any, a layer that cannot hold.
        DataError: no calibration sample, or weights, statistics, values or activations that are
            NaN or infinite, before or only after the conversion, or variances that are negative.

    Warns:
        ConversionWarning: BatchNorms whose running statistics are as they were made; layers over
            vectors with groups of one channel.

    Source: Wu & He, "Group Normalization", ECCV 2018, for the layer.

    Example:
        >>> import batchfree, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32))
        >>> _ = [net(3 * torch.randn(16, 3, 8, 8)) for _ in range(50)]  # "training"
        >>> result = batchfree.convert(net.eval(), 3 * torch.randn(64, 3, 8, 8))
        >>> result.plan["1"].new, result.report.output_error < 0.2
        ('GroupNorm(2, 32)', True)
    """
    for value, known, what in (
        (method, (None, *METHODS), "method"),
        (degenerate, ("error", "keep", "merge"), "degenerate"),
    ):
        check_choice(value, known, what)
    if anchor is not None and not 0 <= anchor <= 100:
        raise ValueError(f"anchor must be None or a number from 0 to 100, got {anchor}")
    for number, what, least in ((samples, "samples", 1), (chunk, "chunk", 1), (steps, "steps", 0)):
        if type(number) is not int or number < least:
            raise ConfigError(f"{what} must be at least {least} and whole, got {number!r}")
    if plan is not None and (groups is not None or keep):
        raise ConfigError("the plan says the groups and what is kept: leave out groups and keep")
    started = time.perf_counter()
    tell = progress or (lambda what, part: None)
    model = unwrapped(model)
    fitted, apart = split_batches(calibration, held_out, samples, chunk)
    if fitted:
        model = initialised(model, fitted[0], forward)
    if method is None:
        method = "calibrated" if fitted else "analytic"
    if plan is None:
        plan = plan_conversion(model, groups, keep=keep, name=name)
    auto = any(row.candidates for row in plan.converted)
    if not fitted and (method in ("calibrated", "distill") or auto):
        what = "groups='auto'" if auto else f"method={method!r}"
        raise ConfigError(f"{what} needs calibration data: a tensor of inputs or a loader")
    if auto and method in ("copy", "analytic"):
        raise ConfigError(
            f"groups='auto' chooses by the error that a calibration measures: method={method!r} "
            "measures none; take method='calibrated'"
        )
    plan = ConversionPlan.from_json(plan.to_json())  # its own, so that the caller's stays
    plan.notes += scripted(model)
    if not plan.converted:
        raise ConfigError(f"{plan.model} has no BatchNorm to convert: {why_none(plan)}")
    if not fitted:
        plan.notes += single_channels(plan)
    for note in plan.notes:
        warnings.warn(note, ConversionWarning, stacklevel=2)

    check_finite(model)
    reference = copied(model).eval()
    paths = [x.path for x, _ in plan.sources(reference)]
    with FunctionalNorms(reference) as functional:
        seen = observe(reference, paths, fitted, forward, tell)
    notes = [*plan.notes, *functional.notes(len(fitted)), *not_tensors(model)]
    if fitted and not inplace and inplace_matters(reference, fitted[0], forward):
        inplace = True
        notes.append(
            "model code ignores what activations in place return: they stay in place, as with "
            "inplace=True"
        )
    for row in plan.converted:
        if row.path in seen:
            check_elements(row, seen[row.path].positions, degenerate)
    result = copied(model)
    scaled = anchor is not None and method != "copy"
    works = [
        Work(
            row,
            source,
            replacement(
                source, row.groups, eps=row.eps or None, scaled=scaled, bare=method == "copy"
            ),
        )
        for row, source in plan.sources(result)
    ]
    if not works:
        raise ConfigError(f"{plan.model} has no BatchNorm left to convert: {why_none(plan)}")
    result = replaced(result, {w.source.module: w.norm for w in works})
    if not inplace:
        without_inplace(result)
    for work in works:
        work.seen = seen.get(work.row.path)
        if method != "copy":
            set_analytic(work, anchor if scaled else None)
    passes = float(bool(fitted))
    modes = [(m, m.training) for m in result.modules()]
    result.eval()
    if fitted and method in ("calibrated", "blend", "distill"):
        calibration_run = Calibration(result, works, fitted, forward, anchor=anchor, progress=tell)
        with naming(works):
            calibration_run()
        passes += calibration_run.runs
        if calibration_run.skipped:
            raise ConfigError(
                f"{calibration_run.skipped[0]!r} runs in the model and not in its conversion: the "
                "forward holds on to the old layer where it cannot be reached (a closure, a "
                "functools.partial); keep it with keep=, or call the layer by its attribute"
            )
        never = [w for w in works if w.seen is None]
        for work in never:
            work.row.reason = "did not run on the calibration data: analytic"
        if never:
            notes.append(f"{len(never)} layers did not run on the calibration data: analytic")
    if method == "distill":
        with naming(works):
            note = distill(
                result,
                reference,
                [w.row.path for w in works if w.seen is not None],
                fitted,
                forward,
                steps=steps,
                progress=tell,
            )
        notes += [note] if note else []
    if method == "blend":
        result = blending.blended(result, works)
    for module, training in modes:
        module.training = training
    if fitted and not apart:
        notes.append("fewer than 8 samples: none held out, so no drift is measured; give held_out=")
    report = summarised(plan, method, works, notes, anchor if scaled else None)
    if apart or fitted:
        tell("the drift on held-out data", 0.95)
        with naming(works):
            measured = with_drift(report, result, reference, apart or fitted, forward)
        report = measured if apart else report  # else it is only checked to give numbers
    report = replace(
        report,
        calibration=count(fitted) if method not in ("copy", "analytic") else 0,
        held_out=count(apart),
        passes=round(passes, 2),
        seconds=round(time.perf_counter() - started, 3),
    )
    return ConversionResult(result, plan, report)
