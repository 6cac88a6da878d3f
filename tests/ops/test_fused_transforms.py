"""The fused call under compilers, export, autocast, functorch, checkpoints and data parallelism."""

import io

import pytest
import torch
import torch.multiprocessing as mp
from fused_cases import BACKEND, DEVICE, LAYOUTS, ON_CPU, differentiate, draw
from oracle import ACTIVATIONS, oracle
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import batchfree

ROUNDING = dict(rtol=1e-5, atol=1e-5)
FORWARD = torch.ops.batchfree.group_norm.default
BACKWARD = torch.ops.batchfree.group_norm_backward.default


@pytest.fixture(autouse=True)
def _kernels_and_nothing_compiled_before(path):
    torch._dynamo.reset()
    with batchfree.backend(BACKEND):
        yield


def norm(x, weight=None, bias=None, residual=None, activation="relu"):
    return batchfree.group_norm(x, 2, weight, bias, activation=activation, residual=residual)


def truth(x, weight=None, bias=None, residual=None, activation="relu"):
    return oracle(x, 2, weight, bias, activation=activation, residual=residual)


def assert_same(got, want):
    """The same bits and the same strides."""
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        batchfree.GroupNorm(2, 8, activation="silu"),
        nn.Conv2d(8, 6, 3),
        batchfree.GroupNorm(3, 6, activation="relu"),
    )


def test_a_residual_that_is_x_itself_compiles():
    """Dynamo refuses a tensor that an autograd function is given twice."""
    layer = batchfree.GroupNorm(2, 8, activation="relu")
    x = torch.randn(3, 8, 4, 4, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x, residual=x), fullgraph=True, backend="aot_eager")
    got, want = compiled(x), layer(x, residual=x)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    (dx,), (wanted,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, want))
    torch.testing.assert_close(dx, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_equals_eager_for_any_batch_and_size(backend, layout):
    """Compiled for the first shape, then with the batch left open, then with the size."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(norm, fullgraph=True, backend=counter)
    for shape in [(3, 4, 5, 7), (5, 4, 5, 7), (6, 4, 3, 9), (2, 4, 8, 8)]:
        inputs = draw(shape, layout=layout)
        assert_same(differentiate(compiled, inputs), differentiate(norm, inputs))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dynamic_batch_is_compiled_once(dtype):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(norm, fullgraph=True, backend=counter)

    def marked(x, weight, bias, residual):
        for t in (x, residual):
            torch._dynamo.mark_dynamic(t, 0)
        return compiled(x, weight, bias, residual)

    for batch in (2, 3, 7, 64):
        inputs = draw((batch, 4, 5, 3), dtype)
        assert_same(differentiate(marked, inputs), differentiate(norm, inputs))
    assert counter.frame_count == 1


def test_a_batch_whose_size_depends_on_data_is_compiled():
    """As that of a detector's regions of interest."""

    def chosen(x, rows):
        return norm(x[rows])

    x, rows = torch.randn(4, 6, 3), torch.tensor([True, False, True, True])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = torch.compile(chosen, fullgraph=True, backend="aot_eager")(x, rows)
    assert torch.equal(got, chosen(x, rows))


def test_compiled_graphs_call_the_two_operators():
    calls = []

    def record(graph, _):
        calls.extend(n.target for n in graph.graph.nodes if n.target in (FORWARD, BACKWARD))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record)
    differentiate(torch.compile(norm, fullgraph=True, backend=backend), draw((2, 4, 3)))
    assert calls == [FORWARD, BACKWARD]


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_of_the_kernels_serves_any_batch_to_the_bit(strict):
    model, n = batchfree.GroupNorm(2, 6, activation="gelu"), torch.export.Dim("n")
    shapes = ({0: n}, {0: n})
    with torch.no_grad():
        program = torch.export.export(
            model, tuple(torch.randn(2, 3, 6, 5)), strict=strict, dynamic_shapes=shapes
        )
        assert FORWARD in [node.target for node in program.graph.nodes]
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        arguments = torch.randn(2, 7, 6, 5)
        assert_same([torch.export.load(file).module()(*arguments)], [model(*arguments)])


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_keeps_bfloat16_between_layers_and_float32_in_statistics(compiled):
    model, x = network(), torch.randn(2, 3, 8, 8)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    saved = []
    with (
        torch.autocast(DEVICE, torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = run(x)
    assert y.dtype == torch.bfloat16
    statistics = [t for t in saved if t.shape in [(3, 2, 2), (3, 2, 3)]]
    assert [t.dtype for t in statistics] == [torch.float32] * 2
    activations = [t for t in saved if t.dim() == 4 and t.shape[0] == 2]
    assert {t.dtype for t in activations} == {torch.bfloat16}
    gradients = torch.autograd.grad(y.float().square().sum(), list(model.parameters()))
    assert {g.dtype for g in gradients} == {torch.float32}
    with torch.autocast(DEVICE, torch.bfloat16):
        want = model(x)
    assert_same([y], [want])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vmap_over_every_subset_of_inputs_equals_a_loop(activation, layout):
    one, many = (draw((n, 4, 3, 5), layout=layout) for n in (2, 6))
    stacked = [torch.stack([t, 2 * t, 3 * t]) for t in one[:4]]
    stacked[0] = many.x.unflatten(0, (3, 2))
    # Copied for each of the batch, x comes to lie channels first.
    tolerance = ROUNDING if layout == "channels_last" else dict(rtol=0, atol=0)

    def gradients(*tensors):
        def loss(*tensors):
            return (norm(*tensors, activation) * one.dy).sum()

        return norm(*tensors, activation), *grad(loss, argnums=(0, 1, 2, 3))(*tensors)

    for subset in range(1, 16):
        dims = tuple(0 if subset >> k & 1 else None for k in range(4))
        tensors = [s if d == 0 else t for s, t, d in zip(stacked, one[:4], dims, strict=True)]
        together = vmap(gradients, dims)(*tensors)
        for i in range(3):
            rows = [t if d is None else t[i] for t, d in zip(tensors, dims, strict=True)]
            for a, b in zip(together, gradients(*rows), strict=True):
                torch.testing.assert_close(a[i], b, **tolerance)


@pytest.mark.parametrize("compiled", [False, True])
def test_per_sample_gradients_equal_a_loop(compiled):
    model, x = network(), torch.randn(3, 3, 8, 8)
    parameters = dict(model.named_parameters())

    def loss(parameters, one):
        return functional_call(model, parameters, (one.unsqueeze(0),)).square().mean()

    def each(parameters, x):
        return vmap(grad(loss), (None, 0))(parameters, x)

    if compiled:
        each = torch.compile(each, backend="aot_eager")
    got = each({k: p.detach() for k, p in parameters.items()}, x)
    for i in range(3):
        want = torch.autograd.grad(loss(parameters, x[i]), list(parameters.values()))
        for a, b in zip(got.values(), want, strict=True):
            torch.testing.assert_close(a[i], b, **ROUNDING)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobians_equal_float64(activation):
    x, weight, bias, _, _ = draw((2, 4, 3), residual=False)
    got = jacrev(norm, argnums=(0, 1, 2))(x, weight, bias, None, activation)
    exact = (t.double() for t in (x, weight, bias))
    want = jacrev(truth, argnums=(0, 1, 2))(*exact, None, activation)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, **ROUNDING)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch.func's own
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_mode_equals_float64(activation):
    """By PyTorch's own kernels, which have forward derivatives."""
    inputs = draw((2, 4, 3, 5))
    tangents = [t.flip(0) for t in inputs[:4]]
    _, got = jvp(lambda *t: norm(*t, activation), tuple(inputs[:4]), tuple(tangents))
    exact, along = (tuple(t.double() for t in ts) for ts in (inputs[:4], tangents))
    _, want = jvp(lambda *t: truth(*t, activation), exact, along)
    torch.testing.assert_close(got.double(), want, **ROUNDING)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_equal_float64(activation, residual):
    """Of every gradient by every input and by dy."""
    inputs = draw((2, 4, 3, 5), residual=residual)
    directions = [None if t is None else t.flip(0) for t in inputs[:4]]

    def second(function, dtype):
        *leaves, dy = (None if t is None else t.to(dtype).requires_grad_() for t in inputs)
        there = [t for t in leaves if t is not None]
        first = torch.autograd.grad(function(*leaves, activation), there, dy, create_graph=True)
        along = [d.to(dtype) for d in directions if d is not None]
        total = sum((g * d).sum() for g, d in zip(first, along, strict=True))
        return torch.autograd.grad(total, [*there, dy], materialize_grads=True)

    for a, b in zip(second(norm, torch.float32), second(truth, torch.float64), strict=True):
        torch.testing.assert_close(a.double(), b, **ROUNDING)


@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives_by_functorch_equal_float64(compiled):
    def penalty(x, function=norm):
        return grad(lambda x: function(x).pow(3).sum())(x).square().sum()

    x = torch.randn(2, 4, 3, 5)
    second = grad(penalty)
    if compiled:
        second = torch.compile(second, fullgraph=True, backend="aot_eager")
    want = grad(lambda x: penalty(x, truth))(x.double())
    torch.testing.assert_close(second(x).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients_equal_a_loop(create_graph):
    inputs = draw((2, 4, 3))
    leaves = [t.requires_grad_() for t in inputs[:4]]
    y, dys = norm(*leaves), torch.randn(5, 2, 4, 3)
    together = torch.autograd.grad(
        y, leaves, dys, is_grads_batched=True, retain_graph=True, create_graph=create_graph
    )
    for i in range(5):
        alone = torch.autograd.grad(y, leaves, dys[i], retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_equals_plain(use_reentrant, activation):
    inputs = draw((2, 4, 3, 5))
    want = differentiate(lambda *t: norm(*t, activation), inputs)
    leaves = [t.clone().requires_grad_() for t in inputs[:4]]
    y = checkpoint(norm, *leaves, activation, use_reentrant=use_reentrant)
    y.backward(inputs.dy)
    assert_same([y, *(t.grad for t in leaves)], want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_retained_graph_gives_the_same_gradients_again(activation):
    inputs = draw((2, 4, 3, 5))
    leaves = [t.requires_grad_() for t in inputs[:4]]
    y = norm(*leaves, activation)
    first, second = (torch.autograd.grad(y, leaves, inputs.dy, retain_graph=True) for _ in "12")
    assert_same(first, second)
    torch.autograd.grad(y, leaves, inputs.dy)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, leaves, inputs.dy)


def _worker(rank, folder):
    """Writes the gradients of half a batch, as DDP and as FSDP2 average them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    x = torch.load(f"{folder}/x.pt", weights_only=True).chunk(2)[rank]
    sharded, mesh = network(), torch.distributed.init_device_mesh("cpu", (2,))
    for layer in (*sharded, sharded):
        fully_shard(layer, mesh=mesh)
    results = {}
    with batchfree.backend(BACKEND):
        replica = nn.parallel.DistributedDataParallel(network())
        for name, model in (("ddp", replica), ("fsdp", sharded)):
            model(x).square().mean().backward()
            gradients = [p.grad for p in model.parameters()]
            results[name] = [g.full_tensor() if name == "fsdp" else g for g in gradients]
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@ON_CPU
@pytest.mark.slow
def test_gradients_of_two_gloo_workers_equal_one_process(tmp_path):
    x = torch.randn(4, 3, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="spawn")
    model = network()
    model(x).square().mean().backward()
    for rank in range(2):
        workers = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name in ("ddp", "fsdp"):
            for p, g in zip(model.parameters(), workers[name], strict=True):
                torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=1e-7)
