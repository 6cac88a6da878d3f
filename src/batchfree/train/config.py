"""The settings of a training run, as plain dataclasses; `validate` checks their values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from batchfree._checks import suggest
from batchfree._errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

NormKind = Literal["bn", "gn", "ln", "in", "frozen_bn", "sync_bn", "none"]


@dataclass
class ModelConfig:
    """The network and its normalisation.

    Attributes:
        name: a model of `batchfree.models.MODELS`: resnet18 to resnet152, resnext50_32x4d or
            resnet_small.
        norm: the kind of norm, as `batchfree.norm_layer` names it.
        num_groups: groups per layer, for `gn`; give this or `channels_per_group`. With neither, 32.
        channels_per_group: channels per group, for `gn`.
        on_indivisible: what `gn` does where the wish does not divide a layer's channels.
        normalization_batch: images over which `bn` takes its statistics; None is each device's
            whole share of the batch.
        running_statistics: which chunks the running statistics of `bn` follow: the first worker's,
            as DistributedDataParallel keeps them, or their average.
        weight_standardization: standardise the weights of the convolutions.
        zero_init_residual: start the last gamma of every residual block at zero.
        width: channels of the first stage, for `resnet_small`.
        blocks_per_stage: residual blocks in each stage, for `resnet_small`.
        stem: `3x3` or `7x7`, for `resnet_small`.
        converted: a file of `batchfree convert` to fine-tune; the network and its norms are those
            of the file, and the fields above are not used.
        blend_until: where the file was converted by `--method blend`, the fraction of the training
            after which its layers are GroupNorms; None is half.
    """

    name: str = "resnet_small"
    norm: NormKind = "gn"
    num_groups: int | None = None
    channels_per_group: int | None = None
    on_indivisible: Literal["nearest", "gcd", "error"] = "nearest"
    normalization_batch: int | None = None
    running_statistics: Literal["rank0", "average"] = "rank0"
    weight_standardization: bool = False
    zero_init_residual: bool = True
    width: int | None = None
    blocks_per_stage: int | None = None
    stem: Literal["3x3", "7x7"] | None = None
    converted: str | None = None
    blend_until: float | None = None


@dataclass
class DataConfig:
    """The images.

    Attributes:
        kind: the embedded `digits_in_the_wild`, or an `image_folder`
            (root/train/CLASS/*.jpg and root/val/CLASS/*.jpg, ImageNet's layout).
        root: the image folder.
        size: height and width of the network's input, pixels.
        difficulty: of digits_in_the_wild: plain, standard or hard.
        train_samples: images in an epoch of digits_in_the_wild; None draws new ones endlessly.
        val_samples: validation images; None takes them all.
        eval_batch_size: images per validation step and device; it changes no result.
        workers: processes per device that load images; 0 loads in the training process.
    """

    kind: Literal["digits_in_the_wild", "image_folder"] = "digits_in_the_wild"
    root: str | None = None
    size: int = 16
    difficulty: Literal["plain", "standard", "hard"] = "standard"
    train_samples: int | None = None
    val_samples: int | None = None
    eval_batch_size: int = 128
    workers: int = 0


@dataclass
class OptimizerConfig:
    """SGD and its loss.

    Attributes:
        base_lr: the learning rate at a batch of `base_batch_size` images.
        base_batch_size: images per step that `base_lr` is meant for.
        linear_scaling: scale the learning rate with batch_size / base_batch_size (Goyal et al.
            2017); off, `base_lr` is the learning rate.
        momentum: SGD momentum.
        nesterov: Nesterov's momentum.
        weight_decay: L2 penalty's factor.
        decay_norm_parameters: apply it to the norms' gamma and beta too (the paper does on
            ImageNet and does not on COCO).
        label_smoothing: probability mass spread over all classes, 0 to below 1.
        ema_decay: decay per step of an exponential moving average of the weights, which is then
            what is evaluated and saved; None keeps none.
    """

    base_lr: float = 0.1
    base_batch_size: int = 32
    linear_scaling: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norm_parameters: bool = True
    label_smoothing: float = 0.0
    ema_decay: float | None = None


@dataclass
class ScheduleConfig:
    """How the learning rate moves.

    Attributes:
        kind: `cosine` to `final_factor`, `step` (times `gamma` at each milestone), or `constant`.
        unit: the unit of `warmup` and `milestones`: a fraction of the training, epochs, or
            optimizer steps.
        warmup: length of the linear warm-up, in `unit`; 0 for none.
        warmup_factor: factor of the learning rate at the warm-up's first step.
        warmup_above_lr: warm up only where the scaled learning rate exceeds this (the paper: 0.1).
        milestones: where `step` multiplies by `gamma`, in `unit`, from the start of training.
        gamma: the factor at each milestone.
        final_factor: factor of the learning rate at the end of `cosine`.
    """

    kind: Literal["cosine", "step", "constant"] = "cosine"
    unit: Literal["fraction", "epochs", "steps"] = "fraction"
    warmup: float = 0.05
    warmup_factor: float = 0.1
    warmup_above_lr: float = 0.0
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    final_factor: float = 0.0


@dataclass
class TrainerConfig:
    """How long, how often evaluated, on what hardware; the hardware options are Lightning's own.

    Attributes:
        max_steps: optimizer steps of the training; give this or `max_epochs`.
        max_epochs: passes over the training images.
        evaluate_every: optimizer steps between evaluations; None: once an epoch, or 15 times in
            all where the data has no epochs. The last step is always evaluated.
        checkpoint_every: optimizer steps between checkpoints; None: one after each evaluation only.
        log_every: optimizer steps between lines of the training log.
        accelerator: cpu, gpu, mps or auto.
        devices: number of devices per node, or auto.
        num_nodes: number of nodes.
        strategy: auto, ddp, fsdp or another of Lightning's.
        precision: 32-true, bf16-mixed, 16-mixed or another of Lightning's.
        accumulate: backward passes per optimizer step; the batch is split over them.
        gradient_clip: largest L2 norm of the gradient; None does not clip.
        channels_last: keep activations and weights in channels-last memory format.
        deterministic: ask PyTorch for deterministic algorithms on GPUs too; on a CPU a run repeats
            to the bit either way.
        threads: CPU threads of the training process; None leaves PyTorch's number.
    """

    max_steps: int | None = 1500
    max_epochs: float | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 50
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    gradient_clip: float | None = None
    channels_last: bool = False
    deterministic: bool = False
    threads: int | None = None


class BaseConfig:
    """What the settings of every kind of run share."""

    name: str
    seed: int
    batch_size: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dicts of plain values."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The config that `to_dict` wrote; what is left out has its default.

        Raises:
            ConfigError: an unknown field, with the nearest known one.
        """
        return _build(cls, settings, "", cls)

    def learning_rate(self) -> float:
        """The learning rate after the linear-scaling rule."""
        o = self.optimizer
        scale = self.batch_size / o.base_batch_size if o.linear_scaling else 1.0
        return o.base_lr * scale

    def replace(self, **sections: Any) -> Self:
        """A copy with other values; a dict changes fields of a section.

        Example:
            >>> from batchfree.train import Config
            >>> Config().replace(seed=1, trainer={"max_steps": 10}).trainer.max_steps
            10
        """
        current = {k: v for k, v in vars(self).items()}
        return replace(  # type: ignore[type-var]
            self,
            **{
                k: replace(current[k], **v) if isinstance(v, dict) else v
                for k, v in sections.items()
            },
        )


@dataclass
class Config(BaseConfig):
    """A complete training run.

    Attributes:
        name: what the run is called: its folder, its line in a report.
        seed: of the weights, the images and their order.
        batch_size: images per optimizer step, over all devices and accumulated passes together, so
            that a result does not depend on the hardware.
        model: the network and its normalisation.
        data: the images.
        optimizer: SGD and its loss.
        schedule: how the learning rate moves.
        trainer: how long, how often evaluated, on what hardware.

    Example:
        >>> from batchfree.train import Config, ModelConfig
        >>> Config(model=ModelConfig(norm="bn", normalization_batch=2)).batch_size
        32
    """

    name: str = "run"
    seed: int = 0
    batch_size: int = 32
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def field_types(section: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every field by its dotted name: `{"seed": int, "model.norm": ...}`."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        inner = is_dataclass(hint)
        types |= field_types(hint, f"{prefix}{name}.") if inner else {prefix + name: hint}
    return types


def unknown_field(name: str, config: type = Config) -> ConfigError:
    """The error for a field that there is not in a config, with the nearest that there is."""
    known = field_types(config)
    hint = suggest(name, known)
    if not hint:  # the same word in another section
        hint = suggest(name.split(".")[-1], [k.split(".")[-1] for k in known])
        word = hint.split("'")[1] if hint else ""
        full = next((k for k in known if k.split(".")[-1] == word), "")
        hint = f"; did you mean {full!r}?" if full else "; --print_config shows them all"
    return ConfigError(f"there is no field {name!r}{hint}")


def _build(section: type, settings: dict[str, Any], prefix: str, config: type) -> Any:
    hints = get_type_hints(section)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in hints:
            raise unknown_field(prefix + key, config)
        nested = is_dataclass(hints[key]) and isinstance(value, dict)
        values[key] = _build(hints[key], value, f"{prefix}{key}.", config) if nested else value
    return section(**values)
