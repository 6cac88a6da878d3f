"""Files of conversions whose manifest or weights were changed by hand."""

import json

import pytest
import safetensors.torch
import torch
from nets import resnet, trained

import batchfree
from batchfree import ConfigError, DataError
from batchfree.convert import read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "net.safetensors"
    batchfree.convert(trained(resnet())).save(path, source="mine")
    return path


def changed(whole, folder, manifest=lambda found: None, tensors=lambda found: None):
    """A copy with another manifest or other tensors."""
    told, held = read_manifest(whole), safetensors.torch.load_file(whole)
    manifest(told)
    tensors(held)
    path = folder / "changed.safetensors"
    path.write_bytes(safetensors.torch.save(held, {"batchfree": json.dumps(told)}))
    return path


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("groups", "abc", "layer '1': groups must be int, got 'abc'"),
        ("groups", 2.9, "layer '1': groups must be int, got 2.9"),
        ("groups", True, "groups must be int"),
        ("groups", None, "groups must be int"),
        ("eps", "abc", "layer '1': eps must be a finite number, 0 or more"),
        ("eps", float("nan"), "eps must be a finite number"),
        ("eps", -1, "eps must be a finite number"),
        ("scaled", "no", "scaled must be true or false, got 'no'"),
        ("blend", 1, "blend must be true or false"),
    ],
)
def test_a_field_of_a_layer_is_checked(whole, tmp_path, field, value, words):
    path = changed(whole, tmp_path, lambda told: told["layers"]["1"].update({field: value}))
    with pytest.raises(DataError, match=r"manifest of .* is damaged: ") as caught:
        batchfree.load_converted(path, model=resnet())
    assert words in str(caught.value)


def test_groups_that_do_not_divide_and_a_plan_of_wrong_types(whole, tmp_path):
    path = changed(whole, tmp_path, lambda told: told["layers"]["1"].update(groups=7))
    with pytest.raises(ConfigError, match=r"layer '1': num_groups must divide"):
        batchfree.load_converted(path, model=resnet())
    path = changed(whole, tmp_path, lambda told: told["plan"].update(notes=5))
    with pytest.raises(ConfigError, match=r"no conversion plan: notes must be a list"):
        batchfree.load_converted(path, model=resnet())
    path = changed(whole, tmp_path, lambda told: told["plan"]["layers"].pop(0))
    with pytest.raises(ConfigError, match=r"no row for 1 of the model's BatchNorms"):
        batchfree.load_converted(path, model=resnet())
    path = changed(whole, tmp_path, lambda told: told["layers"].update({"1": 5}))
    with pytest.raises(DataError, match=r"manifest of .* is damaged"):
        batchfree.load_converted(path, model=resnet())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(whole, tmp_path, value):
    path = changed(
        whole, tmp_path, tensors=lambda held: held.update({"1.weight": held["1.weight"] * value})
    )
    with pytest.raises(DataError, match=r"'1.weight' in .* holds NaN or infinity"):
        batchfree.load_converted(path, model=resnet())


def test_the_file_as_it_was_loads(whole, tmp_path):
    one = batchfree.load_converted(changed(whole, tmp_path), model=resnet())
    other = batchfree.load_converted(whole, model=resnet())
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_a_name_that_is_not_built_says_who_can_go_on(whole):
    with pytest.raises(ConfigError, match=r"fine-tune it in Python; commands start from files of"):
        batchfree.load_converted(whole)
