"""Inputs for the tests of the fused kernels, and one call of them, forward and backward.

The same tests serve every backend of such kernels: BATCHFREE_BACKEND=triton runs them on the Triton
kernels, on the GPU, or with TRITON_INTERPRET=1 in Triton's interpreter (`make triton`, `make gpu`).
"""

import os
from typing import NamedTuple

import pytest
import torch

import batchfree
from batchfree.ops.cpu import INTERPRETED

BACKEND = os.environ.get("BATCHFREE_BACKEND") or "cpu"
DEVICE = "cuda" if BACKEND == "triton" and not INTERPRETED else "cpu"
ON_CPU = pytest.mark.skipif(DEVICE != "cpu", reason="holds tensors of the CPU")
NATIVE = pytest.mark.skipif(INTERPRETED, reason="not for an interpreter")
INTERPRETED_ELEMENTS = 2000

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last"]


class Inputs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    dy: torch.Tensor

    def rows(self, rows):
        """The same of some samples, not copied."""
        residual = None if self.residual is None else self.residual[rows]
        return self._replace(x=self.x[rows], residual=residual, dy=self.dy[rows])


class Outputs(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor
    dbias: torch.Tensor
    dresidual: torch.Tensor | None


def laid_out(t, layout):
    """t in channels last where the layout and the rank are for it, else contiguous."""
    if layout == "channels_last" and t.dim() in (4, 5):
        last = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
        return t.contiguous(memory_format=last)
    return t.contiguous()


def draw(
    shape, dtype=torch.float32, layout="contiguous", *, residual=True, parameter_dtype=None, seed=0
):
    """Normal values, x shifted off zero; parameters of x's dtype unless another is named."""
    if INTERPRETED and torch.Size(shape).numel() > INTERPRETED_ELEMENTS:
        pytest.skip("takes long in Triton's interpreter")
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*size, of=dtype, shift=0.0):
        values = torch.randn(size, generator=generator, device="cpu")
        return (values + shift).to(DEVICE, of)

    return Inputs(
        laid_out(normal(*shape, shift=0.3), layout),
        normal(shape[1], of=parameter_dtype or dtype, shift=1.0),
        normal(shape[1], of=parameter_dtype or dtype),
        laid_out(normal(*shape), layout) if residual else None,
        laid_out(normal(*shape), layout),
    )


def differentiate(function, inputs):
    """y = function(x, weight, bias, residual) and the gradients of (y * dy).sum()."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs[:4]]
    y = function(*leaves)
    there = [t for t in leaves if t is not None]
    gradients = iter(torch.autograd.grad(y, there, inputs.dy))
    return Outputs(y.detach(), *(None if t is None else next(gradients) for t in leaves))


def fused(inputs, num_groups, activation=None, eps=1e-5):
    """By the kernels under test, and by nothing else."""

    def function(x, weight, bias, residual):
        return batchfree.group_norm(
            x, num_groups, weight, bias, eps, activation=activation, residual=residual
        )

    with batchfree.backend(BACKEND):
        return differentiate(function, inputs)


def per_sample(outputs, rows=slice(None)):
    """What belongs to samples, which leaves out the gradients of the parameters."""
    residual = None if outputs.dresidual is None else outputs.dresidual[rows]
    return outputs._replace(
        y=outputs.y[rows], dx=outputs.dx[rows], dresidual=residual, dweight=None, dbias=None
    )


def assert_same_bits(got, want):
    """Of everything there is: values, signs of zero and NaN payloads."""
    assert got._fields == want._fields
    for name, a, b in zip(want._fields, got, want, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            bits = torch.int32 if a.dtype == torch.float32 else torch.int16
            assert torch.equal(a.view(bits), b.view(bits)), name
