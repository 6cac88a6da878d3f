"""Errors of the fused kernels against float64, measured against those of PyTorch's own kernels."""

import pytest
import torch
import torch.nn.functional as F
from fused_cases import DTYPES, LAYOUTS, Inputs, differentiate, draw, fused, laid_out
from oracle import ACTIVATIONS, oracle

from batchfree.ops.activations import add_and_activate

pytestmark = [
    pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning"),
    pytest.mark.usefixtures("path"),
]

FACTOR, ULPS = 1.5, 4


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def exact(inputs, num_groups, activation, eps=1e-5):
    """In float64, from the same rounded inputs."""

    def function(x, weight, bias, residual):
        return oracle(x, num_groups, weight, bias, eps, activation, residual)

    return differentiate(function, Inputs(*(t if t is None else t.double() for t in inputs)))


def eager(inputs, num_groups, activation, eps=1e-5):
    """By PyTorch's kernels, in the inputs' dtype; on contiguous memory, where they are best."""

    def function(x, weight, bias, residual):
        y = F.group_norm(x, num_groups, weight, bias, eps)
        return add_and_activate(y, residual, activation)

    return differentiate(function, Inputs(*(t if t is None else t.contiguous() for t in inputs)))


def off_the_kink(inputs, num_groups):
    """dy set to zero where rounding may put z on the other side of ReLU's kink."""
    z = oracle(inputs.x, num_groups, inputs.weight, inputs.bias, residual=inputs.residual)
    near = z.abs() <= 8 * torch.finfo(inputs.x.dtype).eps * (1 + z.abs().max())
    return inputs._replace(dy=inputs.dy.masked_fill(near, 0))


def largest_terms(inputs, num_groups):
    """Of the sums and differences that gradients are: a result may be much smaller than its terms,
    but not more exact than they are."""
    n, c = inputs.x.shape[:2]
    x, dy = (t.double().reshape(n, num_groups, c // num_groups, -1) for t in (inputs.x, inputs.dy))
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + 1e-5)
    weight = inputs.weight.double().reshape(1, num_groups, -1, 1)
    terms = dict(dx=rstd * weight * dy, dweight=(x - mean) * rstd * dy, dbias=dy)
    return {name: t.abs().max().item() for name, t in terms.items()}


def check_errors(inputs, num_groups, activation):
    want = exact(inputs, num_groups, activation)
    theirs = eager(inputs, num_groups, activation)
    ours = fused(inputs, num_groups, activation)
    terms = largest_terms(inputs, num_groups)
    ulp = torch.finfo(inputs.x.dtype).eps
    for name, exactly, a, b in zip(want._fields, want, ours, theirs, strict=True):
        if exactly is None:
            continue
        error, reference = ((t.double() - exactly).abs().max().item() for t in (a, b))
        size = max(exactly.abs().max().item(), terms.get(name, 0.0))
        allowed = FACTOR * reference + ULPS * ulp * size
        assert error <= allowed, f"{name}: error {error:.3g}, PyTorch's {reference:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(), (7, 7), (31, 33), (56, 56), (127, 127)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 10, 20, 30, 40])
def test_errors_are_no_larger_than_torchs(channels, size, dtype, layout):
    """One group of 1 to 40 channels, which for one channel is Instance Norm."""
    if channels == 1 and not size:
        pytest.skip("one element a group: rstd is 1 / sqrt(eps), and gradients are rounding alone")
    inputs = draw((1 if size == (127, 127) else 2, channels, *size), dtype, layout)
    check_errors(inputs, 1, "silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [(40, 40), (40, 4), (30, 3), (12, 4), (64, 32)])
@pytest.mark.parametrize("size", [(7, 7), (31, 33)])
def test_many_groups(channels, groups, size, dtype, layout):
    check_errors(draw((3, channels, *size), dtype, layout, residual=False), groups, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "size", "groups"),
    [(320, 64, 32), (640, 32, 32), (1280, 16, 32), (1280, 8, 32), (4, 512, 2)],
)
def test_shapes_of_stable_diffusion_and_a_large_image(channels, size, groups, dtype, layout):
    check_errors(draw((1, channels, size, size), dtype, layout), groups, "silu")


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_activation(activation, residual, dtype, layout):
    inputs = draw((3, 24, 17, 19), dtype, layout, residual=residual)
    if activation == "relu":
        inputs = off_the_kink(inputs, 4)
    check_errors(inputs, 4, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_outputs_are_rounded_once(activation, dtype, layout):
    """0.5 ulp is the best there is; the activation's own error adds less than a twentieth."""
    inputs = draw((2, 24, 17, 19), dtype, layout, parameter_dtype=torch.float32)
    want = exact(inputs, 4, activation).y
    error = (fused(inputs, 4, activation).y.double() - want).abs()
    finfo = torch.finfo(dtype)
    ulp = finfo.eps * torch.exp2(torch.floor(torch.log2(want.abs().clamp_min(finfo.tiny))))
    assert (error <= 0.55 * ulp + 2e-6).all()


@pytest.mark.parametrize(("mean", "spread"), [(100, 0.01), (1e4, 1), (-1e4, 1), (1e6, 10)])
@pytest.mark.parametrize("size", [(7, 7), (127, 127)])
def test_a_small_spread_about_a_large_mean(mean, spread, size, layout):
    inputs = draw((2, 6, *size), layout=layout)
    inputs = inputs._replace(x=mean + spread * inputs.x)
    check_errors(inputs, 2, "silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1, 2047, 2048, -1])
def test_an_outlier_wherever_it_stands(place, dtype, layout):
    inputs = draw((1, 4, 31, 33), dtype, layout)
    inputs.x[0, 0].view(-1)[0 if place >= 1023 else place] = 1e4
    if layout == "contiguous":
        inputs.x.view(-1)[place] = -1e4
    check_errors(inputs, 1, "gelu")


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_groups_give_the_bias(value, dtype, layout):
    inputs = draw((2, 6, 31, 33), dtype, layout, residual=False)
    inputs = inputs._replace(x=torch.full_like(inputs.x, value))
    y = fused(inputs, 2).y
    want = inputs.bias.view(1, 6, 1, 1).expand_as(y)
    torch.testing.assert_close(y, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    check_errors(inputs, 2, "silu")


def test_float16_near_its_largest_value(layout):
    inputs = draw((2, 4, 31, 33), torch.float16, layout)
    uniform = torch.rand(inputs.x.shape, generator=torch.Generator().manual_seed(1))
    x = laid_out((65504 * (2 * uniform - 1)).half(), layout)
    x[:, :, 0, :2] = torch.tensor([65504.0, -65504.0]).half()
    check_errors(inputs._replace(x=x), 2, "silu")


@pytest.mark.parametrize("scale", [1e15, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_any_scale(scale, dtype, layout):
    inputs = draw((2, 4, 31, 33), dtype, layout)
    check_errors(inputs._replace(x=(scale * inputs.x.float()).to(dtype)), 2, "silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beyond_float32s_squares_the_output_is_torchs(dtype, layout):
    """From about 1e17 on squares overflow float32: rstd is 0, and y is the bias."""
    inputs = draw((2, 4, 9, 9), dtype, layout, residual=False)
    big = inputs._replace(x=(1e30 * inputs.x.float()).to(dtype))
    ours, theirs = fused(big, 2, "silu"), eager(big, 2, "silu")
    for name in ("y", "dx", "dbias"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
