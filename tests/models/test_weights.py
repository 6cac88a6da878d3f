import json

import pytest
import timm
import torch
import torchvision
from detection_scenes import SMALL
from safetensors.torch import save_file

from batchfree import ConfigError, DataError, Groups, convert, norm_layer
from batchfree.models import Conventions, Norms, build_model, load_backbone, mask_rcnn
from batchfree.models.conventions import conventions_of

BN = Norms(norm_layer("frozen_bn"))


def detector(norms=BN, backbone="resnet18", **options):
    return mask_rcnn(backbone, 3, norms, **options)


def body_equals(model, state):
    body = model.backbone.body.state_dict()
    return all(torch.equal(body[n], state[n]) for n in body if n in state)


def scrambled(network):
    """Random statistics too, so that no two networks are alike in them."""
    torch.manual_seed(5)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (torchvision.models.resnet18, "resnet18"),
        (torchvision.models.resnet50, "resnet50"),
        (lambda: timm.create_model("resnet50", pretrained=False), "resnet50"),
        (lambda: timm.create_model("resnext50_32x4d", pretrained=False), "resnext50_32x4d"),
    ],
    ids=["tv18", "tv50", "timm50", "timmx50"],
)
def test_torchvisions_and_timms_weights_load(tmp_path, make, name, suffix):
    state = scrambled(make()).state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = detector(backbone=name)
    loaded = load_backbone(model, path)
    assert body_equals(model, state)
    assert sorted(loaded.left_out) == ["fc.bias", "fc.weight"]
    assert loaded.tensors == len(model.backbone.body.state_dict())
    assert "presumed torchvision's conventions" in loaded.remarks[0]


def test_the_features_are_the_classifiers(tmp_path):
    classifier = scrambled(torchvision.models.resnet18()).eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in classifier.state_dict().items()}},
        tmp_path / "w.pth",
    )
    model = detector().eval()
    load_backbone(model, tmp_path / "w.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = model.backbone.body(x)["3"]
        expected = torch.nn.Sequential(*list(classifier.children())[:-2])(x)
    torch.testing.assert_close(features, expected)


def test_c4_takes_the_last_stage_into_its_head(tmp_path):
    state = scrambled(torchvision.models.resnet18()).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = detector(neck="c4")
    loaded = load_backbone(model, tmp_path / "w.pth")
    head = model.roi_heads.box_head[0].state_dict()
    assert torch.equal(head["1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert body_equals(model, state)
    assert sorted(loaded.left_out) == ["fc.bias", "fc.weight"]


def ours(tmp_path, groups=4, mean=(0.45,) * 3, eps=1e-5):
    """A checkpoint of this package: a small classifier with its conventions."""
    norm = norm_layer("gn", Groups(channels_per_group=groups), eps=eps)
    network = build_model("resnet_small", num_classes=10, norm=norm, width=8, stem="7x7")
    told = {"conventions": conventions_of(network, mean, (0.25,) * 3)}
    path = tmp_path / "model.safetensors"
    save_file(scrambled(network).state_dict(), path, metadata={"batchfree": json.dumps(told)})
    return network, path


def small(groups=4, **options):
    norms = Norms(norm_layer("gn", Groups(channels_per_group=groups)))
    digits = {"image_mean": (0.45,) * 3, "image_std": (0.25,) * 3}
    return mask_rcnn("resnet_small", 3, norms, **{**SMALL, **digits, **options})


def test_our_own_checkpoints_say_how_they_were_trained(tmp_path):
    network, path = ours(tmp_path)
    model = small()
    loaded = load_backbone(model, path)
    assert loaded.remarks == []
    assert body_equals(model, network.state_dict())


def test_preprocessing_that_differs_is_refused_or_adopted_by_name(tmp_path):
    _, path = ours(tmp_path)
    model = small(image_mean=(0.485, 0.456, 0.406))
    with pytest.raises(ConfigError, match=r"the mean of its images is \(0.45, .*on_mismatch"):
        load_backbone(model, path)
    loaded = load_backbone(model, path, on_mismatch="adopt")
    assert model.transform.image_mean == [0.45, 0.45, 0.45]
    assert loaded.remarks[0].startswith("adopted: the mean of its images")


def test_eps_that_differs_is_refused_or_adopted_by_name(tmp_path):
    _, path = ours(tmp_path, eps=1e-3)
    model = small()
    with pytest.raises(ConfigError, match=r"the eps of its norms is 0\.001, the model's 1e-05"):
        load_backbone(model, path)
    load_backbone(model, path, on_mismatch="adopt")
    assert model.backbone.body.layer2[0].bn1.eps == 1e-3
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="the eps of its norms is 0, the model's 1e-05"):
        load_backbone(detector(), tmp_path / "w.pth", conventions=Conventions(eps=0.0))


def test_other_groups_are_refused(tmp_path):
    _, path = ours(tmp_path, groups=2)
    with pytest.raises(ConfigError, match="has 4 groups in bn1, the backbone 2"):
        load_backbone(small(), path, on_mismatch="adopt")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"stride": "1x1"}, "stride in the 1x1 convolution of a block, the backbone in the 3x3"),
        ({"channel_order": "bgr"}, "expects BGR images"),
    ],
)
def test_what_cannot_be_adopted_is_refused(tmp_path, told, message):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message):
        load_backbone(
            detector(backbone="resnet50"),
            tmp_path / "w.pth",
            conventions=Conventions(**told),
            on_mismatch="adopt",
        )


def test_timms_preprocessing_is_read_from_beside_the_weights(tmp_path):
    save_file(
        timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors"
    )
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": half}))
    with pytest.raises(ConfigError, match=r"mean of its images is \(0.5, 0.5, 0.5\)"):
        load_backbone(detector(), tmp_path / "w.safetensors")


def test_the_norms_have_to_be_of_a_kind(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "bn.pth")
    with pytest.raises(ConfigError, match="trained with BatchNorm, the backbone has another norm"):
        load_backbone(detector(Norms(norm_layer("gn"))), tmp_path / "bn.pth")
    torch.save(build_model("resnet18").state_dict(), tmp_path / "gn.pth")
    with pytest.raises(ConfigError, match="whose running statistics the file lacks"):
        load_backbone(detector(), tmp_path / "gn.pth")


def converted(tmp_path, groups, anchor=None):
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    result = convert(network, method="analytic", groups=Groups(groups), anchor=anchor)
    result.save(tmp_path / "c.safetensors", source="torchvision:resnet18")
    return tmp_path / "c.safetensors", result.model.state_dict()


@pytest.mark.filterwarnings("ignore::batchfree.ConversionWarning")
def test_a_converted_classifier_starts_a_backbone_of_its_groups_alone(tmp_path):
    path, state = converted(tmp_path, 8)
    model = detector(Norms(norm_layer("gn", groups=8)))
    loaded = load_backbone(model, path)
    assert body_equals(model, state)
    assert "gives its preprocessing in words" in loaded.remarks[0]
    with pytest.raises(ConfigError, match=r"has 8 groups in \S+, the backbone 32"):
        load_backbone(detector(Norms(norm_layer("gn"))), path)


@pytest.mark.filterwarnings("ignore::batchfree.ConversionWarning")
def test_a_conversion_that_rescales_is_refused_with_the_way_to_go(tmp_path):
    path, _ = converted(tmp_path, 8, anchor=2.0)
    with pytest.raises(ConfigError, match=r"layers rescale their input.*convert on it"):
        load_backbone(detector(Norms(norm_layer("gn", groups=8))), path)


def test_conventions_of_another_version_are_named(tmp_path):
    path = tmp_path / "new.safetensors"
    told = {"conventions": {"gamma": 2.2}}
    save_file(torchvision.models.resnet18().state_dict(), path, {"batchfree": json.dumps(told)})
    with pytest.raises(DataError, match="says gamma of its training"):
        load_backbone(detector(), path)


def test_a_file_without_weights_is_said_to_have_none(tmp_path):
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(DataError, match="holds no state_dict"):
        load_backbone(detector(), tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torchvision.models.resnet34, "it has layer1.2"),
        (torchvision.models.resnet50, "it has layer1.0.conv3.weight"),
        (lambda: timm.create_model("resnet18d", pretrained=False), "it lacks conv1.weight"),
        (lambda: timm.create_model("resnet26", pretrained=False), "it has layer1.0.conv3"),
    ],
    ids=["resnet34", "resnet50", "resnet18d", "resnet26"],
)
def test_another_network_is_named_by_what_differs(tmp_path, make, message):
    torch.save(make().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message):
        load_backbone(detector(), tmp_path / "w.pth")


def test_another_width_is_named_by_its_shapes(tmp_path):
    torch.save(torchvision.models.resnext50_32x4d().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"layer1.0.conv1.weight has shape \(128, 64, 1, 1\)"):
        load_backbone(detector(backbone="resnet50"), tmp_path / "w.pth")


def test_nothing_is_loaded_where_something_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    model = detector()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError):
        load_backbone(model, tmp_path / "w.pth", conventions=Conventions(mean=(0.0,) * 3))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def gn_state(groups=16):
    norm = lambda channels: torch.nn.GroupNorm(groups, channels)  # noqa: E731
    return torchvision.models.resnet18(norm_layer=norm).state_dict()


@pytest.mark.parametrize(
    ("norm", "presumed"),
    [
        (norm_layer("gn"), "gn with 32 groups in each of 20 layers"),
        (norm_layer("gn", Groups(channels_per_group=16)), "gn with 4 to 32 groups in each"),
        (norm_layer("ln"), "ln with one group in each"),
        (norm_layer("in"), "in with a group a channel in each"),
    ],
)
def test_groups_that_the_file_does_not_say_are_named_as_presumed(tmp_path, norm, presumed):
    torch.save(gn_state(), tmp_path / "w.pth")
    loaded = load_backbone(detector(Norms(norm)), tmp_path / "w.pth")
    assert len(loaded.remarks) == 2
    assert loaded.remarks[1].startswith("w.pth does not say its norm and groups: presumed the back")
    assert presumed in loaded.remarks[1]
    # Said by hand, or by a file that says its preprocessing alone, as timm's.
    told = Conventions(mean=(0.485, 0.456, 0.406))
    (remark,) = load_backbone(detector(Norms(norm)), tmp_path / "w.pth", conventions=told).remarks
    assert presumed in remark


def test_what_is_said_of_the_norm_by_hand_is_compared(tmp_path):
    torch.save(gn_state(), tmp_path / "w.pth")
    for kind, other in (("ln", "gn"), ("gn", "ln"), ("in", "gn"), ("gn", "in")):
        with pytest.raises(ConfigError, match=f"was trained with {other}, the backbone has {kind}"):
            load_backbone(
                detector(Norms(norm_layer(kind))),
                tmp_path / "w.pth",
                conventions=Conventions(norm=other),
            )
    said = Conventions(norm="gn", num_groups={"bn1": 16})
    with pytest.raises(ConfigError, match="has 16 groups in bn1, the backbone 32"):
        load_backbone(detector(Norms(norm_layer("gn"))), tmp_path / "w.pth", conventions=said)


def test_of_batch_norm_nothing_is_presumed_of_groups(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    assert len(load_backbone(detector(), tmp_path / "w.pth").remarks) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pth")
    model = detector()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match=r"NaN or infinite values in layer1\.0\.conv1\.weight: its"):
        load_backbone(model, tmp_path / "w.pth")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_detectors_file_is_recognised(tmp_path):
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None
    ).state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    torch.save(detector().state_dict(), tmp_path / "ours.pth")
    for name in ("theirs", "ours"):
        with pytest.raises(ConfigError, match=r"holds a whole detector \(backbone\.body\.conv1"):
            load_backbone(detector(backbone="resnet50"), tmp_path / f"{name}.pth")
    # What the message says to do works.
    body = {k.removeprefix("backbone.body."): v for k, v in theirs.items() if "backbone.body." in k}
    torch.save(body, tmp_path / "body.pth")
    load_backbone(detector(backbone="resnet50"), tmp_path / "body.pth")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"{}"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_missing_or_damaged_file_is_a_data_error(tmp_path, content, name):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_backbone(detector(), path)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="read safely"):
        load_backbone(detector(), tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(DataError, match="names and tensors were expected"):
        load_backbone(detector(), tmp_path / "w.pth")
