"""What an audit measures beside coupling: buffers, batch sizes, the train/eval gap, padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.audit.alignment import Apart, distance
from batchfree.audit.calls import Call, Recording
from batchfree.audit.randomness import Draws, seeded
from batchfree.audit.report import SweepPoint
from batchfree.audit.runs import Runs, everyone, output_distance, per_sample
from batchfree.audit.state import same_bits
from batchfree.audit.static import BATCH_KINDS, channel_moments, kind_of
from batchfree.audit.tree import cloned, take, tensors

Metric = Callable[[nn.Module, Any], float]


def moved_buffers(model: nn.Module, before: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the buffers that differ from what they were, new and missing ones included."""
    after = dict(model.named_buffers())
    names = dict.fromkeys((*before, *after))
    both = before.keys() & after.keys()
    return tuple(n for n in names if n not in both or not same_bits(before[n], after[n]))


def relative_rms(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """|a - b| / |b| over all floating-point tensors; None where there is none, or shapes differ."""
    pairs = [(s, t) for s, t in zip(a, b, strict=False) if t.is_floating_point()]
    if not pairs or any(s.shape != t.shape for s, t in pairs):
        return None
    difference = sum(float((s.double() - t.double()).square().sum()) for s, t in pairs)
    norm = sum(float(t.double().square().sum()) for _, t in pairs)
    return (difference / norm) ** 0.5 if norm else None


def _training_batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if kind_of(module, False) in BATCH_KINDS and module.training:
            yield name, module


@contextmanager
def batch_statistics(model: nn.Module, seen: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Writes down the mean and variance of each channel that the BatchNorms see in the block."""
    handles = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen[name] = channel_moments(next(tensors((args, kwargs))))

        return look

    for name, module in _training_batch_norms(model):
        handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reference_moments(runs: Runs, recording: Recording) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that the BatchNorms in training saw of the whole batch."""
    runs.set_mode("train")  # so that it is seen which layers train
    return {
        name: channel_moments(next(tensors(recording.calls[name][-1].inputs)))
        for name, _ in _training_batch_norms(runs.model)
        if recording.calls.get(name)
    }


def sweep(
    runs: Runs, draws: Draws, output: Any, reference: dict[str, tuple[Tensor, Tensor]]
) -> list[SweepPoint]:
    """Batches of 1, 2, 4, ... samples in train mode against the whole batch.

    Args:
        runs: of the model.
        draws: those of the whole batch.
        output: the whole batch's.
        reference: `reference_moments`.
    """
    whole = per_sample(output, runs.size)
    points = []
    size = 1
    while size < runs.size:
        points.append(_point(runs, size, draws, whole, reference))
        size *= 2
    return points


def _point(
    runs: Runs,
    size: int,
    draws: Draws,
    whole: list[list[Tensor]],
    reference: dict[str, tuple[Tensor, Tensor]],
) -> SweepPoint:
    outputs, means, variances = [], [], []
    for start in range(0, runs.size - size + 1, size):
        chunk = tuple(range(start, start + size))
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        apart = Draws(draws, Apart(chunk, runs.size))
        try:
            # Inside of the run, which sets the mode and puts hooks back to what they were.
            around = batch_statistics(runs.model, seen)
            output = runs.run("train", chunk, draws=apart, around=around)
        except Exception:
            return SweepPoint(size, None, None, None)  # it refuses this size
        for i, parts in zip(chunk, per_sample(output, size), strict=True):
            moved = relative_rms(parts, whole[i])
            if moved is not None:
                outputs.append(moved)
        for name in seen.keys() & reference.keys():
            (m, v), (m0, v0) = seen[name], reference[name]
            live = v0 > 0
            if m.shape == m0.shape and live.any():
                means.append(((m - m0).abs() / v0.sqrt())[live].mean().item())
                ratio = (v[live] / v0[live]).clamp_min(1e-12)
                variances.append(ratio.log().abs().mean().item())
    return SweepPoint(size, *(sum(v) / len(v) if v else None for v in (outputs, means, variances)))


def smallest_within(points: Iterable[SweepPoint], tolerance: float) -> int | None:
    """The smallest size from which on every size stays within the tolerance."""
    smallest = None
    for point in sorted(points, key=lambda p: p.size, reverse=True):
        if point.output is None or not point.output <= tolerance:  # NaN is not within
            break
        smallest = point.size
    return smallest


def metric_gap(
    model: nn.Module,
    loader: Iterable[Any],
    metric: Metric,
    set_mode: Callable[[str], None],
    batches: int = 16,
) -> tuple[float, float]:
    """The metric's mean over some batches in eval and in train mode."""
    kept = list(islice(loader, batches))
    means = {}
    for mode in ("eval", "train"):
        values = []
        for batch in kept:
            set_mode(mode)
            with seeded(), torch.no_grad():
                values.append(float(metric(model, cloned(batch))))
        means[mode] = sum(values) / max(len(values), 1)
    return means["eval"], means["train"]


def one_class_batches(
    runs: Runs, labels: Sequence[Any], draws: Draws
) -> tuple[float, float] | None:
    """How far outputs move from the whole batch's in batches of one class, and in mixed ones.

    In train mode, mean over samples; the mixed batches have the sizes of the classes. None where
    no class has two samples.
    """
    classes: dict[Any, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        classes[label.item() if isinstance(label, Tensor) else label].append(i)
    alike = [tuple(members) for members in classes.values() if len(members) > 1]
    if len(classes) < 2 or not alike:
        return None
    # Dealt out in turn, so that each holds as many classes as it can.
    dealt = [i for turn in _turns(list(classes.values())) for i in turn]
    mixed, start = [], 0
    for members in alike:
        mixed.append(tuple(dealt[start : start + len(members)]))
        start += len(members)
    whole = per_sample(runs.run("train", draws=Draws(draws, everyone(runs.size))), runs.size)

    def moved(groups: list[tuple[int, ...]]) -> float:
        found = []
        for group in groups:
            output = runs.run("train", group, draws=Draws(draws, Apart(group, runs.size)))
            for i, parts in zip(group, per_sample(output, len(group)), strict=True):
                amount = relative_rms(parts, whole[i])
                if amount is not None:
                    found.append(amount)
        return sum(found) / len(found) if found else 0.0

    return moved(alike), moved(mixed)


def _turns(groups: list[list[int]]) -> Iterator[list[int]]:
    for place in range(max(map(len, groups))):
        yield [group[place] for group in groups if place < len(group)]


def padded_images(batch: Any) -> Any | None:
    """The batch with its images (a list of tensors (C, H, W)) padded to one size by zeros at the
    bottom and the right; None where there is no such list, or nothing to pad."""
    images = images_of(batch)
    if images is None or len({image.shape for image in images}) == 1:
        return None
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    return with_images(batch, [_pad(image, height, width) for image in images])


def images_of(batch: Any) -> list[Tensor] | None:
    """The batch's list of images of shape (C, H, W), or None."""
    first = batch[0] if isinstance(batch, tuple) and batch else batch
    if (
        isinstance(first, list)
        and first
        and all(isinstance(image, Tensor) and image.dim() == 3 for image in first)
    ):
        return first
    return None


def with_images(batch: Any, images: list[Tensor]) -> Any:
    """The batch with other images."""
    return (images, *batch[1:]) if isinstance(batch, tuple) else images


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


def padding_coupling(runs: Runs, batch: Any) -> float | None:
    """How far an image's output in eval mode moves when a larger mate makes its batch pad it.

    The mate is the second sample, cut or padded to the image's size and then half as large again
    by zeros. None where the batch is no list of
    images.
    """
    images = images_of(batch)
    if images is None or len(images) < 2:
        return None
    two = take(batch, (0, 1), len(images))
    one, other = images_of(two) or []
    height, width = one.shape[1:]
    mate = _pad(other[:, :height, :width], height, width)
    large = _pad(mate, height + height // 2, width + width // 2)
    batches = [with_images(two, [one, second]) for second in (mate, large)]
    outputs = [per_sample(runs.run("eval", batch=b), 2)[0] for b in batches]
    if not outputs[0]:
        return None
    return output_distance(*outputs)


def slice_coupling(module: nn.Module, call: Call) -> float | None:
    """How far a module's first rows move when the other half of its rows is taken away.

    For a module whose rows are no samples, such as one in a detector's head; None where it has one
    row or its input is no single tensor.
    """
    args, kwargs = cloned(call.inputs)
    given = [t for t in tensors((args, kwargs)) if t.dim()]
    if len(given) != 1 or given[0].shape[0] < 2:
        return None
    rows = given[0].shape[0] // 2
    half = take((args, kwargs), range(rows), given[0].shape[0])
    with seeded(), torch.no_grad():
        whole, part = module(*args, **kwargs), module(*half[0], **half[1])
    if not isinstance(whole, Tensor) or not isinstance(part, Tensor):
        return None
    return distance(whole[:rows], part) if whole[:rows].shape == part.shape else None


def first_not_finite(recording: Recording) -> str | None:
    """The first module of a recording whose output holds NaN or infinity."""
    for name in recording.order:
        for call in recording.calls[name]:
            for t in tensors(call.output):
                if t.is_floating_point() and not bool(t.isfinite().all()):
                    return name
    return None
