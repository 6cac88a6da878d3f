"""Random calls of the fused kernels. BATCHFREE_FUZZ_EXAMPLES: so many, others at each run."""

import os
from pathlib import Path

import pytest
import torch
from fused_cases import BACKEND, INTERPRETED, ON_CPU, Inputs, Outputs, assert_same_bits, per_sample
from fuzz_cases import calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounding import assert_within, expected

import batchfree
from batchfree.ops.fused import CODES, forward_op

pytestmark = [
    pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning"),
    pytest.mark.usefixtures("path", "nan_memory"),
]
EXAMPLES = os.environ.get("BATCHFREE_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or (3 if INTERPRETED else 300)),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def call_kernels(call, inputs, needs, threads):
    """The output and the gradients that are asked for, by the kernels."""
    torch.set_num_threads(threads)
    pairs = zip(inputs[:4], needs, strict=True)
    leaves = [t if t is None else t.detach().requires_grad_(need) for t, need in pairs]
    x, weight, bias, residual = leaves
    with batchfree.backend(BACKEND):
        y = batchfree.group_norm(
            x,
            call.num_groups,
            weight,
            bias,
            call.eps,
            activation=call.activation,
            residual=residual,
        )
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    assert y.requires_grad == bool(wanted)
    gradients = iter(torch.autograd.grad(y, wanted, inputs.dy) if wanted else ())
    of_leaves = [next(gradients) if t is not None and t.requires_grad else None for t in leaves]
    return Outputs(y.detach(), *of_leaves)


def on_meta(t):
    return (
        t if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
    )


@fuzz
@given(calls())
def test_any_call_is_right_to_a_few_units_of_rounding(call):
    inputs = call.inputs()
    before = [None if t is None else t.clone() for t in inputs]
    got = call_kernels(call, inputs, call.needs, call.threads)
    want, allowed = expected(inputs, call.num_groups, call.eps, call.activation)
    dtypes = (call.dtype, call.dtype, call.weight, call.bias, call.dtype)
    for name, a, b, error, dtype in zip(want._fields, got, want, allowed, dtypes, strict=True):
        if a is not None:
            assert a.dtype == dtype, name
            assert_within(name, a, b, error)
    for name, t, copy in zip(Inputs._fields, inputs, before, strict=True):
        assert t is None or torch.equal(t, copy), f"{name} was written to"


@fuzz
@given(calls())
def test_the_output_lies_in_memory_as_its_fake_does(call):
    tensors = call.inputs()[:4]
    rest = (call.num_groups, call.eps, CODES[call.activation])
    fakes = forward_op(*map(on_meta, tensors), *rest)
    for real, fake in zip(forward_op(*tensors, *rest), fakes, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


@fuzz
@given(calls(smallest_batch=1), st.integers(0, 4), st.integers(1, 3))
def test_a_sample_alone_equals_itself_in_the_batch(call, i, threads):
    inputs = call.inputs()
    rows = slice(i % call.shape[0], i % call.shape[0] + 1)
    together = call_kernels(call, inputs, [True] * 4, call.threads)
    alone = call_kernels(call, inputs.rows(rows), [True] * 4, threads)
    assert_same_bits(per_sample(alone), per_sample(together, rows))


WRONG_DTYPES = st.sampled_from([torch.int32, torch.bool, torch.complex64, torch.float8_e5m2])
WRONG_OBJECTS = st.sampled_from([1.0, "x", [0.0], object()])


@st.composite
def mistakes(draw, call):
    """One argument of a call, and a value of it that does not fit."""
    dy = call.inputs().dy
    c, shape = call.shape[1], call.shape
    name = draw(
        st.sampled_from(["x", "num_groups", "weight", "bias", "residual", "eps", "activation"])
    )
    if name == "x":
        wrong_shapes = st.sampled_from([(), (c,), (shape[0], 0), (shape[0], c, 0), (2, c + 1, 0)])
        value = draw(
            WRONG_DTYPES.map(lambda d: torch.zeros(shape, dtype=d))
            | wrong_shapes.map(torch.zeros)
            | WRONG_OBJECTS
            | st.none()
        )
    elif name == "num_groups":
        divides = st.integers(-(2**70), 2**70).filter(lambda g: g <= 0 or c % g)
        value = draw(divides | st.integers(-3, 3 * c).filter(lambda g: g <= 0 or c % g))
        value = draw(st.just(value) | st.none() | st.floats() | st.just("1"))
    elif name in ("weight", "bias"):
        wrong_shapes = st.sampled_from([(), (c + 1,), (0,), (2 * c,), (c, 1), (1, c)])
        narrow = torch.bfloat16 if call.dtype != torch.bfloat16 else torch.float16
        value = draw(
            (WRONG_DTYPES | st.just(narrow)).map(lambda d: torch.zeros(c, dtype=d))
            | wrong_shapes.map(lambda s: torch.zeros(s, dtype=call.dtype))
            | WRONG_OBJECTS
        )
    elif name == "residual":
        reshaped = [dy[..., None], dy[0:0] if shape[0] else dy[None], dy.flatten(), dy[:, 1:]]
        other = torch.float64 if call.dtype == torch.float32 else torch.float32
        value = draw(
            st.sampled_from(reshaped)
            | (WRONG_DTYPES | st.just(other)).map(lambda d: torch.zeros(shape, dtype=d))
            | WRONG_OBJECTS
        )
    elif name == "eps":
        value = draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), "1e-5", None]))
    else:
        value = draw(st.text() | st.integers() | st.lists(st.none()))
    return name, value


@ON_CPU
@fuzz
@given(st.data(), calls(), st.sampled_from([BACKEND, None]))
def test_a_call_that_does_not_fit_is_refused_by_name(data, call, backend):
    inputs = call.inputs()
    arguments = dict(zip(Inputs._fields[:4], inputs, strict=False))
    arguments.update(num_groups=call.num_groups, eps=call.eps, activation=call.activation)
    name, value = data.draw(mistakes(call))
    arguments[name] = value
    with batchfree.backend(backend), pytest.raises((ValueError, TypeError)) as refusal:
        batchfree.group_norm(**arguments)
    assert Path(batchfree.__file__).parent in refusal.traceback[-1].path.parents
