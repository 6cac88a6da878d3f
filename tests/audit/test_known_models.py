"""Twelve models that people use: every BatchNorm that runs is found, and nothing else.

The whole of torchvision and 170 models of timm: tools/audit_zoo.py, results/audit-zoo.csv.
"""

import pytest
import torch
from torch import nn

import batchfree
from batchfree.cli.audit import detection_batch

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGE = (3, 64, 64)
MODELS = {
    "torchvision:resnet18": IMAGE,
    "torchvision:mobilenet_v3_small": IMAGE,
    "torchvision:shufflenet_v2_x0_5": IMAGE,
    "torchvision:convnext_tiny": IMAGE,
    "torchvision:lraspp_mobilenet_v3_large": IMAGE,
    "torchvision:ssdlite320_mobilenet_v3_large": (3, 96, 96),
    "timm:resnet10t": IMAGE,
    "timm:convnext_atto": IMAGE,
    "timm:efficientvit_b0": IMAGE,
    "timm:test_vit": (3, 160, 160),
    "timm:test_nfnet": IMAGE,
    "timm:mixer_s32_224": (3, 224, 224),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_batch_norm_and_nothing_else(name):
    from batchfree._naming import load_model

    torch.manual_seed(0)
    model = load_model(name)
    batch = torch.rand(3, *MODELS[name])
    if "ssd" in name:
        batch = detection_batch(batch)
        model.transform.min_size, model.transform.max_size = (96,), 96
    ran = set()
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    report = batchfree.audit(model, batch, probes=1)
    assert report.skipped == ()
    norms = {names[m]: m for m in ran if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    asleep = {name for name, m in norms.items() if not m.weight.any()}
    assert {f.module for f in report.findings if f.kind == "zero gamma"} == asleep
    found = [f.module for f in report.findings if f.level == "coupling"]
    assert {f.mode for f in report.findings if f.level == "coupling"} <= {"train"}
    assert sorted(found) == sorted(norms.keys() - asleep)
    assert report.ok == (not norms)
