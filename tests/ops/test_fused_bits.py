"""The promise of the fused kernels: the same bits whatever the batch, the threads and the run."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fused_cases import BACKEND, DTYPES, LAYOUTS, assert_same_bits, draw, fused, per_sample
from oracle import ACTIVATIONS

import batchfree

pytestmark = [
    pytest.mark.filterwarnings("ignore::batchfree.DegenerateGroupWarning"),
    pytest.mark.usefixtures("path"),
]

# (N, C, *), groups. The kernels run one task per group (channels first) or sample (channels last)
# where that keeps all threads busy, else they split groups and samples: see csrc/parallel.h.
SHAPES = [
    ((5, 12), 4),
    ((130, 96), 1),
    ((4, 7, 33), 7),
    ((3, 6, 5, 7), 2),
    ((4, 10, 1, 1), 5),
    ((3, 3, 61, 67), 1),  # too few groups and samples for two threads, three channels
    ((3, 8, 130, 130), 1),  # a channel of over 16384 positions
    ((3, 8, 130, 127), 8),
    ((5, 64, 17, 16), 32),  # many groups
    ((4, 20, 129, 1), 2),  # one position over a leaf of channels-last rows
    ((3, 6, 31, 33), 1),
    ((3, 4, 6, 7, 8), 2),
    ((3, 40, 9, 9, 9), 4),
]
LARGE = [(shape, groups) for shape, groups in SHAPES if torch.Size(shape).numel() > 16384]
LEVEL3_CACHE_SIZE = 194  # _SC_LEVEL3_CACHE_SIZE of glibc, for which Python has no name
PLACES = [slice(0, 1), slice(-1, None), slice(1, 3), slice(None, None, 2)]


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def check_rows(inputs, num_groups, activation):
    together = fused(inputs, num_groups, activation)
    for rows in PLACES:
        apart = fused(inputs.rows(rows), num_groups, activation)
        assert_same_bits(per_sample(apart), per_sample(together, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_groups"), SHAPES)
def test_a_slice_of_a_batch_equals_the_batch(shape, num_groups, dtype, layout):
    check_rows(draw(shape, dtype, layout), num_groups, "silu")


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_groups"), LARGE)
def test_a_slice_equals_the_batch_on_many_threads(shape, num_groups, dtype, threads, layout):
    torch.set_num_threads(threads)
    check_rows(draw(shape, dtype, layout), num_groups, "relu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_groups"), LARGE)
def test_one_two_and_eight_threads_agree(shape, num_groups, dtype, layout):
    inputs = draw(shape, dtype, layout)
    results = []
    for threads in (1, 2, 8, 3):
        torch.set_num_threads(threads)
        results.append(fused(inputs, num_groups, "silu"))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 6, 85, 83), (3, 24, 12, 11, 13), (33, 516)])
def test_every_activation_agrees_over_threads_runs_and_slices(
    shape, dtype, activation, residual, layout
):
    inputs = draw(shape, dtype, layout, residual=residual)
    first = fused(inputs, 3, activation)
    assert_same_bits(fused(inputs, 3, activation), first)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        assert_same_bits(fused(inputs, 3, activation), first)
        alone = fused(inputs.rows(slice(1, 2)), 3, activation)
        assert_same_bits(per_sample(alone), per_sample(first, slice(1, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 8])
def test_float32_parameters_of_half_inputs(dtype, threads, layout):
    torch.set_num_threads(threads)
    inputs = draw((4, 6, 70, 61), dtype, layout, parameter_dtype=torch.float32)
    assert_same_bits(fused(inputs, 2, "gelu"), fused(inputs, 2, "gelu"))
    check_rows(inputs, 2, "gelu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_agree_on_any_memory(dtype, layout):
    """Copies lie at other distances from a cache line, and old blocks hold other values."""
    inputs = draw((3, 5, 43, 47), dtype, layout)
    first = fused(inputs, 5, "gelu_tanh")
    for offset in (1, 3, 7):
        moved = []
        for t in inputs:
            room = t.new_full((t.numel() + offset,), float("nan"))
            moved.append(room[offset:].as_strided(t.shape, t.stride(), offset).copy_(t))
        assert_same_bits(fused(type(inputs)(*moved), 5, "gelu_tanh"), first)


def test_samples_far_apart_in_memory(layout):
    """Every other sample, and a window of a larger batch, are served as they lie."""
    inputs = draw((9, 8, 29, 31), torch.float32, layout)
    whole = fused(inputs, 2, "silu")
    for rows in (slice(2, 9, 3), slice(4, 8), [0, 5, 7]):
        assert_same_bits(per_sample(fused(inputs.rows(rows), 2, "silu")), per_sample(whole, rows))


@pytest.mark.parametrize("side", [64, 63])  # rows that all start on a vector's address, and few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_written_past_the_caches_equals_its_samples(dtype, side, layout):
    """Where the tensors together exceed the last cache, other instructions write the output."""
    cache = os.sysconf(LEVEL3_CACHE_SIZE) if sys.platform == "linux" else 0
    cache = cache if cache > 0 else 32 << 20
    if cache > 128 << 20:
        pytest.skip(f"a last cache of {cache >> 20} MiB asks for tensors too large for a test")
    shape = (64, side, side)
    batch = (cache // 2) // (torch.Size(shape).numel() * dtype.itemsize) + 1
    inputs = draw((batch, *shape), dtype, layout)
    together = fused(inputs, 32, "relu")
    for i in (0, batch // 2, batch - 1):
        rows = slice(i, i + 1)
        alone = fused(inputs.rows(rows), 32, "relu")
        assert_same_bits(per_sample(alone), per_sample(together, rows))


def test_calls_of_many_threads_at_once_agree(layout):
    """Python's threads, each of which shares its call out over torch's."""
    torch.set_num_threads(2)
    cases = [draw((3, 8, 61, 67), torch.bfloat16, layout, seed=seed) for seed in range(8)]
    alone = [fused(inputs, 2, "silu") for inputs in cases]
    with batchfree.backend(BACKEND), ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: fused(inputs, 2, "silu"), cases))
    for a, b in zip(together, alone, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("batch", [1, 2, 8, 13, 129])
def test_a_sample_equals_itself_in_a_batch_of_any_size(batch, layout):
    torch.set_num_threads(8)
    inputs = draw((129, 12, 13, 11), torch.bfloat16, layout)
    alone = fused(inputs.rows(slice(0, 1)), 4, "relu")
    together = fused(inputs.rows(slice(0, batch)), 4, "relu")
    assert_same_bits(per_sample(together, slice(0, 1)), per_sample(alone))


def test_parameter_gradients_are_the_sum_of_the_samples(layout):
    """In float32 the sum over samples is rounded once, from float64, whatever the batch."""
    inputs = draw((6, 8, 19, 23), torch.float32, layout)
    together = fused(inputs, 2, "silu")
    alone = [fused(inputs.rows(slice(i, i + 1)), 2, "silu") for i in range(6)]
    for name in ("dweight", "dbias"):
        parts = torch.stack([getattr(a, name) for a in alone]).double()
        rounding = 2**-24 * parts.abs().sum(0)
        error = (getattr(together, name).double() - parts.sum(0)).abs()
        assert (error <= 2 * rounding).all(), name
