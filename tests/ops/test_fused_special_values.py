"""NaN, infinity and the far tails of the activations: what they touch, and what they do not."""

import pytest
import torch
from fused_cases import DTYPES, LAYOUTS, Inputs, draw, fused, laid_out
from oracle import ACTIVATIONS, oracle

pytestmark = pytest.mark.usefixtures("path")

HALF = [torch.bfloat16, torch.float16]
POISONS = [float("nan"), float("inf"), -float("inf")]
# Places in a (3, 8, 31, 33) tensor: heads, middles and tails of vectors and of leaves.
PLACES = [(1, 2, 0, 0), (1, 3, 15, 7), (1, 2, 30, 32), (1, 3, 30, 31)]
SPOILT = (slice(1, 2), slice(2, 4))  # sample 1, group 1 of 4


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def outside(t):
    """The elements of the other groups."""
    mask = torch.ones(t.shape[:2], dtype=torch.bool)
    mask[SPOILT] = False
    return t[mask]


def replaced(inputs, name, place, value):
    """The inputs with one element of one of them replaced."""
    t = getattr(inputs, name).clone()
    t[place] = value
    return inputs._replace(**{name: t})


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_x_it_stays_in_its_group(dtype, place, poison, layout):
    inputs = draw((3, 8, 31, 33), dtype, layout)
    clean = fused(inputs, 4, "silu")
    spoilt = fused(replaced(inputs, "x", place, poison), 4, "silu")
    for name in ("y", "dx", "dresidual"):
        a, b = getattr(spoilt, name), getattr(clean, name)
        torch.testing.assert_close(outside(a), outside(b), rtol=0, atol=0)
    assert spoilt.y[place].isnan()
    if poison != poison:
        for t in (spoilt.y, spoilt.dx, spoilt.dresidual):
            assert t[SPOILT].isnan().all()
        assert torch.equal(spoilt.dweight.isnan().nonzero().flatten(), torch.tensor([2, 3]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_dy_it_spoils_dx_of_its_group_and_one_channels_sums(dtype, activation, layout):
    inputs = draw((3, 8, 31, 33), dtype, layout)
    place = (1, 3, 15, 7)
    inputs.residual[place] = 9  # ReLU is open there
    clean = fused(inputs, 4, activation)
    spoilt = fused(replaced(inputs, "dy", place, float("nan")), 4, activation)
    torch.testing.assert_close(spoilt.y, clean.y, rtol=0, atol=0)
    torch.testing.assert_close(outside(spoilt.dx), outside(clean.dx), rtol=0, atol=0)
    assert spoilt.dx[SPOILT].isnan().all()
    assert spoilt.dresidual.isnan().nonzero().tolist() == [list(place)]
    for sums in (spoilt.dweight, spoilt.dbias):
        assert sums.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 12)])
def test_nan_passes_through_every_activation(shape, dtype, activation, residual, layout):
    inputs = draw(shape, dtype, layout, residual=residual)
    inputs.x[1] = float("nan")
    got = fused(inputs, 4, activation)
    assert got.y[1].isnan().all()
    assert got.dx[1].isnan().all()
    assert not got.y[0].isnan().any()
    assert not got.dx[0].isnan().any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_the_residual_stays_in_its_element(dtype, activation, layout):
    inputs = draw((3, 8, 31, 33), dtype, layout)
    place = (1, 3, 15, 7)
    spoilt = fused(replaced(inputs, "residual", place, float("nan")), 4, activation)
    assert spoilt.y.isnan().nonzero().tolist() == [list(place)]


# As int16: the largest payload of both signs, and the least one, which signals.
BITS = {
    torch.bfloat16: [0x7FFF, -1, 0x7F81, 0xFF81 - 0x10000],
    torch.float16: [0x7FFF, -1, 0x7C01, 0xFC01 - 0x10000],
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["x", "residual", "dy", "weight", "bias"])
@pytest.mark.parametrize(("dtype", "bits"), [(d, b) for d in HALF for b in BITS[d]])
def test_every_nan_pattern_stays_nan(dtype, bits, name, activation, layout):
    """Rounding by integer addition would carry a large payload into the sign."""
    inputs = draw((2, 4, 5, 7), dtype, layout)
    getattr(inputs, name).view(torch.int16).fill_(bits)
    assert getattr(inputs, name).isnan().all()
    got = fused(inputs, 2, activation)
    assert got.y.isnan().all() or name == "dy"
    if name in ("x", "dy", "weight") or activation not in (None, "relu"):
        assert got.dx.isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001])
@pytest.mark.parametrize("dtype", HALF)
def test_every_nan_pattern_of_a_float32_parameter_stays_nan(dtype, bits, name, activation, layout):
    inputs = draw((2, 4, 5, 7), dtype, layout, parameter_dtype=torch.float32)
    getattr(inputs, name).view(torch.int32)[1] = bits
    got = fused(inputs, 2, activation)
    assert got.y[:, 1].isnan().all()
    assert not got.y[:, [0, 2, 3]].isnan().any()


def tails(dtype, layout):
    """z from -200 to 200: the residual, for an x that normalises to next to nothing."""
    z = torch.linspace(-200, 200, 2 * 4 * 25 * 16).reshape(2, 4, 25, 16).to(dtype)
    x = laid_out(torch.zeros_like(z), layout)
    x[..., 0], x[..., 1] = 1e-6, -1e-6
    weight, bias = torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype)
    return Inputs(x, weight, bias, laid_out(z, layout), torch.ones_like(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tails_of_the_activations(dtype, activation, layout):
    inputs = tails(dtype, layout)
    got = fused(inputs, 2, activation)
    for t in (got.y, got.dx, got.dresidual, got.dweight, got.dbias):
        assert t.isfinite().all()
    exact = [t.double() for t in inputs[:4]]
    z = exact[3].requires_grad_()
    want = oracle(*exact[:1], 2, *exact[1:3], activation=activation, residual=z)
    (gradient,) = torch.autograd.grad(want.sum(), z)
    # s - s^2 cancels in the tail, here as in PyTorch.
    rounding = dict(rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
    torch.testing.assert_close(got.y.double(), want, **rounding)
    kink = (z.abs() > 1e-2) | (activation != "relu")
    torch.testing.assert_close(got.dresidual.double()[kink], gradient[kink], **rounding)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tails_in_the_affine_map(dtype, activation, layout):
    """The same tails from gamma and beta, without a residual."""
    inputs = draw((2, 4, 13, 11), dtype, layout, residual=False)
    weight = torch.tensor([200.0, -100.0, 50.0, 0.0]).to(dtype)
    bias = torch.tensor([0.0, 200.0, -200.0, -90.0]).to(dtype)
    got = fused(inputs._replace(weight=weight, bias=bias), 2, activation)
    for t in (got.y, got.dx, got.dweight, got.dbias):
        assert t.isfinite().all()
