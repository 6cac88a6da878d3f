"""Signs and sizes of channels before a norm under which the group's mean hardly moves.

GroupNorm takes the sample's group mean away, and that is what BatchNorm does not do. With factors
a_c the mean that moves is that of a_c times the channels' own; factors of both signs let channels
that move together cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 64
_STEPS = 40


def contrast(means: Tensor, weights: Tensor, importance: Tensor, groups: int) -> Tensor | None:
    """Factors (C,) of unit mean square in each group that minimise the error by the group means.

    The error of channel c is importance_c / a_c^2 times the variance over samples of the group's
    mean of a m. It is minimised in the signs by flips, one after the other, from those of the
    covariance's smallest eigenvector, and then in the sizes by gradient descent.

    Args:
        means: (R, C), each sample's channel means m, centred, in units of the channel's deviation.
        weights: (R, 1), of the samples, summing to 1.
        importance: (C,), squared slope of the output in each channel, in the same units.
        groups: the number of groups.

    Returns:
        The factors; None where a group has one channel, or too many to search.
    """
    channels = means.shape[1] // groups
    if not 1 < channels <= _LARGEST:
        return None
    m = means.view(len(means), groups, channels)
    covariance = torch.einsum("rgi,rgj->gij", m * weights.unsqueeze(2), m)
    # A few samples do not tell more of a covariance: shrunk towards its diagonal.
    diagonal = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    covariance = covariance + 0.02 * diagonal + 1e-8 * torch.eye(channels, dtype=m.dtype)
    share = importance.view(groups, channels).clamp_min(1e-12)
    signs = _signs(covariance)
    log = torch.zeros_like(signs)
    best, least = log, _log_error(signs, covariance, share)
    for _ in range(_STEPS):
        factors = signs * log.exp()
        product = factors * torch.einsum("gij,gj->gi", covariance, factors)
        cost = share / factors.square()
        # Gradient in the logarithms: the channel's share of the variance less that of the cost.
        step = product / product.sum(1, keepdim=True) - cost / cost.sum(1, keepdim=True)
        log = (log - (0.25 * channels * step).clamp(-0.2, 0.2)).clamp(-2.5, 2.5)
        error = _log_error(signs * log.exp(), covariance, share)
        better = error < least
        best, least = torch.where(better.unsqueeze(1), log, best), torch.minimum(error, least)
    factors = signs * best.exp()
    return (factors / factors.square().mean(1, keepdim=True).sqrt()).reshape(-1)


def _log_error(factors: Tensor, covariance: Tensor, share: Tensor) -> Tensor:
    moved = torch.einsum("gi,gij,gj->g", factors, covariance, factors)
    return moved.log() + (share / factors.square()).sum(1).log()


def _signs(covariance: Tensor) -> Tensor:
    """Signs (G, n) that make the variance of the signed sum small."""
    smallest = torch.linalg.eigh(covariance)[1][:, :, 0]
    signs = torch.where(smallest >= 0, 1.0, -1.0).to(covariance.dtype)
    own = covariance.diagonal(dim1=1, dim2=2)
    for _ in range(2):
        for i in range(covariance.shape[1]):
            product = torch.einsum("gj,gj->g", covariance[:, i], signs)
            change = -4 * signs[:, i] * product + 4 * own[:, i]
            signs[:, i] = torch.where(change < 0, -signs[:, i], signs[:, i])
    return signs
