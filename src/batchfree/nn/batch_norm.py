"""BatchNorm over a chosen normalisation batch, frozen BatchNorm, and SyncBatchNorm.

Each takes the same `activation=` and `residual` as GroupNorm, so that one network definition
serves every norm.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree._checks import check_channels, check_choice
from batchfree.ops.activations import Activation, add_and_activate, check_activation

RunningStatistics = Literal["rank0", "average"]


def check_normalization_batch(value: object) -> None:
    """Raises ValueError unless `value` is None or a positive int."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return
    raise ValueError(
        "normalization_batch must be a positive number of samples, or None for the whole batch, "
        f"got {value!r}"
    )


class _ChunkedBatchNorm(_BatchNorm):
    """What BatchNorm1d, 2d and 3d share; documented at `BatchNorm2d`."""

    _ranks: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        normalization_batch: int | None = None,
        running_statistics: RunningStatistics = "rank0",
        activation: Activation | None = None,
    ) -> None:
        check_normalization_batch(normalization_batch)
        check_choice(running_statistics, get_args(RunningStatistics), "running_statistics")
        check_activation(activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.normalization_batch = normalization_batch
        self.running_statistics = running_statistics
        self.activation = activation

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self._ranks:
            ranks = " or ".join(f"{r}-D" for r in self._ranks)
            raise ValueError(
                f"{type(self).__name__} takes {ranks} inputs, got shape {tuple(input.shape)}"
            )
        check_channels(input, self.num_features)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(BN(input) + residual): shape (N, C, *) to the same."""
        n = self.normalization_batch
        if not self.training or n is None or n >= input.shape[0]:
            return add_and_activate(super().forward(input), residual, self.activation)
        self._check_input_dim(input)
        y = self._normalize_chunks(input.split(n))
        return add_and_activate(y, residual, self.activation)

    def _normalize_chunks(self, chunks: tuple[Tensor, ...]) -> Tensor:
        factor = self._update_factor()
        running = self._running_statistics_of(len(chunks))
        outputs = [
            F.batch_norm(chunk, mean, variance, self.weight, self.bias, True, factor, self.eps)
            for chunk, (mean, variance) in zip(chunks, running, strict=True)
        ]
        mean, variance = self.running_mean, self.running_var
        if self.running_statistics == "average" and mean is not None and variance is not None:
            means, variances = zip(*running, strict=True)
            mean.copy_(torch.stack(means).mean(0))
            variance.copy_(torch.stack(variances).mean(0))
        return torch.cat(outputs)

    def _update_factor(self) -> float:
        """Counts the batch; returns the weight of its statistics in the running ones."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def _running_statistics_of(self, chunks: int) -> list[tuple[Any, Any]]:
        """The (mean, variance) that each chunk's forward updates in place, or (None, None)."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:
            return [(None, None)] * chunks
        if self.running_statistics == "rank0":
            return [(mean, variance)] + [(None, None)] * (chunks - 1)
        return [(mean.clone(), variance.clone()) for _ in range(chunks)]

    def extra_repr(self) -> str:
        """torch's own, the normalisation batch and the activation."""
        text = super().extra_repr()
        if self.normalization_batch is not None:
            text += f", normalization_batch={self.normalization_batch}"
            text += f", running_statistics={self.running_statistics}"
        return text if self.activation is None else f"{text}, activation={self.activation}"


class BatchNorm1d(_ChunkedBatchNorm):
    """BatchNorm of (N, C) or (N, C, L) over a normalisation batch; see `BatchNorm2d`."""

    _ranks = (2, 3)


class BatchNorm2d(_ChunkedBatchNorm, nn.BatchNorm2d):
    """BatchNorm of (N, C, H, W) whose training statistics are taken over chunks of the batch.

    In training mode the batch is cut into chunks of `normalization_batch` samples, in order, and
    each chunk is normalised by its own statistics, by the call that a worker of
    `normalization_batch` samples makes under DistributedDataParallel, all in one process. A batch
    that does not divide leaves a shorter last chunk, as a worker with the rest would have. In eval
    mode it is `torch.nn.BatchNorm`.

    Args:
        num_features: the channels C.
        eps, momentum, affine, track_running_stats, device, dtype: as `torch.nn.BatchNorm2d`.
        normalization_batch: samples per chunk; None takes the whole batch.
        running_statistics: what the running mean and variance follow: `"rank0"` the first chunk
            only, as DDP keeps rank 0's buffers; `"average"` the mean over the chunks' own updates,
            as workers that average their buffers keep.
        activation: `None`, `"relu"`, `"silu"`, `"gelu"` or `"gelu_tanh"`, applied after the norm
            and the residual.

    Raises:
        ValueError: a normalisation batch below 1; in training, a chunk with one value per channel.

    Source: Ioffe & Szegedy 2015; the normalisation batch is that of Wu & Johnson, "Rethinking
    'Batch' in BatchNorm", 2021, section 2.

    Example:
        >>> import batchfree, torch
        >>> bn = batchfree.BatchNorm2d(16, normalization_batch=2, activation="relu")
        >>> bn(torch.randn(8, 16, 4, 4)).shape  # as 4 workers of 2 samples
        torch.Size([8, 16, 4, 4])
    """

    _ranks = (4,)


class BatchNorm3d(_ChunkedBatchNorm):
    """BatchNorm of (N, C, D, H, W) over a normalisation batch; see `BatchNorm2d`."""

    _ranks = (5,)


class SyncBatchNorm(nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` with the activation and the residual of this package's layers.

    Statistics are shared by all workers of the process group; outside one, and in eval mode, it
    is BatchNorm.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> SyncBatchNorm(64, activation="relu").activation
        'relu'
    """

    def __init__(
        self, num_features: int, *args: Any, activation: Activation | None = None, **kwargs: Any
    ) -> None:
        check_activation(activation)
        super().__init__(num_features, *args, **kwargs)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(SyncBN(input) + residual): shape (N, C, *) to the same."""
        return add_and_activate(super().forward(input), residual, self.activation)


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and fixed affine: the paper's BN*.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, where all four are buffers
    that neither training nor an optimiser moves. Loads the state of a BatchNorm of any dimension,
    or of torchvision's and detectron2's frozen ones.

    Args:
        num_features: the channels C of inputs (N, C, *).
        eps: added to the variance.
        device, dtype: of the buffers.
        activation: `None`, `"relu"`, `"silu"`, `"gelu"` or `"gelu_tanh"`.

    Raises:
        ValueError: an unknown activation; an input of other channels.

    Source: Wu & He 2018, section 4.2 (BN*); He et al., "Mask R-CNN", 2017.

    Example:
        >>> import torch
        >>> frozen = FrozenBatchNorm(64)
        >>> _ = frozen.load_state_dict(torch.nn.BatchNorm2d(64).state_dict())
        >>> list(frozen.parameters())
        []
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.num_features = num_features
        self.eps = eps
        self.activation = activation
        for name, value in (
            ("weight", 1.0),
            ("bias", 0.0),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ):
            buffer = torch.full((num_features,), value, device=device, dtype=dtype)
            self.register_buffer(name, buffer)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(BN*(input) + residual): shape (N, C, *) to the same."""
        check_channels(input, self.num_features)
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return add_and_activate(y, residual, self.activation)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Channels, eps and the activation."""
        text = f"{self.num_features}, eps={self.eps}"
        return text if self.activation is None else f"{text}, activation={self.activation}"
