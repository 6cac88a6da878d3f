"""`fit`: one training run from its config to its result."""

from __future__ import annotations

import json
import logging
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor
from lightning_utilities.core.rank_zero import rank_zero_only
from safetensors.torch import save
from torch import nn

from batchfree._errors import ConfigError
from batchfree._files import write_atomically
from batchfree.convert import (
    ConversionPlan,
    collapse,
    read_manifest,
    save_converted,
    set_alpha,
)
from batchfree.train.blend import AnnealBlend
from batchfree.train.build import build_network, evaluation_interval, total_steps
from batchfree.train.callbacks import (
    Checkpoint,
    CurvePoint,
    EvaluateAtEnd,
    History,
    InterruptHandler,
    Progress,
    StepHook,
    StopRequested,
)
from batchfree.train.checkpoint import AtomicCheckpointIO, check_checkpoint, load_checkpoint
from batchfree.train.checks import check_batch_split, validate
from batchfree.train.classification import Classifier
from batchfree.train.config import Config
from batchfree.train.data import DataModule, build_data
from batchfree.train.loggers import build_loggers
from batchfree.train.optim import build_schedule
from batchfree.train.output import (
    finite,
    prepare,
    unwritable,
    write_json,
)


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended the training after a whole step.

    Attributes:
        checkpoint: what `fit(..., resume=checkpoint)` continues from; None if none was written.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__(f"training was interrupted; checkpoint: {checkpoint}")
        self.checkpoint = checkpoint


@dataclass
class FitResult:
    """What a training run came to.

    Attributes:
        val_error: validation error, %, median of the last five evaluations (as the paper reports).
        train_error: training error, %, median over the same evaluations' windows.
        curve: one point per evaluation.
        seconds: wall-clock time of the training, evaluations included.
        checkpoint: the last checkpoint; None without an output folder, or where none was written.
        model: the trained network (with EMA, the averaged one).
    """

    val_error: float
    train_error: float
    curve: list[CurvePoint]
    seconds: float
    checkpoint: Path | None
    model: nn.Module


def fit(
    config: Config,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    on_step: Callable[[int], None] | None = None,
) -> FitResult:
    """Trains a network from its config.

    On a CPU, a config gives the same weights to the bit each time, and a resumed run the same as an
    uninterrupted one.

    Args:
        config: the run.
        output: a folder for checkpoints (`checkpoints/last.ckpt`, `best.ckpt`), logs (TensorBoard
            and CSV, `logs/`), `history.json`, `config.yaml` and, at the end, `model.safetensors`.
            None writes nothing and shows nothing.
        resume: a checkpoint to continue from.
        progress: show a progress bar, where there is an output folder.
        callbacks: further Lightning callbacks.
        on_step: called with the number of each optimizer step done, counted from 1.

    Raises:
        ConfigError: values that cannot be used; a folder that holds another run; a checkpoint of
            another one.
        DataError: an image folder that is missing, empty or damaged.
        OutputError: the output folder cannot be written. Found before training where possible;
            later a checkpoint or log line is lost with a warning, training goes on, and the error
            at the end carries `result`.
        TrainingInterrupted: Ctrl-C, with an output folder: its `checkpoint` is one to resume from.
        KeyboardInterrupt: Ctrl-C without one, or pressed twice.

    Example:
        >>> from batchfree.train import Config, fit
        >>> config = Config().replace(trainer={"max_steps": 2}, data={"val_samples": 20})
        >>> fit(config).curve[-1]["step"]
        2
    """
    validate(config)
    folder = None if output is None else Path(output)
    if resume is not None:
        check_checkpoint(Path(resume), config)
    with _surroundings(config):
        return _fit(config, folder, resume, progress, list(callbacks), on_step)


def _fit(
    config: Config,
    folder: Path | None,
    resume: Path | str | None,
    progress: bool,
    callbacks: list[Callback],
    on_step: Callable[[int], None] | None,
) -> FitResult:
    data = build_data(config.data, config.seed)
    if folder is not None and getattr(rank_zero_only, "rank", 0) == 0:
        prepare(folder, config, resume=resume is not None)
    torch.manual_seed(config.seed)
    network = build_network(config.model, data.num_classes)
    if config.trainer.channels_last:
        network = network.to(memory_format=torch.channels_last)
    steps = total_steps(config, data.samples_per_epoch)
    interval = evaluation_interval(config, steps, data.samples_per_epoch)
    schedule = build_schedule(
        config.schedule,
        total_steps=steps,
        steps_per_epoch=data.samples_per_epoch and data.samples_per_epoch / config.batch_size,
        learning_rate=config.learning_rate(),
    )
    history = History(folder and folder / "history.json")
    callbacks = [history, EvaluateAtEnd(steps), *callbacks]
    if config.model.converted is not None:
        until = max(1, round((config.model.blend_until or 0.5) * steps))
        callbacks.append(AnnealBlend(until, collapse=False))
    if on_step is not None:
        callbacks.append(StepHook(on_step))
    if config.optimizer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=config.optimizer.ema_decay))
    last = None
    if folder is not None:
        last = folder / "checkpoints" / "last.ckpt"
        callbacks += [
            LearningRateMonitor("step"),
            Checkpoint(last.parent, "best", monitor="val_error"),
            Checkpoint(last.parent, "last"),
            InterruptHandler(last, interval),
            *([Progress()] if progress else []),
        ]
    trainer = build_trainer(config, steps, interval, callbacks, folder)
    check_batch_split(config, trainer.world_size)
    module = Classifier(network, config, schedule, len(data.validation))  # type: ignore[arg-type]
    started = time.perf_counter()
    try:
        trainer.fit(
            module,
            datamodule=DataModule(config, data, steps * config.trainer.accumulate),
            ckpt_path=resume,
            weights_only=True,
        )
    except StopRequested as stop:
        raise TrainingInterrupted(stop.checkpoint) from None
    except SystemExit as e:  # what Lightning makes of Ctrl-C
        if isinstance(e.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if resume is not None and (saved := load_checkpoint(resume))["global_step"] >= steps:
        # Lightning had nothing to do, so it has not put an EMA's weights in place either.
        module.load_state_dict(saved["state_dict"])
    if config.model.converted is not None:
        set_alpha(network, 0.0)
        collapse(network)
    recent = history.curve[-5:]
    result = FitResult(
        val_error=statistics.median(p["val_error"] for p in recent),
        train_error=statistics.median(p["train_error"] for p in recent),
        curve=history.curve,
        seconds=time.perf_counter() - started,
        checkpoint=last if last is not None and last.exists() else None,
        model=network,
    )
    if folder is not None and trainer.is_global_zero:
        _save_result(folder, result, config.model.converted)
    return result


def build_trainer(
    config: Config, steps: int, interval: int, callbacks: list[Callback], folder: Path | None
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
def _surroundings(config: Config) -> Iterator[None]:
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


# What a fine-tuned model's manifest shares with that of the file it started from.
_KEPT = ("source", "calibration", "anchor", "preprocessing")

# Lightning's remarks on choices that are made on purpose here.
_CHATTER = (
    "GPU available but not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Checkpoint directory .* exists and is not empty",
    "The dirpath has changed from",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


def _save_result(folder: Path, result: FitResult, converted: str | None) -> None:
    try:
        write_json(
            folder / "history.json",
            {
                "val_error": result.val_error,
                "train_error": result.train_error,
                "seconds": result.seconds,
                "curve": finite(result.curve),
            },
        )
        weights = {k: v.detach().cpu().contiguous() for k, v in result.model.state_dict().items()}
        write_atomically(folder / "model.safetensors", save(weights))
        if converted is not None:
            manifest = read_manifest(converted)
            save_converted(
                folder / "converted.safetensors",
                result.model,
                ConversionPlan.from_json(json.dumps(manifest["plan"])),
                method=f"{manifest['method']}, fine-tuned",
                **{key: manifest[key] for key in _KEPT},
            )
    except OSError as e:
        error = unwritable(folder, e)
        error.result = result
        raise error from e
