import pytest
import torch
from detection_scenes import SMALL, rectangles
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from batchfree import Groups, norm_layer
from batchfree.models import Norms, mask_rcnn
from batchfree.models.mask_rcnn import freeze
from batchfree.nn import FrozenBatchNorm

GN = norm_layer("gn", Groups(channels_per_group=4))


def small(norms=None, classes=4, **options):
    return mask_rcnn("resnet_small", classes, norms or Norms.everywhere(GN), **{**SMALL, **options})


def train_step(model, **scene):
    images, targets = rectangles(**scene)
    torch.manual_seed(0)
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    return losses


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's Mask R-CNN with random weights, statistics and affines in its frozen norms."""
    torch.manual_seed(0)
    size = {"min_size": 96, "max_size": 128}
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5, **size)
    replace_norms(theirs)
    for name, buffer in theirs.named_buffers():
        if "running_var" in name or name.endswith("weight"):
            buffer.uniform_(0.5, 1.0)
        elif "running_mean" in name or name.endswith("bias"):
            buffer.normal_(std=0.1)
    ours = mask_rcnn("resnet50", 5, Norms(norm_layer("frozen_bn")), box_head="2fc", **size)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def replace_norms(module):
    """torchvision builds frozen norms only around pretrained weights, which need a network."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            replace_norms(child)


def test_the_layout_is_torchvisions(torchvisions):
    theirs, ours = torchvisions
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert {n for n, p in ours.named_parameters()} == {n for n, p in theirs.named_parameters()}


def test_losses_and_gradients_equal_torchvisions(torchvisions):
    images, targets = rectangles(2, size=96, classes=4)
    losses, gradients = [], []
    for model in torchvisions:
        model.train().zero_grad()
        torch.manual_seed(1)
        found = model(images, targets)
        sum(found.values()).backward()
        losses.append({k: float(v.detach()) for k, v in found.items()})
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert losses[0].keys() == losses[1].keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_detections_equal_torchvisions(torchvisions):
    images, _ = rectangles(2, size=96, classes=4)
    with torch.no_grad():
        theirs, ours = (model.eval()(images) for model in torchvisions)
    assert sum(len(d["scores"]) for d in theirs) > 0
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        for name, rounding in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-4)):
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=rounding)


def test_each_part_has_the_norm_that_was_asked_for():
    norms = Norms(
        norm_layer("frozen_bn"), norm_layer("ln"), norm_layer("bn"), norm_layer("sync_bn")
    )
    model = small(norms)

    def kinds(part):
        return {type(m).__name__ for m in part.modules() if hasattr(m, "activation")}

    assert kinds(model.backbone.body) == {"FrozenBatchNorm"}
    assert kinds(model.backbone.fpn) == {"GroupNorm1"}
    assert kinds(model.roi_heads.box_head) == {"BatchNorm2d"}
    assert kinds(model.roi_heads.mask_head) == {"SyncBatchNorm"}
    assert kinds(model.rpn) == set()


def test_a_part_without_norm_has_biases():
    model = small(Norms(GN))
    convolutions = [
        m
        for part in (model.backbone.fpn, model.roi_heads)
        for m in part.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert len(convolutions) == 8 + 4 + 4 + 1
    assert all(m.bias is not None for m in convolutions)


@pytest.mark.parametrize("kind", ["gn", "bn", "ln", "none", "in"])
@pytest.mark.parametrize("box_head", ["4conv1fc", "2fc"])
def test_every_norm_takes_a_step(kind, box_head):
    norm = GN if kind == "gn" else norm_layer(kind)
    head = None if kind == "none" else norm
    losses = train_step(small(Norms(norm, head, head, head), box_head=box_head))
    assert sorted(losses) == [
        "loss_box_reg",
        "loss_classifier",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    ]
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet101", "resnext50_32x4d"])
def test_backbones_build_and_run(name):
    model = mask_rcnn(name, 3, min_size=64, max_size=64, rpn_post_nms_top_n_test=5).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 80)])) == 1


def test_the_stride_is_in_the_3x3():
    body = mask_rcnn("resnet50", 2).backbone.body
    for stage in (body.layer2, body.layer3, body.layer4):
        assert stage[0].conv1.stride == (1, 1)
        assert stage[0].conv2.stride == (2, 2)


def test_a_norm_with_its_activation_equals_norm_and_activation():
    torch.manual_seed(0)
    model = small()
    block = model.roi_heads.mask_head[0]
    x = torch.randn(2, 16, 14, 14)
    assert isinstance(block[2], nn.Identity)
    plain = nn.GroupNorm(4, 16)(block[0](x)).relu()
    torch.testing.assert_close(block(x), plain)


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, set()),
        (1, {"conv1", "bn1"}),
        (2, {"conv1", "bn1", "layer1"}),
        (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_freeze_at_freezes_so_many_stages(stages, frozen):
    model = small(freeze_at=stages)
    train_step(model)
    body = model.backbone.body
    without = {n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}
    assert without == frozen
    assert all(p.grad is not None for p in body.parameters() if p.requires_grad)
    assert all(p.grad is None for p in body.parameters() if not p.requires_grad)


def test_a_frozen_batch_norm_keeps_its_statistics():
    model = small(Norms.everywhere(norm_layer("bn")), freeze_at=2)
    body = model.backbone.body
    assert isinstance(body.bn1, FrozenBatchNorm)
    assert body.bn1.activation == "relu"
    before = {n: b.clone() for n, b in body.named_buffers() if n.startswith(("bn1", "layer1"))}
    train_step(model)
    after = dict(body.named_buffers())
    assert all(torch.equal(after[n], b) for n, b in before.items())
    assert not torch.equal(after["layer2.0.bn1.running_mean"], torch.zeros(16))


def test_a_frozen_norm_computes_what_the_norm_in_evaluation_did():
    model = small(Norms.everywhere(norm_layer("bn")))
    train_step(model)
    body = model.eval().backbone.body
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = body(x)
        freeze(body, 5)
        body.train()
        after = body(x)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.parametrize("box_head", ["4conv1fc", "2fc"])
def test_the_initialisations_differ_where_they_say(box_head):
    torch.manual_seed(0)
    theirs, ours = (
        small(initialization=custom, box_head=box_head, fc_channels=512, head_channels=64)
        for custom in ("torchvision", "detectron")
    )
    heads = ours.roi_heads
    assert float(heads.box_predictor.cls_score.weight.detach().std()) == pytest.approx(
        0.01, rel=0.1
    )
    assert float(heads.box_predictor.bbox_pred.weight.detach().std()) == pytest.approx(
        0.001, rel=0.1
    )
    logits = heads.mask_predictor.mask_fcn_logits
    assert float(logits.weight.detach().std()) == pytest.approx(0.001, rel=0.2)
    linear = next(m for m in heads.box_head.modules() if isinstance(m, nn.Linear))
    bound = (3 / linear.in_features) ** 0.5
    assert float(linear.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert all(not m.bias.any() for m in heads.modules() if isinstance(m, nn.Linear))
    # torchvision's own is what its parts come with.
    other = next(m for m in theirs.roi_heads.box_head.modules() if isinstance(m, nn.Linear))
    assert float(other.weight.detach().abs().max()) == pytest.approx(
        other.in_features**-0.5, rel=0.01
    )
    assert other.bias.any()


def test_zero_init_of_the_last_gamma_is_a_choice():
    assert small(zero_init_residual=True).backbone.body.layer1[0].bn2.weight.sum() == 0
    assert small().backbone.body.layer1[0].bn2.weight.sum() == 8


def test_c4_shares_its_last_stage_between_boxes_and_masks():
    model = mask_rcnn(
        "resnet_small", 4, Norms(GN), neck="c4", **{**SMALL, "anchor_sizes": (16, 32)}
    )
    names = list(model.state_dict())
    assert not any("mask_head" in n for n in names)
    assert model.rpn.head.cls_logits.out_channels == 6
    stage = model.roi_heads.box_head[0]
    assert stage is model.roi_heads.mask_head._shared[0]
    losses = train_step(model)
    assert torch.isfinite(losses["loss_mask"])
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, 64, 64)])
    assert found["masks"].shape[1:] == (1, 64, 64)


def test_an_image_without_instances_and_one_pixel_boxes_train():
    images, targets = rectangles(2)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    pixel = {
        "boxes": torch.tensor([[5.0, 5.0, 6.0, 6.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 64, 64, dtype=torch.uint8),
    }
    pixel["masks"][0, 5, 5] = 1
    for cascade in (False, True):
        model = small(cascade=cascade).train()
        for batch in ([empty, targets[1]], [empty, empty], [pixel, empty]):
            losses = model(images, batch)
            sum(losses.values()).backward()
            assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "pfn"}, "did you mean 'fpn'"),
        ({"min_size": 0}, "min_size must be above 0, got 0"),
        ({"min_size": ()}, r"min_size must be above 0, got \[\]"),
        ({"min_size": (64, -1)}, r"min_size must be above 0, got \[64, -1\]"),
        ({"max_size": 0}, "max_size must be above 0, got 0"),
        ({"anchor_sizes": (0, 1, 2, 3, 4)}, "anchor_sizes must be above 0"),
        ({"aspect_ratios": (0.5, float("nan"))}, "aspect_ratios must be above 0"),
        ({"image_std": (1.0, 0.0, 1.0)}, "image_std must be above 0"),
        ({"box_head": "4conv"}, "did you mean '4conv1fc'"),
        ({"initialization": "detectron2"}, "did you mean 'detectron'"),
        ({"freeze_at": 6}, "freeze_at must be 0"),
        ({"anchor_sizes": (8, 16)}, "one side for each of the FPN's 5 levels"),
        ({"neck": "c4", "cascade": True}, "take neck='fpn'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_the_background_is_a_class():
    with pytest.raises(ValueError, match="the categories and the background, so 2 is the least"):
        small(classes=1)
