"""`audit` and `assert_batch_independent`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from batchfree._checks import check_choice
from batchfree._errors import ConfigError
from batchfree.audit import measures
from batchfree.audit.findings import note, ordered, static_findings
from batchfree.audit.measuring import Measurements, Progress
from batchfree.audit.report import AuditReport
from batchfree.audit.runs import MODES, Forward, Runs, call_model
from batchfree.audit.state import left_as_found
from batchfree.audit.tree import batch_size, take, tensors
from batchfree.audit.wrapping import copied, unwrapped
from batchfree.nn import Groups


def audit(
    model: nn.Module,
    sample_batch: Any,
    *,
    modes: Sequence[str] = MODES,
    forward: Forward = call_model,
    labels: Sequence[Any] | None = None,
    loader: Iterable[Any] | None = None,
    metric: measures.Metric | None = None,
    tolerance: float = 0.05,
    groups: Groups | None = None,
    probes: int = 8,
    name: str | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Where a model depends on its batch, how much, and what to do about it.

    The model runs on the batch, with its real layers, in eval and in train mode, and then on some
    of the samples apart. In a run apart each module's inputs and outputs are compared with the
    sample's rows in the batch and set to them, so that every difference is seen in the module where
    it arises. Differences that may be rounding are repeated in float64. Random draws are dealt out
    to the samples as the batch had them. The model is left exactly as it was: parameters, buffers,
    gradients, modes, hooks, attributes, and so are the random generators.

    Args:
        model: any module. Wrapped ones (DDP, torch.compile) are unwrapped.
        sample_batch: its input, two samples or more that differ: a tensor (N, ...), a list of one
            part a sample (images of any size), a tuple of positional or a dict of keyword
            arguments.
        modes: of `"eval"` and `"train"`. Train mode keeps the parts frozen that were found frozen
            in a model in training.
        forward: how to call the model on a batch; by default `model(batch)`, `model(*batch)` for a
            tuple, `model(**batch)` for a dict.
        labels: the sample's classes, N of them: batches of one class are then set against mixed
            ones.
        loader: batches for `metric`; the first 16 are used.
        metric: `metric(model, batch)`, a number; compared between eval and train mode.
        tolerance: relative difference of outputs that still counts as the same, for the smallest
            batch.
        groups: the policy whose groups are proposed.
        probes: how many samples run apart.
        name: of the model, for the report.
        progress: told what comes next and which part of the work is done.

    Returns:
        The report: print it, `.to_json()`, `.to_html()`, `.ok`, `.findings`.

    Raises:
        ConfigError: fewer than two samples, samples that are all alike, no tensor in the batch, or
            a model that raises on it.

    Source: Wu & He, "Group Normalization", ECCV 2018, section 1 and figure 1, for why it matters.

    Example:
        >>> import batchfree, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> report = batchfree.audit(model, torch.randn(4, 3, 8, 8))
        >>> report.ok, report.findings[0].module, report.findings[0].mode
        (False, '1', 'train')
    """
    for mode in modes:
        check_choice(mode, MODES, "a mode")
    model = unwrapped(model)
    batch = measures.padded_images(sample_batch) or sample_batch
    size = _check_batch(batch)
    if labels is not None and len(labels) != size:
        raise ConfigError(f"labels must hold one for each of the {size} samples, got {len(labels)}")
    model = _initialised(model, batch, forward)
    started = time.perf_counter()
    with left_as_found(model) as restore:
        work = Measurements(
            Runs(model, batch, restore, forward), probes, progress, groups or Groups()
        )
        work.audit_modes([mode for mode in MODES if mode in modes])
        if "train" in work.found:
            work.measure_sizes(tolerance)
            if labels is not None:
                work.measure_classes(labels)
        if "eval" in work.found:
            work.measure_padding(sample_batch)
        if loader is not None and metric is not None:
            work.measure_metric(loader, metric)
        if probes < size:
            seen = f"{probes} of {size} samples ran apart: what only the others get is not seen"
            work.findings.append(note(f"{seen}; probes={size} runs all", kind="probes"))
        if size == 2:
            work.findings.append(note("only two samples: batch sizes could not be compared"))
        return AuditReport(
            model=name or type(model).__name__,
            samples=size,
            modes=tuple(work.found.values()),
            layers=tuple(work.layers.values()),
            findings=ordered([*work.findings, *static_findings(model, [*work.layers.values()])]),
            sweep=tuple(work.points),
            tolerance=tolerance,
            smallest_batch=work.smallest,
            skipped=tuple(work.skipped),
            passes=round(work.runs.done / size, 2),
            seconds=round(time.perf_counter() - started, 3),
            torch=torch.__version__,
        )


def assert_batch_independent(
    model: nn.Module,
    sample_batch: Any,
    mode: Literal["eval", "train"] = "eval",
    atol: float | None = None,
    bitwise: bool = False,
    forward: Forward = call_model,
) -> None:
    """Raises AssertionError where a sample's output depends on its batchmates; for a test suite.

    Args:
        model: any module, left as it was.
        sample_batch: as for `audit`.
        mode: the mode to run it in.
        atol: local relative difference of a module up to which coupling is forgiven; None forgives
            none.
        bitwise: whether differences by rounding alone are failures too.
        forward: as for `audit`.

    Raises:
        AssertionError: names the first coupling module, and by how much its output moves.
        ConfigError: as `audit`.

    Example:
        >>> import batchfree, torch
        >>> batchfree.assert_batch_independent(torch.nn.Conv2d(3, 8, 3), torch.randn(4, 3, 8, 8))
    """
    check_choice(mode, MODES, "mode")
    report = audit(model, sample_batch, modes=(mode,), forward=forward)
    for finding in report.at_least("bits" if bitwise else "coupling"):
        amount = float("inf") if finding.amount is None else finding.amount
        if finding.level == "coupling" and atol is not None and amount <= atol:
            continue
        where = f"module {finding.module!r}" if finding.module else "the model's own code"
        raise AssertionError(
            f"{report.model} depends on its batch in {mode} mode: {where} ({finding.type}): "
            f"{finding.message} [{finding.advice}]"
        )


def _initialised(model: nn.Module, batch: Any, forward: Forward) -> nn.Module:
    """The model, or where it is lazy a copy of it that has seen the batch once."""
    if not any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()) and not any(
        isinstance(b, nn.UninitializedBuffer) for b in model.buffers()
    ):
        return model
    model = copied(model)
    training = model.training
    with torch.no_grad():
        forward(model.eval(), batch)
    return model.train(training)


def _check_batch(batch: Any) -> int:
    if next(tensors(batch), None) is None:
        raise ConfigError(
            f"the batch holds no tensor, got {type(batch).__name__}; give the model's input: a "
            "tensor, a list of one part a sample, a tuple or a dict of arguments"
        )
    size = batch_size(batch)
    if size is None or size < 2:
        raise ConfigError(
            f"an audit needs at least two samples, got {size or 'none'}: with one, nothing can "
            "depend on another"
        )
    if _all_alike(batch, size):
        raise ConfigError(
            f"the {size} samples are all alike, so replacing one by another shows nothing; give "
            "different ones"
        )
    return size


def _all_alike(batch: Any, size: int) -> bool:
    first = [list(tensors(_one(batch, i, size))) for i in range(size)]
    return all(
        len(other) == len(first[0])
        and all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(first[0], other, strict=True)
        )
        for other in first[1:]
    )


def _one(batch: Any, i: int, size: int) -> Any:
    return take(batch, (i,), size)
