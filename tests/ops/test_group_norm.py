"""group_norm against float64, on every backend: values, gradients, layouts, mixes, errors."""

import itertools

import pytest
import torch
from group_norm_cases import CHOICES, DTYPES, TOLERANCE, make
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ACTIVATIONS, SHAPES, oracle
from torch.testing._internal.common_methods_invocations import op_db

import batchfree


def check_against_oracle(tensors, num_groups, activation, tolerance):
    x, weight, bias, residual, dy = tensors
    exact = [t if t is None else t.detach().double().requires_grad_() for t in tensors[:4]]
    if activation == "relu":  # rounding may move z across the kink: no gradient from there
        z64 = oracle(exact[0], num_groups, *exact[1:3], residual=exact[3])
        dy = dy * (z64.abs() > 10 * tolerance["atol"])
    y = batchfree.group_norm(x, num_groups, weight, bias, activation=activation, residual=residual)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    leaves = [t for t in (x, weight, bias, residual) if t is not None]
    gradients = torch.autograd.grad(y, leaves, dy)
    y64 = oracle(exact[0], num_groups, *exact[1:3], activation=activation, residual=exact[3])
    gradients64 = torch.autograd.grad(y64, [t for t in exact if t is not None], dy.double())
    torch.testing.assert_close(y.double(), y64, **tolerance)
    for got, want in zip(gradients, gradients64, strict=True):
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        torch.testing.assert_close(got.double() / scale, want / scale, **tolerance)


@pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_groups"), SHAPES)
def test_values_and_gradients_equal_float64(any_backend, nan_memory, shape, num_groups, dtype):
    for activation in ACTIVATIONS:
        check_against_oracle(make(shape, dtype), num_groups, activation, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_parameters_serve_half_inputs(any_backend, dtype):
    tensors = make((2, 8, 5, 5), dtype, parameter_dtype=torch.float32)
    check_against_oracle(tensors, 4, "silu", TOLERANCE[dtype])
    assert tensors[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("affine", "residual"), list(itertools.product([True, False], [True, False]))
)
def test_every_subset_of_optional_tensors(any_backend, affine, residual):
    tensors = make((2, 6, 4, 3), affine=affine, residual=residual)
    check_against_oracle(tensors, 3, "relu", TOLERANCE[torch.float32])


def test_weight_without_bias_and_bias_without_weight(any_backend):
    x, weight, bias, _, _ = make((2, 6, 4, 3))
    torch.testing.assert_close(
        batchfree.group_norm(x, 3, weight).double(), oracle(x, 3, weight), **TOLERANCE[x.dtype]
    )
    torch.testing.assert_close(
        batchfree.group_norm(x, 3, None, bias).double(),
        oracle(x, 3, None, bias),
        **TOLERANCE[x.dtype],
    )


@pytest.mark.parametrize("subset", list(itertools.product([True, False], repeat=4))[:-1])
def test_every_subset_of_requires_grad(any_backend, subset):
    tensors = [t.detach().clone() for t in make((2, 6, 4, 3))]
    full = [t.clone().requires_grad_() for t in tensors[:4]]
    y = batchfree.group_norm(full[0], 3, *full[1:3], activation="gelu", residual=full[3])
    want = torch.autograd.grad(y, full, tensors[4])
    some = [t.clone().requires_grad_(on) for t, on in zip(tensors[:4], subset, strict=True)]
    y = batchfree.group_norm(some[0], 3, *some[1:3], activation="gelu", residual=some[3])
    got = torch.autograd.grad(y, [t for t in some if t.requires_grad], tensors[4])
    for a, b in zip(got, itertools.compress(want, subset), strict=True):
        torch.testing.assert_close(a, b)


def strided(x, how):
    """A tensor of x's values with other strides."""
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "sliced":
        return torch.stack([x, x + 1], -1)[..., 0]
    if how == "misaligned":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert how == "expanded"
    return x[:1, :, :, :1].expand(x.shape)


@pytest.mark.parametrize("how", ["channels_last", "transposed", "sliced", "misaligned", "expanded"])
def test_strides_of_input_residual_and_gradient_do_not_matter(any_backend, how):
    x, weight, bias, residual, dy = (t.detach() for t in make((2, 6, 5, 4)))
    tensors = [strided(x, how), weight, bias, strided(residual, how), strided(dy, how)]
    tensors = [t.requires_grad_() for t in tensors[:4]] + tensors[4:]
    check_against_oracle(tensors, 3, "silu", TOLERANCE[torch.float32])


def test_gradient_of_a_sum_has_stride_zero(any_backend):
    x, weight, bias, _, _ = make((2, 6, 5, 4))
    batchfree.group_norm(x, 3, weight, bias, activation="silu").sum().backward()
    x64 = x.detach().double().requires_grad_()
    oracle(x64, 3, weight.detach(), bias.detach(), activation="silu").sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, **TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("rank", "memory_format"), [(4, torch.channels_last), (5, torch.channels_last_3d)]
)
def test_memory_format_is_kept(any_backend, rank, memory_format):
    x = torch.randn(2, 8, *[3] * (rank - 2)).contiguous(memory_format=memory_format)
    y = batchfree.group_norm(x, 4, activation="relu", residual=x)
    assert y.is_contiguous(memory_format=memory_format)
    assert not y.is_contiguous()
    assert batchfree.group_norm(x.contiguous(), 4).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_keeps_the_dtype_of_x(any_backend, dtype):
    x, weight, bias, _, _ = make((2, 6, 4, 4), dtype, parameter_dtype=torch.float32)
    want = batchfree.group_norm(x, 3, weight, bias, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = batchfree.group_norm(x, 3, weight, bias, activation="silu")
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("mean", "spread"), [(100.0, 0.01), (1e4, 1.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_spread_about_a_large_mean_keeps_its_digits(any_backend, mean, spread, layout):
    x = (mean + spread * torch.randn(2, 8, 32, 32)).contiguous(memory_format=layout)
    want = oracle(x, 2)
    torch.testing.assert_close(batchfree.group_norm(x, 2).double(), want, rtol=2e-3, atol=2e-3)


def test_constant_groups_give_the_bias(any_backend):
    x = torch.full((2, 4, 8, 8), 3.7)
    bias = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y = batchfree.group_norm(x, 2, None, bias)
    torch.testing.assert_close(y, bias.view(1, 4, 1, 1).expand_as(y), rtol=0, atol=1e-3)


def test_first_element_outlier(any_backend):
    x = torch.randn(1, 4, 64, 64)
    x[0, 0, 0, 0] = 1e4
    torch.testing.assert_close(
        batchfree.group_norm(x, 1).double(), oracle(x, 1), rtol=1e-3, atol=1e-4
    )


def test_float16_near_its_largest_value(any_backend):
    x = (65504 * (torch.rand(2, 4, 16, 16) * 2 - 1)).half()
    y = batchfree.group_norm(x, 2)
    torch.testing.assert_close(y.double(), oracle(x, 2), **TOLERANCE[torch.float16])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_group(any_backend, poison):
    x = torch.randn(3, 8, 5, 5)
    clean = batchfree.group_norm(x, 4)
    x[1, 2, 3, 3] = poison  # sample 1, group 1 (channels 2 and 3)
    y = batchfree.group_norm(x, 4)
    spoilt = torch.zeros(3, 8, dtype=torch.bool)
    spoilt[1, 2:4] = True
    assert y[1, 2, 3, 3].isnan()
    torch.testing.assert_close(y[~spoilt], clean[~spoilt], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [None, torch.float32, "x"])
@pytest.mark.parametrize("bias", [None, torch.float32, "x"])
def test_any_mix_of_parameter_dtypes(any_backend, dtype, weight, bias):
    x = torch.randn(2, 8, 5, 5).to(dtype)
    weight, bias = (
        None if p is None else torch.randn(8).to(dtype if p == "x" else p) for p in (weight, bias)
    )
    y = batchfree.group_norm(x, 4, weight, bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), oracle(x, 4, weight, bias), **TOLERANCE[dtype])


def test_nothing_is_saved_without_gradients(any_backend):
    x, weight, bias, _, _ = make((2, 4, 3, 3))
    saved = []
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = batchfree.group_norm(x, 2, weight, bias, activation="silu")
    assert not y.requires_grad
    assert saved == []


def test_meta_strides_equal_real_strides(any_backend):
    for x in (torch.randn(2, 8, 3, 3), torch.randn(2, 3, 3, 8).permute(0, 3, 1, 2)):
        real = batchfree.group_norm(x, 4, activation="relu")
        meta = batchfree.group_norm(x.to("meta"), 4, activation="relu")
        assert meta.stride() == real.stride()


def torch_op():
    return next(op for op in op_db if op.name == "nn.functional.group_norm")


@pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torchs_own_sample_inputs(any_backend, dtype):
    count = 0
    for sample in torch_op().sample_inputs("cpu", dtype):
        got = batchfree.group_norm(sample.input, *sample.args, **sample.kwargs)
        want = torch.nn.functional.group_norm(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(got, want, equal_nan=True)
        count += 1
    assert count > 10


def test_torchs_own_error_inputs(any_backend):
    count = 0
    for error in torch_op().error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError)):
            batchfree.group_norm(sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count >= 4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x="nothing"), TypeError, r"x must be a torch.Tensor, got str"),
        (dict(x=torch.ones(8)), ValueError, r"\(N, C, \*\).*got \(8,\).*unsqueeze"),
        (dict(x=torch.ones(2, 8, 3, dtype=torch.int64)), TypeError, r"int64.*x\.float"),
        (dict(x=torch.ones(2, 8, 3, dtype=torch.complex64)), TypeError, "complex64"),
        (dict(x=torch.ones(2, 8, 0)), ValueError, r"one position"),
        (dict(num_groups=3), ValueError, r"8 channels .* 3 groups.* 2 or 4"),
        (dict(num_groups=0), ValueError, r"positive, got 0"),
        (dict(num_groups=2.0), TypeError, r"an int, got float"),
        (dict(weight=torch.ones(4)), ValueError, r"weight .* \(8,\) .* got \(4,\)"),
        (dict(weight=[1.0] * 8), TypeError, r"weight .* got list"),
        (dict(bias=torch.ones(8, dtype=torch.float64)), TypeError, r"bias .*float32.*float64"),
        (dict(bias=torch.ones(8, device="meta")), ValueError, r"bias .*cpu, got meta"),
        (dict(residual=torch.ones(2, 8, 1)), ValueError, r"residual .*\(2, 8, 3\).*expand_as"),
        (dict(residual=torch.ones(2, 8, 3).half()), TypeError, r"residual\.to\(torch.float32\)"),
        (dict(activation="rellu"), ValueError, r"did you mean 'relu'"),
        (dict(eps="small"), TypeError, r"eps .* got str"),
        (dict(eps=float("nan")), ValueError, r"eps must be finite"),
    ],
)
def test_errors_say_what_arrived_and_what_to_do(change, error, words):
    arguments = dict(x=torch.ones(2, 8, 3), num_groups=2) | change
    with pytest.raises(error, match=words):
        batchfree.group_norm(**arguments)


def test_degenerate_groups_warn_once_and_give_the_bias(any_backend):
    x, bias = torch.randn(2, 4), torch.arange(4.0)
    with pytest.warns(batchfree.DegenerateGroupWarning, match=r"use fewer groups"):
        y = batchfree.group_norm(x, 4, None, bias)
    batchfree.group_norm(x, 4, None, bias)  # a second warning would be an error
    torch.testing.assert_close(y, bias.expand(2, 4), rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_shapes_groups_and_dtypes_equal_float64(data):
    per_group = data.draw(st.integers(1, 6))
    num_groups = data.draw(st.integers(1, 6))
    spatial = data.draw(st.lists(st.integers(1, 7), max_size=3))
    shape = (data.draw(st.integers(0, 3)), per_group * num_groups, *spatial)
    dtype = data.draw(st.sampled_from(DTYPES))
    if per_group * torch.Size(spatial).numel() < 4:  # tiny groups: conditioning, not rounding
        return
    name = data.draw(st.sampled_from(list(CHOICES.values())))
    activation = data.draw(st.sampled_from(list(ACTIVATIONS)))
    x, weight, bias, residual, _ = make(shape, dtype, seed=data.draw(st.integers(0, 99)))
    with batchfree.backend(name), torch.no_grad():
        y = batchfree.group_norm(
            x, num_groups, weight, bias, activation=activation, residual=residual
        )
        want = oracle(x, num_groups, weight, bias, activation=activation, residual=residual)
    tolerance = {k: 4 * v for k, v in TOLERANCE[dtype].items()}
    torch.testing.assert_close(y.double(), want, **tolerance)
