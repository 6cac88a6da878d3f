"""Inputs, tolerances and backends of the tests of group_norm."""

import torch

# "automatic" is the C++ kernels wherever they serve: float32, bfloat16 and float16 on the CPU.
CHOICES = {"automatic": None, "aten": "aten", "reference": "reference"}
TOLERANCE = {
    torch.float64: dict(rtol=1e-10, atol=1e-12),
    torch.float32: dict(rtol=1e-4, atol=2e-5),
    torch.bfloat16: dict(rtol=2e-2, atol=2e-2),
    torch.float16: dict(rtol=3e-3, atol=3e-3),
}
DTYPES = list(TOLERANCE)


def make(shape, dtype=torch.float32, *, affine=True, residual=True, parameter_dtype=None, seed=0):
    """x, weight, bias, residual and dy of a shape, as leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, of=dtype, shift=0.0):
        values = torch.randn(size, generator=generator, dtype=torch.float64) + shift
        return values.to(of).requires_grad_()

    of = parameter_dtype or dtype
    return (
        draw(*shape, shift=0.3),
        draw(shape[1], of=of, shift=1.0) if affine else None,
        draw(shape[1], of=of) if affine else None,
        draw(*shape) if residual else None,
        draw(*shape).detach(),
    )
