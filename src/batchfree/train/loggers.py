"""TensorBoard and CSV logs that a full disk does not turn into the training's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from batchfree.train.output import tolerate_write_failure


class _TolerantCSV(CSVLogger):
    def save(self) -> None:
        with tolerate_write_failure(Path(self.save_dir)):
            super().save()


class _TolerantTensorBoard(TensorBoardLogger):
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        with tolerate_write_failure(Path(self.save_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with tolerate_write_failure(Path(self.save_dir)):
            super().save()

    def finalize(self, status: str) -> None:
        with tolerate_write_failure(Path(self.save_dir)):
            super().finalize(status)


def build_loggers(folder: Path) -> list[Logger]:
    """A TensorBoard and a CSV log in `folder/logs/version_N`, a new N each time a run goes on."""
    csv = _TolerantCSV(folder, name="logs")
    return [
        csv,
        _TolerantTensorBoard(folder, name="logs", version=csv.version, default_hp_metric=False),
    ]
