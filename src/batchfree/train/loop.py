"""What every kind of training shares: Lightning's Trainer, its surroundings, and how a run ends."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor
from safetensors.torch import save
from torch import nn

from batchfree._errors import ConfigError, DataError
from batchfree._files import write_atomically
from batchfree._weights import METADATA_KEY
from batchfree.train.build import evaluation_interval, total_steps
from batchfree.train.callbacks import (
    Checkpoint,
    EvaluateAtEnd,
    History,
    InterruptHandler,
    PeriodicCheckpoint,
    Progress,
    StepHook,
    StopRequested,
)
from batchfree.train.checkpoint import AtomicCheckpointIO, load_checkpoint
from batchfree.train.checks import check_batch_split
from batchfree.train.config import BaseConfig
from batchfree.train.loggers import build_loggers
from batchfree.train.optim import Schedule, build_schedule
from batchfree.train.output import finite, unwritable, write_json


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended the training after a whole step.

    Attributes:
        checkpoint: what `fit(..., resume=checkpoint)` continues from; None if none was written.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__(f"training was interrupted; checkpoint: {checkpoint}")
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Plan:
    """A run's length and schedule, in optimizer steps.

    Attributes:
        steps: of the training.
        interval: from one evaluation to the next.
        schedule: of the learning rate.
    """

    steps: int
    interval: int
    schedule: Schedule


@dataclass(frozen=True)
class Monitor:
    """What a task's curve holds, and by what its best checkpoint is chosen.

    Attributes:
        prefixes: of the metrics in the curve.
        metric: whose best value is kept.
        mode: `min` or `max`.
    """

    prefixes: tuple[str, ...]
    metric: str
    mode: str


@dataclass(frozen=True)
class Ended:
    """A training that ran to its end.

    Attributes:
        curve: one point per evaluation.
        seconds: wall-clock time, evaluations included.
        checkpoint: the last; None where none was written.
        is_writer: whether this process writes the results.
    """

    curve: list[Any]
    seconds: float
    checkpoint: Path | None
    is_writer: bool


def plan(config: BaseConfig, samples_per_epoch: int | None) -> Plan:
    """The config's length and schedule for so many training images in a pass."""
    steps = total_steps(config, samples_per_epoch)
    return Plan(
        steps=steps,
        interval=evaluation_interval(config, steps, samples_per_epoch),
        schedule=build_schedule(
            config.schedule,
            total_steps=steps,
            steps_per_epoch=samples_per_epoch and samples_per_epoch / config.batch_size,
            learning_rate=config.learning_rate(),
        ),
    )


def run_loop(
    config: BaseConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    plan: Plan,
    monitor: Monitor,
    *,
    folder: Path | None,
    resume: Path | str | None,
    progress: bool,
    callbacks: Sequence[Callback],
    on_step: Callable[[int], None] | None,
) -> Ended:
    """Trains the module; arguments as for `fit`."""
    history = History(folder and folder / "history.json", monitor.prefixes)
    used: list[Callback] = [history, EvaluateAtEnd(plan.steps), *callbacks]
    if on_step is not None:
        used.append(StepHook(on_step))
    if config.optimizer.ema_decay is not None:
        used.append(EMAWeightAveraging(decay=config.optimizer.ema_decay))
    last = None
    if folder is not None:
        last = folder / "checkpoints" / "last.ckpt"
        used += [
            LearningRateMonitor("step"),
            Checkpoint(last.parent, "best", monitor.metric, monitor.mode),
            Checkpoint(last.parent, "last"),
            InterruptHandler(last, plan.interval),
            *([Progress()] if progress else []),
        ]
        if (every := config.trainer.checkpoint_every) is not None:
            used.append(PeriodicCheckpoint(last, every, plan.interval))
    trainer = build_trainer(config, plan.steps, plan.interval, used, folder)
    check_batch_split(config, trainer.world_size)
    _check_sync(module, trainer)
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except StopRequested as stop:
        raise TrainingInterrupted(stop.checkpoint) from None
    except SystemExit as e:  # what Lightning makes of Ctrl-C
        if isinstance(e.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as e:
        if "DataLoader worker" in str(e) and type(e) is RuntimeError:
            raise DataError(
                "a process that loads images died, most often because the machine ran out of "
                f"memory ({str(e).splitlines()[0]}); lower data.workers, or find out with "
                "--data.workers 0, and resume from the last checkpoint"
            ) from e
        raise
    if resume is not None and (saved := load_checkpoint(resume))["global_step"] >= plan.steps:
        # Lightning had nothing to do, so it has not put an EMA's weights in place either.
        module.load_state_dict(saved["state_dict"])
    return Ended(
        curve=history.curve,
        seconds=time.perf_counter() - started,
        checkpoint=last if last is not None and last.exists() else None,
        is_writer=trainer.is_global_zero,
    )


def _check_sync(module: nn.Module, trainer: pl.Trainer) -> None:
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if (
        trainer.world_size > 1
        and on_cpu
        and any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())
    ):
        raise ConfigError(
            "norm 'sync_bn' needs GPUs where there are several devices (PyTorch's limit): take "
            "trainer.accelerator gpu, one device, or gn"
        )


def build_trainer(
    config: BaseConfig, steps: int, interval: int, callbacks: list[Callback], folder: Path | None
) -> pl.Trainer:
    """Lightning's Trainer; the whole training is one of its epochs.

    So that a batch depends on its step number alone, whatever the length of a pass over the data.

    Raises:
        ConfigError: hardware, precision or strategy that Lightning cannot serve here.
    """
    c = config.trainer
    bar = any(isinstance(callback, Progress) for callback in callbacks)
    try:
        return pl.Trainer(
            accelerator=c.accelerator,
            devices=c.devices,
            num_nodes=c.num_nodes,
            strategy=c.strategy,
            precision=c.precision,  # type: ignore[arg-type]
            max_steps=steps,
            val_check_interval=interval * c.accumulate,
            num_sanity_val_steps=0,
            accumulate_grad_batches=c.accumulate,
            gradient_clip_val=c.gradient_clip,
            log_every_n_steps=min(c.log_every, steps),
            logger=build_loggers(folder) if folder is not None else False,
            callbacks=callbacks,
            enable_checkpointing=folder is not None,
            enable_progress_bar=bar,
            enable_model_summary=False,
            deterministic=c.deterministic or None,
            use_distributed_sampler=False,
            default_root_dir=folder,
            plugins=[AtomicCheckpointIO()],
        )
    except (MisconfigurationException, TypeError, ValueError) as e:
        raise ConfigError(f"trainer: {e}") from e


@contextmanager
def surroundings(config: BaseConfig) -> Iterator[None]:
    """The process's threads, generator, signals and Lightning's chatter, put back afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    main = threading.current_thread() is threading.main_thread()
    sigint = signal.getsignal(signal.SIGINT)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            for message in _CHATTER:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        if main and sigint is not None:
            signal.signal(signal.SIGINT, sigint)


# Lightning's remarks on choices that are made on purpose here.
_CHATTER = (
    "GPU available but not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Checkpoint directory .* exists and is not empty",
    "The dirpath has changed from",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


def save_result(
    folder: Path,
    result: Any,
    values: dict[str, Any],
    network: nn.Module,
    told: dict[str, Any],
) -> None:
    """Writes `history.json` and `model.safetensors`.

    Args:
        folder: the run's.
        result: carried by the error, where they cannot be written.
        values: of `history.json`; a curve's numbers that are not finite become null.
        network: whose weights are saved.
        told: what the weights' file says of itself, plain values.
    """
    try:
        write_json(folder / "history.json", {**values, "curve": finite(values["curve"])})
        weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        metadata = {METADATA_KEY: json.dumps(told)}
        write_atomically(folder / "model.safetensors", save(weights, metadata))
    except OSError as e:
        error = unwritable(folder, e)
        error.result = result
        raise error from e
