"""A run's checkpoint: written whole or not at all; read; and whether a config can continue it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from batchfree._errors import ConfigError
from batchfree._files import write_atomically
from batchfree.train.config import BaseConfig, TrainerConfig

# What a checkpoint's successor has to share with it; the rest may change, as a longer training.
_FIXED = ("seed", "batch_size", "model", "data", "optimizer", "schedule", "trainer")
# Of these, what changes no result.
_FREE = {
    "data.root",
    "data.workers",
    "data.eval_batch_size",
    *(
        f"trainer.{name}"
        for name in vars(TrainerConfig())
        if name not in ("accumulate", "precision")
    ),
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then puts it in its place.

    Lightning's own goes through the system's temporary folder: where that is another file system, a
    full disk leaves half a checkpoint instead of the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves it at `path`, whose folder is made."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), content.getbuffer())


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; tensors and plain values only, no pickled code.

    Raises:
        ConfigError: no such file, a damaged one, or one of another program.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f"there is no checkpoint at {str(path)!r}; a run keeps its own in its folder under "
            "checkpoints/last.ckpt"
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved["batchfree"]["config"], saved["global_step"]
    except Exception as e:  # a damaged file fails in as many ways as it has parts
        raise ConfigError(
            f"{str(path)!r} is no checkpoint of batchfree train, or it is damaged; resume from "
            "another, such as best.ckpt beside it"
        ) from e
    return saved


def check_checkpoint(path: Path, config: BaseConfig) -> None:
    """Raises unless the file is a checkpoint that this config can continue.

    Raises:
        ConfigError: what `load_checkpoint` raises; a setting that a resumed run must share.
    """
    old, new = load_checkpoint(path)["batchfree"]["config"], config.to_dict()
    if old.get("task") != new.get("task"):
        tasks = {None: "classification"}
        was, now = (tasks.get(c.get("task"), c.get("task")) for c in (old, new))
        raise ConfigError(f"the checkpoint is one of {was}, this run one of {now}")
    for name, was, now in (d for key in _FIXED for d in _differences(key, old.get(key), new[key])):
        if name not in _FREE:
            raise ConfigError(
                f"the checkpoint was trained with {name}={was!r}, this run asks for {now!r}; "
                "resume with the same settings, or start a new run without --resume"
            )


def _differences(key: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [d for k in names for d in _differences(f"{key}.{k}", old.get(k), new.get(k))]
    return [] if old == new else [(key, old, new)]
