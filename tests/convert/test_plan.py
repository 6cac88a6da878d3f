import copy
import io

import pytest
import timm.layers
import torch
import torchvision
from nets import Shared, images, resnet, trained
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import batchfree
from batchfree import ConfigError, Groups
from batchfree.convert import ConversionPlan, plan_conversion


class Subclass(nn.BatchNorm2d):
    """As detection and segmentation libraries have them."""


class NormThenTanh(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.squash = nn.Tanh()

    def forward(self, x):
        return self.squash(super().forward(x))


class Doubles(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


LAYERS = {
    "1d": (nn.BatchNorm1d(64), "BatchNorm", []),
    "2d": (nn.BatchNorm2d(64), "BatchNorm", []),
    "3d": (nn.BatchNorm3d(64), "BatchNorm", []),
    "sync": (nn.SyncBatchNorm(64), "SyncBatchNorm", []),
    "affine-free": (nn.BatchNorm2d(64, affine=False), "BatchNorm", []),
    "no statistics": (
        nn.BatchNorm2d(64, track_running_stats=False),
        "BatchNorm without running statistics",
        [],
    ),
    "torchvision's frozen": (FrozenBatchNorm2d(64), "FrozenBatchNorm", []),
    "our frozen": (batchfree.FrozenBatchNorm(64, activation="relu"), "FrozenBatchNorm", ["relu"]),
    "ours": (batchfree.BatchNorm2d(64, activation="silu"), "BatchNorm", ["silu"]),
    "timm's": (
        timm.layers.BatchNormAct2d(64),
        "BatchNorm",
        ["drop: Identity", "act: ReLU"],
    ),
    "timm's frozen": (
        timm.layers.norm_act.FrozenBatchNormAct2d(64),
        "FrozenBatchNorm",
        ["drop: Identity", "act: ReLU"],
    ),
    "a subclass": (Subclass(64), "BatchNorm", []),
    "a subclass with children": (NormThenTanh(64), "BatchNorm", ["squash: Tanh"]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_is_planned(name):
    layer, kind, then = LAYERS[name]
    plan = plan_conversion(nn.Sequential(layer), Groups(16))
    (row,) = plan.layers
    assert (row.path, row.old, row.kind, row.action) == ("0", type(layer).__name__, kind, "convert")
    assert (row.channels, row.groups, row.then) == (64, 16, then)
    assert row.new.startswith("GroupNorm(16, 64)")
    assert row.eps == layer.eps


def test_a_forward_of_its_own_is_kept_with_the_reason():
    plan = plan_conversion(nn.Sequential(Doubles(64), nn.BatchNorm2d(64)))
    assert plan["0"].action == "keep"
    assert "forward of its own" in plan["0"].reason
    assert plan["1"].action == "convert"


def test_lazy_layers_need_to_have_run():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    assert "run the model once" in plan_conversion(model)["0"].reason
    model(torch.randn(2, 64, 3, 3))
    assert plan_conversion(model)["0"].groups == 4


def test_other_norms_are_listed_and_left():
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.InstanceNorm2d(8), nn.ReLU())
    plan = plan_conversion(model)
    assert [x.action for x in plan.layers] == ["leave"] * 3
    assert plan.notes == ["there is no BatchNorm to convert"]
    assert "per sample" in plan["0"].reason


def test_a_shared_module_is_one_row():
    plan = plan_conversion(Shared())
    (row,) = plan.layers
    assert (row.path, row.aliases) == ("norm", ["again"])
    assert plan["again"] is row
    assert "again" in str(plan)


def test_the_policy_decides_and_says_why():
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in (8, 24, 32, 80, 512)))
    paper = plan_conversion(model)
    assert [x.groups for x in paper.layers] == [1, 1, 2, 5, 32]
    assert "fewer than 16" in paper["0"].reason
    assert [x.groups for x in plan_conversion(model, 32).layers] == [8, 24, 32, 40, 32]
    assert "32 does not divide 80" in plan_conversion(model, Groups(32))["3"].reason
    gcd = plan_conversion(model, Groups(32, on_indivisible="gcd"))
    assert gcd["3"].groups == 16
    with pytest.raises(ConfigError, match=r"layer '1': .*keep it with keep='1'"):
        plan_conversion(model, Groups(16, on_indivisible="error"), keep="0")
    auto = plan_conversion(model, "auto")
    assert auto["2"].candidates == [1, 2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match="groups, where it is a word"):
        plan_conversion(model, "many")


def test_layers_are_kept_by_name_and_by_predicate():
    model = torchvision.models.resnet18()
    plan = plan_conversion(model, keep=["bn1", "layer4.*"])
    kept = {x.path for x in plan.layers if x.action == "keep"}
    assert "bn1" in kept
    assert {k for k in kept if k != "bn1"} == {
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and n.startswith("layer4.")
    }
    plan = plan_conversion(model, keep=lambda name, module: module.num_features == 512)
    assert {x.channels for x in plan.converted} == {64, 128, 256}
    assert plan["layer4.0.bn1"].reason == "kept by predicate"
    with pytest.raises(ConfigError, match=r"keep='bn9' matches no norm layer; did you mean"):
        plan_conversion(model, keep="bn9")
    assert plan_conversion(Shared(), keep="again")["norm"].aliases == ["again"]


def test_a_plan_is_changed_saved_and_read():
    model = trained(resnet())
    plan = plan_conversion(model)
    plan["1"].groups = 4
    assert plan.keep("3.*") == 2
    with pytest.raises(ConfigError, match="no layer to convert matches"):
        plan.keep("3.*")
    again = ConversionPlan.from_json(plan.to_json())
    assert again == plan
    result = batchfree.convert(model, images(), plan=again)
    assert isinstance(result.model[3].bn1, nn.BatchNorm2d)
    assert result.model[1].num_groups == 4
    assert isinstance(result.model[4].bn1, nn.GroupNorm)
    with pytest.raises(KeyError, match=r"no layer '4.bn'.*did you mean '4.bn"):
        plan["4.bn"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "x"}', '{"schema": "batchfree-plan-1", "layers": [{}]}']
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ConfigError, match="no conversion plan"):
        ConversionPlan.from_json(text)


def test_planning_changes_nothing_and_works_without_weights():
    model = trained(resnet())
    before = copy.deepcopy(model.state_dict())
    plan_conversion(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.device("meta"):
        meta = timm.create_model("resnet18")
    assert len(plan_conversion(meta).converted) == 20


def test_layers_that_never_ran_are_told():
    assert "running statistics of 5 BatchNorms" in plan_conversion(resnet()).notes[0]
    assert plan_conversion(trained(resnet())).notes == []


def test_the_table_shows_each_layer():
    from rich.console import Console

    plan = plan_conversion(trained(resnet()), keep="1")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plan)
    shown = console.export_text()
    for text in (shown, str(plan)):
        assert "4 BatchNorms to convert, 1 kept" in text
        assert "GroupNorm(2, 32)" in text
        assert "kept by name" in text
