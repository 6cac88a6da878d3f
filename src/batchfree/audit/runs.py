"""Runs of a model on a batch or on some of its samples: same mode, same state, same draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.audit.alignment import Apart, distance
from batchfree.audit.randomness import Draws, seeded
from batchfree.audit.tree import (
    batch_size,
    children,
    cloned,
    in_dtype,
    map_tensors,
    take,
    tensors,
)

Forward = Callable[[nn.Module, Any], Any]
MODES = ("eval", "train")


def call_model(model: nn.Module, batch: Any) -> Any:
    """model(batch); a tuple is spread as positional arguments, a dict as keyword arguments."""
    if isinstance(batch, tuple) and not hasattr(batch, "_fields"):
        return model(*batch)
    if type(batch) is dict:
        return model(**batch)
    return model(batch)


class Runs:
    """A model, a batch, and the ways to run one on the other.

    Args:
        model: inside of `left_as_found`.
        batch: its input, as `call_model` takes it.
        restore: sets the model to what it was found as.
        forward: calls the model on a batch.

    Attributes:
        size: the number of samples in the batch.
        done: how many samples' forward passes were made.
    """

    def __init__(
        self, model: nn.Module, batch: Any, restore: Callable[[], None], forward: Forward
    ) -> None:
        size = batch_size(batch)
        assert size is not None
        self.model, self.batch, self.size = model, batch, size
        self.restore, self.forward = restore, forward
        # Whose mode is set with this one's: another run of the model that this model is a part of.
        self.mode_of = self
        self._found_training = model.training
        self.dtype: torch.dtype | None = None
        self.done = 0

    def set_mode(self, mode: str) -> None:
        """Sets "eval", or "train": as it was found where it was training, frozen parts included."""
        self.restore()
        whole = self.mode_of
        if mode == "eval":
            whole.model.eval()
        elif not whole._found_training:
            whole.model.train()
        if self.dtype is not None:
            self.model.to(self.dtype)

    def run(
        self,
        mode: str,
        samples: Sequence[int] | None = None,
        *,
        draws: Draws | None = None,
        around: Any = None,
        batch: Any = None,
    ) -> Any:
        """The output for the whole batch, or for these samples.

        Args:
            mode: "eval" or "train".
            samples: numbers of samples, in the order in which they stand in the batch.
            draws: records or repeats the random draws.
            around: a context manager that the call runs in.
            batch: another batch than the whole one.
        """
        batch = self.batch if batch is None else batch
        given = cloned(batch) if samples is None else take(cloned(batch), samples, self.size)
        self.done += self.size if samples is None else len(samples)
        self.set_mode(mode)
        with ExitStack() as stack:
            stack.enter_context(seeded())
            stack.enter_context(torch.no_grad())
            if around is not None:
                stack.enter_context(around)
            stack.enter_context(draws if draws is not None else Draws())
            return self.forward(self.model, given)

    def run_with_gradient(self, mode: str) -> tuple[Any, Any]:
        """The output for the whole batch as a graph, and the batch that it reaches back to."""
        inputs = cloned(self.batch)
        for t in tensors(inputs):
            if t.is_floating_point():
                t.requires_grad_()
        self.done += self.size
        self.set_mode(mode)
        for p in self.model.parameters():
            p.requires_grad_(False)
        with seeded(), torch.enable_grad():
            # A model may write into its input, which a leaf forbids.
            return self.forward(self.model, map_tensors(Tensor.clone, inputs)), inputs

    @contextmanager
    def in_float64(self) -> Iterator[None]:
        """Parameters, buffers and the batch in float64 inside of the block."""
        single, self.dtype = self.batch, torch.float64
        self.batch = in_dtype(single, torch.float64)
        try:
            yield
        finally:
            self.batch, self.dtype = single, None
            self.restore()


def per_sample(output: Any, size: int) -> list[list[Tensor]]:
    """The parts of an output that belong to each sample; losses belong to none.

    Returns:
        For each sample its tensors; empty lists where no part of the output has samples.
    """
    parts: list[list[Tensor]] = [[] for _ in range(size)]

    def walk(tree: Any) -> None:
        if isinstance(tree, Tensor):
            scaled = [d for d in range(tree.dim()) if tree.shape[d] and tree.shape[d] % size == 0]
            if scaled:
                cut = tree.unflatten(scaled[0], (size, -1)).movedim(scaled[0], 0)
                for i in range(size):
                    parts[i].append(cut[i])
            return
        found = children(tree)
        if found is None:
            return
        items = [part for _, part in found[0]]
        if len(items) == size and isinstance(tree, list) and not _has_all(items, size):
            for i, part in enumerate(items):
                parts[i].extend(tensors(part))
            return
        for part in items:
            walk(part)

    walk(output)
    return parts


def _has_all(items: list[Any], size: int) -> bool:
    """Whether each item holds all samples: levels of features instead of samples."""
    return all(isinstance(t, Tensor) and t.dim() >= 2 and t.shape[0] == size for t in items)


def output_distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Of one sample's output in two runs; infinite where the shapes differ."""
    if len(a) != len(b) or any(s.shape != t.shape for s, t in zip(a, b, strict=True)):
        return float("inf")
    return max((distance(s, t) for s, t in zip(a, b, strict=True)), default=0.0)


def everyone(size: int) -> Apart:
    """The whole batch, as samples of itself."""
    return Apart(tuple(range(size)), size)
