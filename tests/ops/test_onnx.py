"""Exported models: the nodes that group_norm becomes, and their values in onnxruntime."""

from itertools import product

import onnx
import onnxruntime
import pytest
import torch
from oracle import ACTIVATIONS
from torch import nn

import batchfree
from batchfree.ops.onnx import exporting

TOLERANCE = {
    torch.float32: dict(rtol=1e-4, atol=2e-5),
    torch.float16: dict(rtol=3e-3, atol=3e-3),
}


EPS = [1e-3 * (i + 1) for i in range(2 * len(ACTIVATIONS))]


class Norms(nn.Module):
    """Every activation, each without and with the residual, on the same x."""

    def __init__(self, num_groups, channels):
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.randn(channels) + 1)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x, residual):
        # The exporter would make one node of two equal norms, so each has an eps of its own.
        return [
            batchfree.group_norm(
                x, self.num_groups, self.weight, self.bias, eps, activation=a, residual=r
            )
            for eps, (a, r) in zip(EPS, product(ACTIVATIONS, (None, residual)), strict=True)
        ]


class Call(nn.Module):
    """One call, by a function of x and the module's parameters."""

    def __init__(self, call, **parameters):
        super().__init__()
        self.call = call
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def forward(self, x):
        return self.call(self, x)


def export(model, *args, opset=21, **options):
    """The model as a checked ONNX proto, by torch.onnx.export as a user calls it."""
    program = torch.onnx.export(
        model, args, dynamo=True, opset_version=opset, verbose=False, **options
    )
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
    return onnx.shape_inference.infer_shapes(proto)


def node_types(proto):
    return [node.op_type for node in proto.graph.node]


def norm_nodes(proto):
    return [node for node in proto.graph.node if node.op_type == "GroupNormalization"]


def types_and_shapes(proto):
    """Element type and shape of every value of the graph, by name; 0 where a size is dynamic."""
    found = {t.name: (t.data_type, tuple(t.dims)) for t in proto.graph.initializer}
    for value in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]:
        tensor = value.type.tensor_type
        found[value.name] = tensor.elem_type, tuple(d.dim_value for d in tensor.shape.dim)
    return found


def run(proto, *args):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    outputs = session.run(None, {n: a.numpy() for n, a in zip(names, args, strict=True)})
    return [torch.from_numpy(y) for y in outputs]


@torch.no_grad()
def check_values(proto, model, *args):
    want = model(*args)
    want = [want] if isinstance(want, torch.Tensor) else want
    for got, y in zip(run(proto, *args), want, strict=True):
        assert got.dtype == y.dtype
        torch.testing.assert_close(got, y.contiguous(), **TOLERANCE[y.dtype])


@pytest.mark.parametrize(
    ("shape", "num_groups", "others"),
    [
        ((5, 6), 3, [(1, 6)]),
        ((2, 6, 7), 6, [(3, 6, 31)]),
        ((2, 6, 3, 5), 3, [(1, 6, 1, 1), (5, 6, 33, 7)]),
        ((3, 4, 2, 3, 5), 1, [(1, 4, 5, 7, 3)]),
    ],
)
def test_each_call_becomes_one_node_for_any_batch_and_size(shape, num_groups, others):
    model = Norms(num_groups, shape[1]).eval()
    dynamic = {i: torch.export.Dim.DYNAMIC for i in range(len(shape)) if i != 1}
    x, residual = torch.randn(shape), torch.randn(shape)
    proto = export(model, x, residual, dynamic_shapes=(dynamic, dynamic))
    nodes = norm_nodes(proto)
    known = types_and_shapes(proto)
    for node, eps in zip(nodes, EPS, strict=True):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["num_groups"] == num_groups
        assert attributes["epsilon"] == pytest.approx(eps)
        assert [known[name][1] for name in node.input[1:]] == [(shape[1],)] * 2
    # What is left is the residual and the activations, each as ONNX has it.
    rest = [t for t in node_types(proto) if t != "GroupNormalization"]
    expected = ["Add"] * 5 + ["Relu"] * 2 + ["Sigmoid", "Mul"] * 2 + ["Gelu"] * 4
    assert sorted(rest) == sorted(expected)
    check_values(proto, model, x, residual)
    for other in others:
        check_values(proto, model, torch.randn(other), torch.randn(other))


@pytest.mark.parametrize("absent", ["weight", "bias", "both"])
def test_absent_parameters_are_ones_and_zeros(absent):
    def call(self, x):
        weight = self.p if absent == "bias" else None
        bias = self.p if absent == "weight" else None
        return batchfree.group_norm(x, 3, weight, bias)

    model, x = Call(call, p=torch.randn(6)).eval(), torch.randn(2, 6, 3, 5)
    proto = export(model, x)
    (node,) = norm_nodes(proto)
    known = types_and_shapes(proto)
    assert [known[name][1] for name in node.input[1:]] == [(6,), (6,)]
    check_values(proto, model, x)


@pytest.mark.parametrize("parameter_dtype", [torch.float16, torch.float32])
def test_half_inputs(parameter_dtype):
    model = batchfree.GroupNorm(3, 6, activation="silu", dtype=parameter_dtype)
    nn.init.normal_(model.weight)
    nn.init.normal_(model.bias)
    x = torch.randn(2, 6, 7, 5).half()
    proto = export(model.eval(), x)
    (node,) = norm_nodes(proto)
    known = types_and_shapes(proto)
    assert [known[name][0] for name in node.input] == [onnx.TensorProto.FLOAT16] * 3
    check_values(proto, model, x)


def test_bfloat16_has_one_type_throughout():
    """onnxruntime has no bfloat16 kernels on the CPU; the checker sees a valid model."""
    model, x = batchfree.GroupNorm(3, 6).eval(), torch.randn(2, 6, 7, 5).bfloat16()
    proto = export(model, x)
    (node,) = norm_nodes(proto)
    known = types_and_shapes(proto)
    assert [known[name][0] for name in node.input] == [onnx.TensorProto.BFLOAT16] * 3


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        batchfree.GroupNorm(4, 8, activation="silu"),
        nn.Conv2d(8, 6, 1),
        batchfree.InstanceNorm(6, activation="relu"),
        batchfree.GroupNorm1(6, affine=False),
    ).eval()


NETWORK_NODES = [
    "Conv",
    "GroupNormalization",
    "Sigmoid",
    "Mul",
    "Conv",
    "GroupNormalization",
    "Relu",
    "GroupNormalization",
]


def without_constants(proto):
    return [t for t in node_types(proto) if not t.startswith("Constant")]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layers_in_a_network(layout):
    model = network().to(memory_format=layout)
    x = torch.randn(2, 3, 9, 7).to(memory_format=layout)
    proto = export(model, x)
    assert without_constants(proto) == NETWORK_NODES
    check_values(proto, model, x)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_pytorchs_own_ops_and_becomes_onnx(strict):
    model, x = network(), torch.randn(2, 3, 9, 7)
    n, h, w = (torch.export.Dim(name) for name in "nhw")
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: n, 2: h, 3: w},))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {op.namespace for op in called} == {"aten"}
    assert called.count(torch.ops.aten.group_norm.default) == 3
    proto = export(program)
    assert without_constants(proto) == NETWORK_NODES
    other = torch.randn(1, 3, 5, 11)
    torch.testing.assert_close(program.module()(other), model(other))
    check_values(proto, model, other)


def test_a_chosen_backend_is_exported_as_chosen():
    model, x = batchfree.GroupNorm(3, 6).eval(), torch.randn(2, 6, 3)
    with batchfree.backend("aten"):
        assert node_types(export(model, x)) == ["GroupNormalization"]
    with batchfree.backend("reference"):
        proto = export(model, x)
    assert not norm_nodes(proto)
    check_values(proto, model, x)


def test_below_opset_21_it_is_instance_normalization_and_an_affine_map():
    """There ONNX's GroupNormalization has its scale per group."""
    model = batchfree.GroupNorm(3, 6, activation="relu").eval()
    nn.init.normal_(model.weight)
    x = torch.randn(2, 6, 7, 5)
    proto = export(model, x, opset=18)
    assert "InstanceNormalization" in node_types(proto)
    assert "GroupNormalization" not in node_types(proto)
    check_values(proto, model, x)


def test_exporting_is_true_in_an_export_alone():
    class Tells(nn.Module):
        def forward(self, x):
            return x + 1 if exporting() else x * 3

    x = torch.ones(2)
    assert not exporting()
    assert torch.compile(Tells(), backend="eager", fullgraph=True)(x)[0] == 3
    for strict in (False, True):
        assert torch.export.export(Tells(), (x,), strict=strict).module()(x)[0] == 2
    assert not exporting()
