"""Group Normalization in float64, written from the paper's definition, and shapes to try it on."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.relu,
    "silu": lambda z: z * torch.sigmoid(z),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}

# (N, C, *), groups: odd sizes, one channel a group, one group, one sample, many, 1-d to 3-d.
SHAPES = [
    ((2, 6, 3, 5), 3),
    ((1, 4, 7, 7), 1),
    ((3, 5, 31, 33), 5),
    ((13, 8), 2),
    ((2, 20, 1), 2),
    ((2, 30, 9), 1),
    ((129, 4, 1, 2), 2),
    ((1, 12, 3, 4, 5), 4),
    ((2, 40, 2, 2), 1),
    ((0, 8, 3, 3), 4),
]


def oracle(x, num_groups, weight=None, bias=None, eps=1e-5, activation=None, residual=None):
    """y in float64, element by element as equations 1 to 7 of the paper say."""
    x = x.double()
    c = x.shape[1]
    size = c // num_groups
    parts = []
    for g in range(num_groups):
        block = x[:, g * size : (g + 1) * size]
        dims = tuple(range(1, x.dim()))
        mean = block.mean(dims, keepdim=True)
        variance = ((block - mean) ** 2).mean(dims, keepdim=True)
        parts.append((block - mean) / torch.sqrt(variance + eps))
    y = torch.cat(parts, 1)
    shape = (1, c) + (1,) * (x.dim() - 2)
    if weight is not None:
        y = y * weight.double().view(shape)
    if bias is not None:
        y = y + bias.double().view(shape)
    if residual is not None:
        y = y + residual.double()
    return ACTIVATIONS[activation](y)
