"""What is the Triton kernels' own: plans, ways that agree to the bit, and the GPU around them."""

import pytest
import torch
from fused_cases import BACKEND, DEVICE, DTYPES, LAYOUTS, assert_same_bits, draw, fused
from fused_cases import per_sample as of_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_paths import PATHS, SMALL, limits

import batchfree
from batchfree.ops.triton import plan
from batchfree.ops.triton.given import MOST_POSITIONS

KERNELS = pytest.mark.skipif(BACKEND != "triton", reason="BATCHFREE_BACKEND=triton asks for them")
GPU = pytest.mark.skipif(DEVICE != "cuda" or BACKEND != "triton", reason="needs a GPU")

SAMPLES = st.builds(
    lambda groups, width, positions, item, last: plan.Sample(
        groups * width, width, positions, item, last
    ),
    groups=st.integers(1, 64),
    width=st.integers(1, 80),
    positions=st.integers(1, 9) | st.integers(1, 1 << 20) | st.integers(1, MOST_POSITIONS),
    item=st.sampled_from([2, 4]),
    last=st.booleans(),
)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(SAMPLES, st.sampled_from([plan.Limits(), plan.Limits(**SMALL)]))
def test_every_sample_is_covered_by_tiles_that_the_kernels_can_take(sample, bounds):
    for steps in (bounds.steps_forward, bounds.steps_backward):
        found = plan.pieces(sample, bounds, steps)
        assert plan.power(found.R) == found.R
        assert plan.power(found.P) == found.P
        assert plan.power(found.warps) == found.warps
        assert 1 <= found.steps <= steps
        assert max(bounds.tile, 1) >= found.R * found.P
        assert found.chunks(sample) * found.chunk >= sample.positions
        assert found.blocks(sample) * found.R >= sample.channels
        # Units tile the blocks of a sample, and groups never straddle two of them.
        unit = found.unit(sample)
        assert found.blocks(sample) % unit == 0
        whole = unit == found.blocks(sample)
        assert whole or unit * found.R % sample.width == 0
    kept = plan.resident(sample, bounds, bounds.resident_forward, bounds.lane_forward)
    if kept is not None:
        assert kept.elements <= bounds.resident_forward
        assert sample.width <= kept.DP
        assert sample.positions <= kept.P
        assert kept.programs(sample) * kept.K >= sample.groups


@KERNELS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 6, 11, 13), 3), ((2, 16, 9, 6), 2), ((2, 5, 100), 1), ((1, 64, 5, 5), 1)],
)
def test_apart_and_interleaved_agree_to_the_bit(shape, groups, dtype, layout):
    inputs = draw(shape, dtype, layout)
    with limits(PATHS["pieces"]):
        apart = fused(inputs, groups, "silu")
    for in_flight in (0, 1, 7, 1000):
        with limits(PATHS["interleaved"] | dict(in_flight=in_flight)):
            assert_same_bits(fused(inputs, groups, "silu"), apart)


@KERNELS
@pytest.mark.parametrize(
    ("shape", "groups", "layout"),
    [((2, 6, 11, 13), 3, "contiguous"), ((1, 64, 5, 5), 1, "channels_last")],
)
def test_interleaved_is_what_the_limits_ask_for(monkeypatch, shape, groups, layout):
    """Else the test above would compare pieces with pieces."""
    from batchfree.ops.triton import backward, forward

    called = []
    for module in (forward, backward):
        step = module.Step

        def record(kernel, *args, step=step):
            called.append(kernel.fn.__name__)
            return step(kernel, *args)

        monkeypatch.setattr(module, "Step", record)
    with limits(PATHS["interleaved"]):
        fused(draw(shape, layout=layout), groups, "silu")
    assert called.count("interleaved") == 2


@GPU
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_more_than_2_to_the_31_elements(layout):
    """Each sample alone is far smaller: what differs are the distances in memory."""
    batch, shape = 5, (32, 3700, 3700)  # 2.19e9 elements
    x = torch.empty((batch, *shape), dtype=torch.bfloat16, device="cuda")
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.normal_()
    weight, bias = torch.rand(2, 32, device="cuda")
    weight.requires_grad_()

    def call(x):
        x = x.detach().requires_grad_()
        y = batchfree.group_norm(x, 8, weight, bias, activation="silu")
        return y, torch.autograd.grad(y, (x, weight), x.detach())[0]

    y, dx = call(x)
    for i in (0, batch - 1):
        one, d_one = call(x[i : i + 1])
        assert torch.equal(one, y[i : i + 1])
        assert torch.equal(d_one, dx[i : i + 1])
    with batchfree.backend("reference"):
        want = batchfree.group_norm(
            x[-1:].double(), 8, weight.double(), bias.double(), activation="silu"
        )
    assert ((y[-1:] - want).abs() <= 0.004 * want.abs() + 1e-3).all()


@GPU
@pytest.mark.parametrize("path", PATHS)
def test_a_cuda_graph_replays_forward_and_backward(path):
    with limits(PATHS[path]):
        inputs = draw((3, 24, 17, 19), torch.bfloat16, residual=False)
        x = inputs.x.clone().requires_grad_()

        def call(x):
            y = batchfree.group_norm(x, 4, inputs.weight, inputs.bias, activation="silu")
            return y, torch.autograd.grad(y, x, inputs.dy)[0]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call(x)
        for seed in range(3):
            torch.manual_seed(seed)
            with torch.no_grad():
                x.copy_(torch.randn(x.shape))
            graph.replay()
            # Another leaf: the graph keeps x's own node, which belongs to its stream.
            for a, b in zip(got, call(x.detach().requires_grad_()), strict=True):
                assert torch.equal(a, b)


@GPU
def test_calls_on_several_streams_at_once_agree():
    cases = [draw((3, 8, 61, 67), torch.bfloat16, seed=seed) for seed in range(8)]
    with limits(PATHS["interleaved"]):
        want = [fused(inputs, 2, "silu") for inputs in cases]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in cases]
        got = []
        for stream, inputs in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                got.append(fused(inputs, 2, "silu"))
        torch.cuda.synchronize()
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


@GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    inputs = draw((3, 8, 17, 19))
    there = type(inputs)(*(t.to("cuda:1") for t in inputs))
    for a, b in zip(fused(there, 2, "silu"), fused(inputs, 2, "silu"), strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@GPU
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_x_and_y_and_little_else(layout):
    """Forward keeps x alone for the backward, whose own peak is dx."""
    inputs = draw((8, 64, 256, 256), torch.bfloat16, layout, residual=False)
    x = inputs.x.requires_grad_()
    size = x.nbytes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = batchfree.group_norm(x, 32, inputs.weight, inputs.bias, activation="silu")
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * size
    del y
    assert torch.cuda.memory_allocated() == before
    y = batchfree.group_norm(x, 32, inputs.weight, inputs.bias, activation="silu")
    torch.cuda.reset_peak_memory_stats()
    y.backward(inputs.dy)
    assert torch.cuda.max_memory_allocated() - before <= 2.05 * size


@GPU
def test_a_profiler_sees_the_operators():
    inputs = draw((3, 8, 17, 19))
    with torch.profiler.profile(acc_events=True) as profile:
        fused(inputs, 2, "silu")
    names = {event.key for event in profile.key_averages()}
    assert {"batchfree::group_norm", "batchfree::group_norm_backward"} <= names


@GPU
def test_a_slice_of_a_batch_equals_the_batch_where_samples_are_large():
    inputs = draw((3, 64, 300, 301), torch.bfloat16)
    together = fused(inputs, 32, "silu")
    alone = fused(inputs.rows(slice(1, 2)), 32, "silu")
    assert_same_bits(of_samples(alone), of_samples(together, slice(1, 2)))
