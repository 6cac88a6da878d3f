"""group_norm under double backward, functorch, forward mode and torch.compile."""

import pytest
import torch
from group_norm_cases import make

import batchfree


def test_gradcheck_and_double_backward(any_backend):
    x, weight, bias, residual, _ = make((2, 4, 3, 2), torch.float64)

    def f(x, weight, bias, residual):
        return batchfree.group_norm(x, 2, weight, bias, activation="silu", residual=residual)

    torch.autograd.gradcheck(f, (x, weight, bias, residual))
    torch.autograd.gradgradcheck(f, (x, weight, bias, residual))


def test_functorch_per_sample_gradients_and_vmap(any_backend):
    x, weight, bias, _, _ = (
        t if t is None else t.detach() for t in make((3, 4, 5, 5), residual=False)
    )

    def loss(weight, bias, one):
        y = batchfree.group_norm(one.unsqueeze(0), 2, weight, bias, activation="silu")
        return y.square().sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, None, 0))(weight, bias, x)
    for i in range(3):
        alone = torch.func.grad(loss, argnums=(0, 1))(weight, bias, x[i])
        for a, b in zip(each, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


def test_vmap_over_any_dimension_and_layout(any_backend):
    x = torch.randn(4, 4, 8, 4, 4)

    def norm(one):
        return batchfree.group_norm(one, 2, activation="relu")

    for dim in range(5):
        want = torch.stack([norm(one) for one in x.unbind(dim)])
        torch.testing.assert_close(torch.func.vmap(norm, in_dims=dim)(x), want)
    last = x[0].contiguous(memory_format=torch.channels_last)
    shifts = torch.arange(3.0)
    shifted = torch.func.vmap(lambda s: norm(last * (s + 1)))(shifts)
    torch.testing.assert_close(shifted[1], norm(last * 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch.func's own
def test_forward_mode_equals_reverse_mode(any_backend):
    x, weight, bias, residual, dy = (t.detach().double() for t in make((2, 4, 3, 3)))

    def f(x):
        return batchfree.group_norm(x, 2, weight, bias, activation="gelu", residual=residual)

    _, forward = torch.func.jvp(f, (x,), (dy,))
    _, pull = torch.func.vjp(f, x)
    torch.testing.assert_close((forward * dy).sum(), (pull(dy)[0] * dy).sum())


@pytest.mark.slow
def test_compile_full_graph_static_and_dynamic(any_backend):
    def f(x, weight, bias, residual):
        return batchfree.group_norm(x, 2, weight, bias, activation="relu", residual=residual)

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 4, 3, 3), (3, 4, 5, 7)]:
        tensors = make(shape)[:4]
        torch.testing.assert_close(compiled(*tensors), f(*tensors), rtol=1e-5, atol=1e-5)
