"""A training of the batch-size experiment, as a run of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchfree._errors import SweepError
from batchfree.experiments.results import CurvePoint, Measured, Row
from batchfree.train.config import Config

_STOP_CHECK = 10  # steps between looks at whether the sweep still wants the run


class ClassifierRun:
    """What every training of a classifier tells a sweep of itself.

    Attributes:
        config: the training.
    """

    config: Config

    @property
    def steps(self) -> int:
        """Its optimizer steps."""
        assert self.config.trainer.max_steps is not None
        return self.config.trainer.max_steps

    @property
    def settings(self) -> dict[str, Any]:
        """Its config in plain values."""
        return self.config.to_dict()

    @property
    def row_type(self) -> type[Measured]:
        """`Row`."""
        return Row

    @property
    def needs(self) -> tuple[str, ...]:
        """No other run."""
        return ()


@dataclass(frozen=True)
class BatchSizeRun(ClassifierRun):
    """One training of a classifier; see `batchfree.experiments.pool.Run`.

    Attributes:
        norm: what the report calls the norm: bn, gn, ln, in or gn+ws.
        normalization_batch: the size that the row stands for, or None where it stands for all.
        config: the training.
    """

    norm: str
    normalization_batch: int | None
    config: Config

    @property
    def name(self) -> str:
        """Its file's name under rows/, without the ending."""
        size = "any" if self.normalization_batch is None else self.normalization_batch
        return f"{self.norm.replace('+', '-')}-{size}-seed{self.config.seed}"

    def is_usable(self) -> bool:
        """It leaves nothing to others."""
        return True

    def train(
        self,
        on_step: Callable[[int], None],
        stopping: Callable[[], bool],
        provenance: dict[str, Any],
    ) -> Row:
        """Trains, minutes at most, and returns the row.

        Raises:
            SweepError: the sweep was stopped.
        """
        from batchfree.train.run import fit

        def step_done(step: int) -> None:
            on_step(step)
            if step % _STOP_CHECK == 0 and stopping():
                raise SweepError("the sweep was stopped")

        return classifier_row(
            self.norm,
            self.normalization_batch,
            self.config,
            fit(self.config, on_step=step_done),
            provenance,
        )

    def tidy(self) -> None:
        """It leaves nothing behind."""


def classifier_row(
    norm: str,
    normalization_batch: int | None,
    config: Config,
    result: Any,
    provenance: dict[str, Any],
) -> Row:
    """The row of a finished training; `result` is the `FitResult` of its config."""
    curve = tuple(
        CurvePoint(p["step"], p["train_loss"], p["train_error"], p["val_error"])
        for p in result.curve
    )
    assert config.trainer.max_steps is not None
    return Row(
        norm=norm,
        normalization_batch=normalization_batch,
        seed=config.seed,
        steps=config.trainer.max_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate(),
        train_error=result.train_error,
        val_error=result.val_error,
        curve=curve,
        seconds=round(result.seconds, 2),
        config=config.to_dict(),
        **provenance,
    )
