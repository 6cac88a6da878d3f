"""A report on paper: JSON, the page, the terminal."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import pytest
import torch
from nets import images, resnet, trained

import batchfree
from batchfree.convert import ConversionReport, LayerDrift


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = trained(resnet())
    return model, batchfree.convert(
        model, images(80), keep="4.bn2", name="<script>alert(1)</script>"
    )


def test_drift_is_that_of_the_layers_on_held_out_images(result):
    model, found = result
    x = images(80)[70:]  # what no layer was fitted on
    assert (found.report.calibration, found.report.held_out) == (70, 10)
    seen = {}
    for net, which in ((model, 0), (found.model.eval(), 1)):
        layer = net.get_submodule("3.bn1")
        handle = layer.register_forward_hook(
            lambda m, args, y, which=which: seen.__setitem__(which, y.clone().double())
        )
        with torch.no_grad():
            seen[which, "out"] = net(x).double()
        handle.remove()
    row = next(r for r in found.report.layers if r.path == "3.bn1")
    assert row.error == pytest.approx(float((seen[1] - seen[0]).norm() / seen[0].norm()), rel=1e-4)
    cosine = torch.cosine_similarity(seen[0].flatten(), seen[1].flatten(), 0)
    assert row.cosine == pytest.approx(float(cosine), rel=1e-5)
    out = seen[0, "out"], seen[1, "out"]
    moved = float((out[1] - out[0]).norm() / out[0].norm())
    assert found.report.output_error == pytest.approx(moved, rel=1e-4)
    changed = (out[0].argmax(1) != out[1].argmax(1)).double().mean()
    assert found.report.changed == pytest.approx(100 * float(changed))


def test_what_was_expected_and_what_was_left(result):
    report = result[1].report
    each = [x.predicted for x in report.converted]
    assert all(0 < e < 1 for e in each)
    assert report.predicted == pytest.approx(math.sqrt(sum(e * e for e in each)))
    assert [(x.path, x.reason) for x in report.left] == [("4.bn2", "kept by name")]
    assert report.seconds > 0


def test_json_holds_everything(result):
    value = json.loads(result[1].report.to_json())
    assert {*value} == {f.name for f in dataclasses.fields(ConversionReport)}
    assert value["schema"] == "batchfree-convert-1"
    assert [x["path"] for x in value["layers"]] == ["1", "3.bn1", "3.bn2", "4.bn1", "4.bn2"]
    odd = ConversionReport("net", "copy", (), output_error=math.nan)
    assert json.loads(odd.to_json())["output_error"] == "nan"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("meta", "line", "polyline", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("line", "polyline", "circle"):
            return
        assert self.open.pop() == tag


def test_the_page_is_whole_self_contained_and_escaped(result):
    page = result[1].report.to_html()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("script") == 1
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page
    assert page.count("<circle") == 4
    for words in (
        "Drift along the network",
        "Left as they are",
        "kept by name",
        "GroupNorm(2, 32)",
    ):
        assert words in page


def test_a_page_without_measurements():
    report = ConversionReport("net", "analytic", (LayerDrift("", "BatchNorm2d", "GroupNorm", 2),))
    page = report.to_html()
    assert "the model" in page
    assert "<svg" not in page


def test_the_terminal_says_the_same(result):
    text = str(result[1].report)
    assert "4 BatchNorms became GroupNorms (calibrated); outputs moved by" in text
    assert "70 samples to calibrate, 10 held out; 5 forward passes" in text
    assert "kept by name" in text
