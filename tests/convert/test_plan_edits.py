"""Plans that were changed by hand, in Python or as JSON."""

import json

import pytest
import torch
from nets import Shared, images, resnet, trained
from torch import nn

import batchfree
from batchfree import ConfigError
from batchfree.convert import ConversionPlan, plan_conversion


class Twice(nn.Module):
    """One BatchNorm under two names, and one of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.BatchNorm2d(3)
        self.b = self.a
        self.c = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def edited(plan, change):
    """The plan through its JSON, with a change of that."""
    found = json.loads(plan.to_json())
    change(found)
    return ConversionPlan.from_json(json.dumps(found))


@pytest.mark.parametrize("keep", ["a", "b", ["b"], lambda name, module: name == "b"])
def test_any_name_of_a_shared_module_keeps_it(keep):
    plan = plan_conversion(Twice(), keep=keep)
    assert [(x.path, x.aliases, x.action) for x in plan.layers] == [
        ("a", ["b"], "keep"),
        ("c", [], "convert"),
    ]
    assert plan_conversion(Shared(), keep="again").converted == []


def test_a_number_of_groups_that_is_set_wins_over_the_search():
    model = trained(resnet())
    plan = plan_conversion(model, "auto")
    plan["1"].groups, plan["3.bn1"].groups = 16, plan["3.bn1"].groups
    assert plan["1"].candidates == plan["3.bn1"].candidates == []
    assert "measured error" not in plan["1"].reason
    assert "measured error" in plan["4.bn1"].reason
    result = batchfree.convert(model, images(), plan=plan)
    assert result.plan["1"].groups == result.model[1].num_groups == 16
    assert result.model[3].bn1.num_groups == plan["3.bn1"].groups


@pytest.mark.parametrize("method", ["copy", "analytic", "calibrated", "blend", "distill"])
def test_a_layer_without_a_row_is_no_layer_that_stays(method):
    model = trained(resnet())
    plan = plan_conversion(model)
    plan.layers = [x for x in plan.layers if x.path != "3.bn1"]
    with pytest.raises(ConfigError, match=r"no row for 1 of the model's BatchNorms \('3.bn1' fir"):
        batchfree.convert(model, images(), plan=plan, method=method, steps=1)


def test_a_layer_that_is_kept_keeps_its_row():
    model = trained(resnet())
    plan = edited(plan_conversion(model), lambda p: p["layers"][0].update(action="keep"))
    assert isinstance(batchfree.convert(model, images(), plan=plan).model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf"), "abc", None, True])
def test_eps_is_a_number_that_can_be_added_to_a_variance(eps):
    plan = plan_conversion(trained(resnet()))
    with pytest.raises(ConfigError, match="layer '1': eps must be a finite number, 0 or more"):
        plan["1"].eps = eps
    assert plan["1"].eps == 1e-5
    with pytest.raises(ConfigError, match="no conversion plan: layer '1': eps must be a finite"):
        edited(plan, lambda p: p["layers"][0].update(eps=eps))
    vars(plan["1"])["eps"] = eps
    for method in ("copy", "analytic", "calibrated"):
        with pytest.raises(ConfigError, match="eps must be a finite number"):
            batchfree.convert(resnet(), images(), plan=plan, method=method)


def test_an_eps_that_is_set_is_taken():
    plan = plan_conversion(model := trained(resnet()))
    plan["1"].eps = 1
    assert batchfree.convert(model, plan=plan).model[1].eps == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("then", None, "then must be a list of str, got None"),
        ("then", [1], "then must be a list of str"),
        ("aliases", "b", "aliases must be a list of str"),
        ("candidates", 5, "candidates must be a list of int, got 5"),
        ("candidates", [2.0], "candidates must be a list of int"),
        ("groups", "abc", "groups must be int, got 'abc'"),
        ("groups", True, "groups must be int, got True"),
        ("channels", 2.5, "channels must be int"),
        ("path", 7, "path must be str"),
        ("action", "go", "action must be one of 'convert', 'keep', 'leave'"),
        ("group", 4, "unknown field 'group'; did you mean 'groups'"),
    ],
)
def test_a_field_of_another_type_is_named(field, value, words):
    with pytest.raises(ConfigError, match="no conversion plan: ") as caught:
        edited(plan_conversion(resnet()), lambda p: p["layers"][0].update({field: value}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(notes=5), "notes must be a list of str, got 5"),
        (lambda p: p.update(layers={}), "layers must be a list of dict"),
        (lambda p: p.update(layers=[5]), "layers must be a list of dict"),
        (lambda p: p.pop("model"), "'model' is missing"),
        (lambda p: p["layers"][0].pop("kind"), "layer '1': 'kind' is missing"),
        (lambda p: p["layers"].append(p["layers"][0]), "layer '1': it is there twice"),
        (lambda p: p.update(more=1), "unknown field 'more'"),
    ],
)
def test_a_plan_of_another_shape_says_where(change, words):
    with pytest.raises(ConfigError, match="no conversion plan: ") as caught:
        edited(plan_conversion(resnet()), change)
    assert words in str(caught.value)


def test_what_nests_too_deeply_is_no_plan():
    with pytest.raises(ConfigError, match="no conversion plan"):
        ConversionPlan.from_json("[" * 100_000)


def test_a_list_that_holds_itself_is_gone_through_once():
    model = trained(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)))
    model.norms = [model[1], {"the same": model[1]}]
    model.norms.append(model.norms)
    result = batchfree.convert(model).model
    assert result.norms[0] is result.norms[1]["the same"] is result[1]
    assert result.norms[2] is result.norms
    assert isinstance(result[1], nn.GroupNorm)
    assert torch.isfinite(result(images(2))).all()
