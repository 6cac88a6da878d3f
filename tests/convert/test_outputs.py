"""What is said of outputs that are no logits: detections, indices, one number, complex ones."""

import pytest
import torch
from nets import images, resnet, trained
from torch import nn

import batchfree


class Ends(nn.Module):
    """The network and what its forward does in the end."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = resnet(1), end

    def forward(self, x):
        return self.end(self.net(x))


def converted(end):
    torch.manual_seed(0)
    return batchfree.convert(trained(Ends(end)), images()).report


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda y: y.argmax(1), "they are no measures but int64 values"),
        (lambda y: y[y > y.mean() + y.std() / 9], "their shapes differ, "),
        (lambda y: [t for t in y.flatten() if t > y.mean()], "the original gives "),
        (lambda y: y[:, :0], "they are empty"),
        (lambda y: y * 0, "the original's are all zero"),
        (lambda y: "words", "they hold no tensor"),
    ],
)
def test_outputs_that_cannot_be_compared_are_said_to_be(end, words):
    report = converted(end)
    assert (report.output_error, report.output_cosine, report.changed) in (
        (None, None, None),
        (None, None, 0.0),  # logits of zero
    )
    assert report.uncompared.startswith(words)
    assert f"; outputs were not compared: {words}" in str(report)
    assert "'net.3.bn2', the last layer, moved by" in str(report)
    assert "more than can be compared" not in str(report)
    assert "outputs were not compared" in report.to_html()


def test_a_regression_has_no_predictions_that_change():
    report = converted(lambda y: y[:, :1])
    assert report.changed is None
    assert 0 < report.output_error < 1
    assert "predictions" not in str(report)


def test_complex_outputs_are_compared_as_pairs_of_numbers():
    report = converted(lambda y: torch.complex(y, 2 * y).conj())
    assert report.output_error == pytest.approx(converted(lambda y: y).output_error)
    assert report.changed is None


def test_infinities_of_the_original_are_passed_over():
    report = converted(lambda y: torch.cat([y, torch.full_like(y, -torch.inf)], 1))
    assert report.output_error == pytest.approx(converted(lambda y: y).output_error)


@pytest.mark.parametrize("least_score", [0.0, 0.05])  # many boxes, and none
def test_a_detectors_layers_are_measured_where_its_boxes_cannot_be(least_score):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build

    torch.manual_seed(0)
    model = build(
        weights=None,
        weights_backbone=None,
        min_size=64,
        max_size=64,
        box_score_thresh=least_score,
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=10,
    )
    x = [torch.rand(3, 64, 64) for _ in range(2)]
    with pytest.warns(batchfree.ConversionWarning):
        report = batchfree.convert(model.eval(), x, held_out=x).report
    assert (report.output_error, report.changed) == (None, None)
    assert "they are detections" in report.uncompared
    assert "'backbone.body.16.1', the last layer, moved by" in str(report)
    assert all(row.error is not None for row in report.converted)
