"""The operators under the fused call: schemas, fake kernels, misuse, and what autograd keeps."""

import pytest
import torch
from fused_cases import LAYOUTS, ON_CPU, draw, laid_out
from oracle import ACTIVATIONS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import batchfree

FORWARD = torch.ops.batchfree.group_norm.default
BACKWARD = torch.ops.batchfree.group_norm_backward.default
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
EVERYTHING = 15
pytestmark = pytest.mark.usefixtures("path")


def both_calls(inputs, num_groups, activation=None, *, splits=1, wanted=EVERYTHING):
    """The arguments of the two operators, and what the first returned."""
    x, weight, bias, residual, dy = inputs
    code = CODES[activation]
    forward = (x, weight, bias, residual, num_groups, 1e-5, code)
    y, statistics = outputs = FORWARD(*forward)
    keeps_y = activation == "relu" and residual is not None
    kept = None if keeps_y or activation is None else residual
    backward = (dy, x, weight, bias, kept, y if keeps_y else None, statistics, num_groups, code)
    return forward, (*backward, splits, wanted), outputs


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "activation", "affine", "residual"),
    [
        ((2, 6, 3, 5), torch.float32, "contiguous", "relu", True, True),
        ((2, 6, 3, 5), torch.float32, "channels_last", "silu", True, True),
        ((2, 6, 3, 5), torch.bfloat16, "channels_last", "relu", True, True),
        ((2, 6, 3, 5), torch.float16, "contiguous", "gelu", True, False),
        ((2, 6), torch.bfloat16, "contiguous", None, True, False),
        ((1, 6, 7), torch.float32, "contiguous", "gelu_tanh", False, True),
        ((2, 6, 2, 3, 4), torch.float16, "channels_last", None, False, False),
        ((2, 6, 2, 3, 4), torch.float32, "channels_last", "gelu", True, True),
        ((1, 6, 1, 1, 2, 2), torch.float32, "contiguous", "relu", False, False),
        ((0, 6, 3), torch.float32, "contiguous", "silu", True, True),
    ],
)
def test_opcheck_of_both_operators(shape, dtype, layout, activation, affine, residual):
    inputs = draw(shape, dtype, layout, residual=residual, parameter_dtype=torch.float32)
    if not affine:
        inputs = inputs._replace(weight=None, bias=None)
    forward, backward, _ = both_calls(inputs, 2, activation)
    for op, arguments in ((FORWARD, forward), (BACKWARD, backward)):
        assert set(opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("wanted", [1, 2, 4, 9])
def test_opcheck_of_a_part_of_the_gradients(wanted):
    _, backward, _ = both_calls(draw((2, 6, 3)), 2, "silu", wanted=wanted)
    assert set(opcheck(BACKWARD, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_sum_parameter_gradients_over_runs_of_samples(layout):
    inputs = draw((6, 8, 3, 5), layout=layout)

    def parameter_gradients(inputs, splits):
        return BACKWARD(*both_calls(inputs, 2, "silu", splits=splits)[1])[2:]

    for splits in (1, 2, 3, 6):
        size = 6 // splits
        parts = [inputs.rows(slice(i, i + size)) for i in range(0, 6, size)]
        alone = [parameter_gradients(part, 0) for part in parts]
        for got, want in zip(
            parameter_gradients(inputs, splits), zip(*alone, strict=True), strict=True
        ):
            assert torch.equal(got, torch.stack(want))


def test_schemas_neither_write_to_nor_hand_on_an_input():
    for op in (FORWARD, BACKWARD):
        schema = op._schema
        assert not schema.is_mutable
        assert all(a.alias_info is None for a in (*schema.arguments, *schema.returns))
    _, backward, outputs = both_calls(draw((2, 6, 3)), 2)
    given = {t.data_ptr() for t in backward if isinstance(t, torch.Tensor)}
    results = (*outputs, *BACKWARD(*backward))
    there = {t.data_ptr() for t in results if t.numel()}
    assert len(there) == sum(t.numel() > 0 for t in results)
    assert given & there == {outputs[1].data_ptr()}  # statistics, which backward was given


def with_strides(shape, how):
    """A tensor of the shape, in memory as `how` says."""
    x, rank = torch.randn(shape), len(shape)
    if how == "permuted":
        return x.permute(*reversed(range(rank))).contiguous().permute(*reversed(range(rank)))
    if how == "every_other_sample":
        return torch.cat([x, x])[::2]
    if how == "every_other_position":
        return torch.cat([x, x], -1)[..., ::2]
    if how == "channels_last_slice":
        return laid_out(torch.cat([x, x]), "channels_last")[::2]
    if how == "channels_of_channels_last":
        return laid_out(torch.cat([x, x], 1), "channels_last")[:, : shape[1]]
    if how == "expanded_samples":
        return x[:1].expand(shape)
    if how == "expanded_channels":
        return x[:, :1].expand(shape)
    return laid_out(x, how)


STRIDES = ["permuted", "every_other_sample", "every_other_position", "channels_last_slice"]
STRIDES += ["channels_of_channels_last", "expanded_samples", "expanded_channels"]
SHAPES = [(2, 8), (1, 8), (0, 8), (2, 8, 3), (2, 8, 1), (2, 8, 3, 5), (1, 8, 3, 5), (0, 8, 3, 5)]
SHAPES += [(2, 8, 1, 1), (2, 8, 1, 5), (2, 8, 5, 1), (2, 1, 3, 5), (2, 8, 2, 3, 4), (1, 8, 2, 3, 4)]
SHAPES += [(0, 8, 2, 3, 4), (2, 8, 2, 1, 1), (2, 8, 2, 2, 2, 2)]


@pytest.mark.parametrize("how", [*LAYOUTS, *STRIDES])
@pytest.mark.parametrize("shape", SHAPES)
def test_fake_results_have_the_strides_dtype_and_shape_of_real_ones(shape, how):
    x, weight = with_strides(shape, how).bfloat16(), torch.ones(shape[1])

    def results(x, weight, wanted, splits):
        outputs = FORWARD(x, weight, None, x, 1, 1e-5, CODES["relu"])
        statistics, flags = outputs[1], (1, CODES["silu"], splits, wanted)
        return outputs + BACKWARD(x, x, weight, weight, x, None, statistics, *flags)

    for wanted, splits in ((EVERYTHING, 1), (5, max(1, shape[0])), (0, 1)):
        real = results(x, weight, wanted, splits)
        with FakeTensorMode() as mode:
            fake = results(mode.from_tensor(x), mode.from_tensor(weight), wanted, splits)
        for a, b in zip(fake, real, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


MISUSE = [
    (dict(x=torch.ones(2, 8, 3, device="meta")), r"tensors on meta and cpu"),
    (dict(weight=torch.ones(8, device="meta")), r"tensors on cpu and meta"),
    (dict(residual=torch.ones(2, 8, 3, device="meta")), r"tensors on cpu and meta"),
    (dict(x=torch.ones(2, 8, 3, dtype=torch.int64)), r"x must be float32"),
    (dict(x=torch.ones(2, 8, 3, dtype=torch.float64)), r"x must be float32"),
    (dict(x=torch.ones(8)), r"x must have shape \(N, C, \*\)"),
    (dict(x=torch.ones(2, 8, 0)), r"0 positions"),
    (dict(x=torch.ones(2, 0, 3)), r"0 channels"),
    (dict(weight=torch.ones(4)), r"weight must hold one value per channel"),
    (dict(weight=torch.ones(8, 1)), r"weight must hold one value per channel"),
    (dict(bias=torch.ones(())), r"bias must hold one value per channel"),
    (dict(weight=torch.ones(8).long()), r"weight must be float32 or of x's dtype"),
    (dict(bias=torch.ones(8).half()), r"bias must be float32 or of x's dtype"),
    (dict(bias=torch.ones(8).double()), r"bias must be float32 or of x's dtype"),
    (dict(num_groups=0), r"0 groups do not divide 8"),
    (dict(num_groups=-2), r"-2 groups do not divide 8"),
    (dict(num_groups=3), r"3 groups do not divide 8"),
    (dict(num_groups=16), r"16 groups do not divide 8"),
    (dict(activation=-1), r"no such activation: -1"),
    (dict(activation=5), r"no such activation: 5"),
    (dict(residual=torch.ones(2, 8, 1)), r"residual must have x's shape"),
    (dict(residual=torch.ones(1, 2, 8, 3)), r"residual must have x's shape"),
    (dict(residual=torch.ones(2, 8, 3).half()), r"residual must have x's .*dtype"),
]
BACKWARD_MISUSE = [
    (dict(dy=torch.ones(2, 8, 3, device="meta")), r"tensors on cpu and meta"),
    (dict(dy=torch.ones(2, 8, 1)), r"dy must have x's shape"),
    (dict(dy=torch.ones(2, 8)), r"dy must have x's shape"),
    (dict(dy=torch.ones(2, 8, 3).half()), r"dy must have x's .*dtype"),
    (dict(statistics=torch.ones(3, 2, 1)), r"statistics must be what group_norm returned"),
    (dict(statistics=torch.ones(2, 2, 2)), r"statistics must be what group_norm returned"),
    (dict(statistics=torch.ones(3, 2, 2).double()), r"statistics must be what group_norm returned"),
    (dict(statistics=torch.ones(2, 2, 3).mT), r"statistics must be what group_norm returned"),
    (dict(y=torch.ones(2, 8, 1), activation=1), r"y must have x's shape"),
    (dict(y=torch.ones(2, 8, 3).half(), activation=1), r"y must have x's .*dtype"),
    (dict(y=torch.ones(2, 8, 3), activation=2), r"y serves for ReLU only"),
    (dict(splits=-1), r"-1 splits do not divide 2 samples"),
    (dict(splits=3), r"3 splits do not divide 2 samples"),
]


@ON_CPU
@pytest.mark.parametrize(
    ("change", "words"),
    [*MISUSE, *[(dict(eps=float(eps)), "eps must be finite") for eps in ("nan", "inf", "-inf")]],
)
def test_misuse_of_the_forward_operator_is_an_error(change, words):
    right = dict(x=torch.ones(2, 8, 3), weight=torch.ones(8), bias=None, residual=None)
    with pytest.raises(RuntimeError, match=words):
        FORWARD(**right | dict(num_groups=2, eps=1e-5, activation=0) | change)


@ON_CPU
@pytest.mark.parametrize(("change", "words"), [*MISUSE, *BACKWARD_MISUSE])
def test_misuse_of_the_backward_operator_is_an_error(change, words):
    right = dict(dy=torch.ones(2, 8, 3), x=torch.ones(2, 8, 3), weight=torch.ones(8), bias=None)
    right |= dict(residual=None, y=None, statistics=torch.ones(3, 2, 2))
    with pytest.raises(RuntimeError, match=words):
        BACKWARD(**right | dict(num_groups=2, activation=0, splits=1, wanted=EVERYTHING) | change)


@ON_CPU
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.ones(2, 8, 3, device="meta")), ValueError, r"weight .*meta, got cpu"),
        (dict(residual=torch.ones(2, 8, 3, device="meta")), ValueError, r"residual .*got meta"),
        (dict(num_groups=-2), ValueError, r"positive, got -2"),
        (dict(num_groups=16), ValueError, r"8 channels .* 16 groups.* 8"),
        (dict(weight=torch.ones(8, 1)), ValueError, r"weight .* \(8,\) .* got \(8, 1\)"),
        (dict(weight=torch.ones(8).long()), TypeError, r"weight .*int64"),
        (dict(weight=torch.ones(8).bfloat16()), TypeError, r"weight .*bfloat16"),
        (dict(bias=torch.ones(())), ValueError, r"bias .* got \(\)"),
        (dict(residual=torch.ones(2, 8)), ValueError, r"residual .*got \(2, 8\)"),
        (dict(residual=1.0), TypeError, r"residual .*got float"),
        (dict(x=torch.ones(2, 8, 3, dtype=torch.bool)), TypeError, r"torch.bool"),
        (dict(x=torch.ones(2, 8, 3).to_sparse()), TypeError, r"x must be dense, .*sparse_coo"),
        (dict(weight=torch.ones(8).to_sparse()), TypeError, r"weight must be dense"),
        (dict(residual=torch.ones(2, 8, 3).to_sparse()), TypeError, r"residual must be dense"),
        (dict(eps=float("inf")), ValueError, r"eps must be finite, got inf"),
        (dict(eps=10**400), ValueError, r"eps must be finite"),
        (dict(activation=1), ValueError, r"activation must be one of .* got 1"),
    ],
)
def test_the_public_call_says_it_in_the_callers_words(change, error, words):
    right = dict(x=torch.ones(2, 8, 3), num_groups=2, weight=torch.ones(8))
    with pytest.raises(error, match=words):
        batchfree.group_norm(**right | change)


def call(inputs, activation):
    x, weight, bias, residual, _ = inputs
    return batchfree.group_norm(x, 2, weight, bias, activation=activation, residual=residual)


def saved_tensors(inputs, activation):
    """What autograd keeps of a call, and the call's output."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = call(inputs, activation)
    return saved, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kept_are_x_parameters_and_statistics_and_one_more_of_an_activated_residual(
    activation, affine, residual, dtype
):
    inputs = draw((2, 6, 5, 7), dtype, residual=residual)
    if not affine:
        inputs = inputs._replace(weight=None, bias=None)
    inputs.x.requires_grad_()
    saved, y = saved_tensors(inputs, activation)
    want = [inputs.x, inputs.weight, inputs.bias] if affine else [inputs.x]
    if residual and activation:
        want.append(y if activation == "relu" else inputs.residual)
    pointers = {t.data_ptr() for t in want}
    [statistics] = [t for t in saved if t.data_ptr() not in pointers]
    assert statistics.dtype == torch.float32
    assert {t.data_ptr() for t in saved} - {statistics.data_ptr()} == pointers
    statistics_bytes = 3 * 2 * 2 * 4  # (mean, rstd, shift) of two groups of two samples
    assert sum(t.nbytes for t in saved) == statistics_bytes + sum(t.nbytes for t in want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_is_kept_where_no_gradient_will_be_asked_for(activation):
    inputs = draw((2, 6, 5, 7))
    assert saved_tensors(inputs, activation)[0] == []
    inputs.x.requires_grad_()
    with torch.no_grad():
        assert saved_tensors(inputs, activation)[0] == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [True, False])
def test_the_output_may_be_overwritten_unless_it_was_kept(activation, residual):
    """As nn.ReLU(inplace=True) does. Overwriting what was kept is an error, no wrong gradient."""
    inputs = draw((2, 6, 5, 7), residual=residual)
    inputs.x.requires_grad_()
    [want] = torch.autograd.grad(call(inputs, activation), inputs.x, 3 * inputs.dy)
    y = call(inputs, activation)
    y.mul_(3)
    if activation == "relu" and residual:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(inputs.dy)
    else:
        y.backward(inputs.dy)
        assert torch.equal(inputs.x.grad, want)


def test_where_only_a_plain_residual_wants_a_gradient_it_is_dy():
    inputs = draw((2, 6, 5, 7))
    residual = inputs.residual.detach().requires_grad_()
    y = batchfree.group_norm(inputs.x, 2, inputs.weight, inputs.bias, residual=residual)
    y.backward(inputs.dy)
    assert torch.equal(residual.grad, inputs.dy)
