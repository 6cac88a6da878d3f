import json

import pytest
import safetensors.torch
import timm
import torch
from nets import Shared, images, resnet, trained
from torch import nn

import batchfree
from batchfree import ConfigError, DataError
from batchfree.convert import BlendNorm, read_manifest


def same(a, b, x):
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "copy"},
        {"anchor": None},
        {"groups": "auto"},
        {"method": "blend"},
        {"keep": "3.*"},
    ],
    ids=str,
)
def test_a_result_is_built_again_by_its_file(tmp_path, options):
    model = trained(resnet())
    result = batchfree.convert(model, images(), **options)
    path = tmp_path / "new" / "net.safetensors"
    result.save(path, source="mine", preprocessing="none")
    loaded = batchfree.load_converted(path, model=model)
    assert same(loaded, result.model, images(4, seed=9))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in result.model.modules()]
    assert isinstance(model[1], nn.BatchNorm2d)
    manifest = read_manifest(path)
    assert manifest["source"] == "mine"
    assert manifest["batchfree"] == batchfree.__version__
    assert manifest["preprocessing"] == "none"
    assert manifest["method"] == options.get("method", "calibrated")
    assert manifest["calibration"] == (0 if options.get("method") == "copy" else 42)
    first = manifest["layers"]["1"]
    assert first["eps"] == 1e-5
    assert first["groups"] == result.plan["1"].groups
    assert any(isinstance(m, BlendNorm) for m in loaded.modules()) == (
        options.get("method") == "blend"
    )


def test_an_architecture_of_timms_is_built_by_its_name(tmp_path):
    torch.manual_seed(0)
    model = trained(timm.create_model("test_efficientnet", num_classes=1000), steps=2)
    result = batchfree.convert(model)
    result.save(tmp_path / "a.safetensors", source="timm:test_efficientnet")
    loaded = batchfree.load_converted(tmp_path / "a.safetensors")
    assert same(loaded, result.model, torch.randn(2, 3, 32, 32))


def test_shared_modules_and_tensors_are_written_and_shared_again(tmp_path):
    model = trained(Shared())
    result = batchfree.convert(model, images())
    result.save(tmp_path / "a.safetensors", source="mine")
    loaded = batchfree.load_converted(tmp_path / "a.safetensors", model=Shared())
    assert loaded.norm is loaded.again
    assert same(loaded, result.model, images(3))


def test_a_name_that_would_run_code_is_not_built_unasked(tmp_path):
    path = tmp_path / "a.safetensors"
    batchfree.convert(trained(resnet())).save(path, source="os:abort")
    with pytest.raises(ConfigError, match=r"of 'os:abort', which is not built unasked: give the"):
        batchfree.load_converted(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no converted model at"),
        (b"", "no safetensors file, or it is damaged"),
        (b"\x80\x04\x95pickle", "pickled checkpoints are not read, since they can hold code"),
        (safetensors.torch.save({"a": torch.ones(1)}), "has no manifest of a conversion"),
        (safetensors.torch.save({"a": torch.ones(1)}, {"batchfree": "{}"}), "has no manifest"),
        (
            safetensors.torch.save({"a": torch.ones(1)}, {"batchfree": '{"schema": "x"}'}),
            "has no manifest",
        ),
    ],
)
def test_a_file_that_is_none(tmp_path, content, words):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        batchfree.load_converted(path, model=resnet())


def test_a_pickled_checkpoint_is_refused_with_the_reason(tmp_path):
    torch.save(resnet(), tmp_path / "a.pt")
    with pytest.raises(DataError, match="pickled checkpoints are not read"):
        batchfree.load_converted(tmp_path / "a.pt", model=resnet())


def test_another_architecture_and_a_damaged_manifest(tmp_path):
    path = tmp_path / "a.safetensors"
    batchfree.convert(trained(resnet())).save(path, source="mine")
    with pytest.raises(ConfigError, match="the plan is of another model"):
        batchfree.load_converted(path, model=resnet(channels=16))
    other = resnet()
    other[7] = nn.Linear(32, 3)
    with pytest.raises(ConfigError, match="do not fit this architecture: size mismatch for 7"):
        batchfree.load_converted(path, model=other)
    manifest = read_manifest(path)
    del manifest["layers"]["1"]
    tensors = safetensors.torch.load_file(path)
    path.write_bytes(safetensors.torch.save(tensors, {"batchfree": json.dumps(manifest)}))
    with pytest.raises(DataError, match=r"manifest of .* is damaged"):
        batchfree.load_converted(path, model=resnet())


def test_a_model_of_another_conversion_is_not_written(tmp_path):
    result = batchfree.convert(trained(resnet()))
    with pytest.raises(ConfigError, match=r"no GroupNorm at '1'"):
        batchfree.save_converted(
            tmp_path / "a.safetensors", resnet(), result.plan, source="mine", method="copy"
        )
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    result = batchfree.convert(trained(resnet()))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        result.save(tmp_path / "folder", source="mine")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_half_precision_comes_back(tmp_path):
    result = batchfree.convert(trained(resnet()).bfloat16(), images().bfloat16())
    result.save(tmp_path / "half.safetensors", source="mine")
    loaded = batchfree.load_converted(tmp_path / "half.safetensors", model=resnet())
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert same(loaded, result.model, images().bfloat16())


def test_another_head_than_the_library_s_says_how_to_load(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3)
    trained(model, [torch.randn(4, 3, 32, 32)], steps=2)
    batchfree.convert(model).save(tmp_path / "m.safetensors", source="timm:resnet10t")
    with pytest.raises(ConfigError, match="give the architecture itself, model="):
        batchfree.load_converted(tmp_path / "m.safetensors")
    batchfree.load_converted(tmp_path / "m.safetensors", model=model)


def test_state_that_is_no_tensor_is_named(tmp_path):
    class Counting(nn.Conv2d):
        def get_extra_state(self):
            return {"calls": 3}

    model = trained(nn.Sequential(Counting(3, 32, 3), nn.BatchNorm2d(32)))
    result = batchfree.convert(model, images())
    with pytest.raises(ConfigError, match="safetensors holds tensors"):
        result.save(tmp_path / "m.safetensors", source="mine")
    assert list(tmp_path.iterdir()) == []
