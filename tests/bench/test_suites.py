import math
from collections import Counter

import pytest
import torch
import torchvision

from batchfree._errors import ConfigError
from batchfree.bench.suites import SUITES, Case, cases


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_can_be_normalised_and_stands_once(suite):
    found = cases(suite)
    assert found
    for case in found:
        assert case.shape[1] % case.groups == 0
        assert case.elements == math.prod(case.shape)
        assert case.count > 0
    keys = [(c.name, c.shape, c.groups, c.fusion) for c in found]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 224, 224), (2, 800, 1344)])
def test_resnet50_has_the_norms_of_torchvisions(batch, height, width):
    seen = Counter()
    with torch.device("meta"):
        model = torchvision.models.resnet50()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(lambda m, x, y: seen.update([tuple(y.shape)]))
        model(torch.empty(batch, 3, height, width))
    suite = cases("resnet50") if height == 224 else cases("mask-rcnn")
    ours = Counter()
    for case in suite:
        if case.name.endswith(f"batch {batch}") and not case.name.startswith(
            ("FPN", "box", "mask")
        ):
            ours[case.shape] += case.count
    assert ours == seen
    assert sum(ours.values()) == 53


def test_the_unet_has_22_blocks_and_16_attentions():
    found = cases("sd-unet")
    assert sum(case.count for case in found if case.activation == "silu") == 2 * 22 + 1
    assert sum(case.count for case in found if case.activation is None) == 16


def test_the_target_is_drawn_from_the_others_and_holds_1_to_32_mb():
    others = [case for suite in SUITES if "target" not in suite for case in cases(suite)]
    target = cases("target")
    assert all(case in others for case in target)
    assert all(1e6 <= 4 * case.elements <= 32e6 for case in target)
    assert {case.fusion for case in target} == {"GN+silu", "GN+residual+relu"}
    assert (2, 320, 64, 64) in {case.shape for case in target}
    assert {case.fusion for case in cases("target-plain")} == {"GN"}


def test_tiny_tensors_are_under_64_kib():
    assert all(4 * case.elements < 2**16 for case in cases("tiny"))


def test_large_cases_are_marked():
    assert Case("clip", (1, 128, 20, 256, 256)).large
    assert not any(case.large for case in cases("target"))
    assert any(not case.large for case in cases("hunyuan-vae"))


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigError, match="no suite 'resnet5'; did you mean 'resnet50'"):
        cases("resnet5")
