import pytest
import torch
from detection_scenes import SMALL, rectangles
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from batchfree import Groups, norm_layer
from batchfree.models import CascadeRoIHeads, Norms, mask_rcnn

GN = norm_layer("gn", Groups(channels_per_group=4))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mask_rcnn("resnet_small", 4, Norms.everywhere(GN), cascade=True, **SMALL)


def test_three_stages_train(model):
    images, targets = rectangles(2)
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    for stage in "123":
        assert torch.isfinite(losses[f"loss_classifier_{stage}"])
        assert torch.isfinite(losses[f"loss_box_reg_{stage}"])
    assert all(p.grad is not None for p in model.parameters())
    heads = model.roi_heads
    assert isinstance(heads, CascadeRoIHeads)
    assert len(heads.box_head) == 3
    assert {p.bbox_pred.out_features for p in heads.box_predictor} == {4}


def test_each_stage_labels_by_its_own_iou(model):
    heads = model.roi_heads
    truth = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    boxes = torch.tensor([[0.0, 0.0, 20.0, 11.0], [0.0, 0.0, 20.0, 13.0], [0.0, 0.0, 20.0, 15.0]])
    assert box_iou(truth, boxes)[0].tolist() == pytest.approx([0.55, 0.65, 0.75])
    targets = [{"boxes": truth, "labels": torch.tensor([2])}]
    found = [heads._label(stage, [boxes], targets)[0][0].tolist() for stage in range(3)]
    assert found == [[2, 2, 2], [0, 2, 2], [0, 0, 2]]


def test_a_stage_regresses_to_the_truth_with_its_own_weights(model):
    heads = model.roi_heads
    truth = torch.tensor([[3.0, 4.0, 21.0, 25.0]])
    box = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    targets = [{"boxes": truth, "labels": torch.tensor([1])}]
    for stage, weights in enumerate([(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]):
        _, (wanted,) = heads._label(stage, [box], targets)
        expected = BoxCoder(tuple(map(float, weights))).encode_single(truth, box)
        torch.testing.assert_close(wanted, expected)
        (moved,) = heads._move(stage, [box], wanted, [(64, 64)])
        torch.testing.assert_close(moved, truth)


def test_scores_are_the_mean_of_the_stages_and_boxes_the_last_stages(model):
    heads = model.roi_heads.eval()
    heads.score_thresh, heads.nms_thresh = 0.0, 1.0
    features = model.backbone(torch.rand(1, 3, 64, 64))
    boxes, shapes = [torch.tensor([[10.0, 10.0, 40.0, 42.0]])], [(64, 64)]
    with torch.no_grad():
        (found,), losses = heads(features, boxes, shapes)
        scores, current = 0, boxes
        for stage in range(3):
            logits, deltas = heads._predict(stage, features, current, shapes)
            scores = scores + logits.softmax(1) / 3
            current = heads._move(stage, current, deltas, shapes)
    assert losses == {}
    order = found["labels"].argsort()
    torch.testing.assert_close(found["scores"][order], scores[0, 1:])
    torch.testing.assert_close(found["boxes"], current[0].expand(3, 4))
    assert found["masks"].shape == (3, 1, 28, 28)


def test_the_shared_features_receive_a_third_of_each_stages_gradient(model):
    heads = model.roi_heads.train()
    features = {
        k: v.detach().requires_grad_() for k, v in model.backbone(torch.rand(1, 3, 64, 64)).items()
    }
    boxes, shapes = [torch.tensor([[10.0, 10.0, 40.0, 42.0]])], [(64, 64)]
    gradients = []
    for pooled in (
        lambda: heads._predict(0, features, boxes, shapes)[0],
        lambda: heads.box_predictor[0](
            heads.box_head[0](heads.box_roi_pool(features, boxes, shapes))
        )[0],
    ):
        (gradient,) = torch.autograd.grad(pooled().square().sum(), features["0"])
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0] * 3, gradients[1])


def test_it_learns(model):
    images, targets = rectangles(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(25):
        total = sum(model.train()(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.7 * totals[0]
