"""Converted models in ONNX and under torch.compile agree with eager."""

import io

import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from nets import images, resnet, trained

import batchfree


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return batchfree.convert(trained(resnet()), images()).model.eval()


def exported(model, x):
    program = torch.onnx.export(model, (x,), dynamo=True, opset_version=21, verbose=False)
    file = io.BytesIO()
    program.save(file)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_agrees_with_eager_to_1e_5(model):
    x = images(3, seed=9)
    proto = exported(model, x)
    assert [n.op_type for n in proto.graph.node].count("GroupNormalization") == 5
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_agrees_with_eager_to_1e_5(model, training):
    torch.compiler.reset()
    compiled = torch.compile(model.train(training), fullgraph=True, backend="aot_eager")
    x = images(3, seed=9)
    wanted, got = model(x), compiled(x)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(y.square().sum(), model[1].weight) for y in (wanted, got)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:test_efficientnet"])
def test_real_architectures_under_inductor_and_in_onnx(name):
    torch.manual_seed(0)
    library, _, word = name.partition(":")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    original = make(word)
    with pytest.warns(batchfree.ConversionWarning):
        model = batchfree.convert(original, torch.randn(16, 3, 64, 64)).model.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(torch.compile(model)(x), wanted, atol=1e-4, rtol=1e-3)
        session = onnxruntime.InferenceSession(
            exported(model, x).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-4, rtol=1e-3)
