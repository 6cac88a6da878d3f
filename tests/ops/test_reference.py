"""The reference's promise: the same bits whatever the batch, threads, strides and run."""

import pytest
import torch
from oracle import SHAPES

import batchfree
from batchfree.ops.reference import tree_sum

BITS = dict(rtol=0, atol=0)


def run(x, num_groups, activation="silu"):
    """y and dx of the reference."""
    c = x.shape[1]
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, c, generator=generator).to(x.dtype)
    x = x.detach().requires_grad_()
    with batchfree.backend("reference"):
        y = batchfree.group_norm(x, num_groups, weight, bias, activation=activation)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y) * 0.5)
    return y.detach(), dx


LARGER = [*SHAPES[:6], ((4, 64, 56, 56), 32), ((5, 32, 127, 3), 1), ((2, 48, 64, 64), 1)]


@pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning")
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("shape", "num_groups"), LARGER)
def test_a_sample_alone_equals_the_sample_in_its_batch(shape, num_groups, activation):
    x = torch.randn(shape)
    y, dx = run(x, num_groups, activation)
    for i in {0, shape[0] // 2, shape[0] - 1}:
        y_alone, dx_alone = run(x[i : i + 1], num_groups, activation)
        torch.testing.assert_close(y_alone, y[i : i + 1], **BITS)
        torch.testing.assert_close(dx_alone, dx[i : i + 1], **BITS)


@pytest.mark.parametrize(("shape", "num_groups"), LARGER[6:])
def test_one_two_and_eight_threads_agree(shape, num_groups):
    x = torch.randn(shape)
    results = []
    for threads in (1, 2, 8, 1):
        torch.set_num_threads(threads)
        results.append(run(x, num_groups))
    for y, dx in results[1:]:
        torch.testing.assert_close(y, results[0][0], **BITS)
        torch.testing.assert_close(dx, results[0][1], **BITS)


def test_layout_does_not_change_bits():
    x = torch.randn(3, 16, 9, 11)
    y, _ = run(x, 4)
    y_last, _ = run(x.contiguous(memory_format=torch.channels_last), 4)
    torch.testing.assert_close(y_last, y, **BITS)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 64, 1000])
def test_tree_sum_is_the_sum(m):
    x = torch.randn(3, m, dtype=torch.float64)
    torch.testing.assert_close(tree_sum(x), x.sum(-1))
