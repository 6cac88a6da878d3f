"""The error and warning types that batchfree raises, all subclasses of built-in ones."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A configuration, recipe or command-line value that cannot be used.

    Its message is one line for a person: what was asked, why it cannot be, what to do.
    """


class DataError(ValueError):
    """A data folder or file that is missing, empty or damaged."""


class ResultsError(ValueError):
    """A results file that cannot be read: damaged, cut short or of another schema."""


class NonFiniteLoss(RuntimeError):
    """A loss came out NaN or infinite, and training stopped before it reached the weights.

    Attributes:
        image_ids: the images of the batch.
        checkpoint: the state before the step; None where none was written.
    """

    def __init__(self, message: str, image_ids: list[int], checkpoint: Path | None) -> None:
        super().__init__(message)
        self.image_ids, self.checkpoint = image_ids, checkpoint


class SweepError(RuntimeError):
    """Some runs of a sweep failed; every other run has finished and is kept."""


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot serve a call."""


class DegenerateGroupWarning(UserWarning):
    """A normalisation group holds one element, so the normalised value is always zero."""


class ConversionWarning(UserWarning):
    """A conversion went through, and its result may not be what is expected."""
