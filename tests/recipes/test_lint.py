"""Mistakes that only the network shows, and those of a config by name."""

import pytest
from torch import nn

import batchfree
from batchfree.recipes import get_recipe
from batchfree.recipes.lint import lint


class Detector(nn.Module):
    """Named as torchvision's and detectron2's are."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), backbone)
        self.roi_heads = nn.ModuleDict({"box_head": nn.Sequential(nn.Conv2d(8, 8, 3), head)})


def gn():
    return batchfree.GroupNorm(2, 8)


def rules(network):
    return [(found.rule, found.field) for found in lint(get_recipe("imagenet_r50_gn"), network)]


def test_a_network_of_one_norm_is_clean():
    assert rules(Detector(gn(), gn())) == []
    assert rules(Detector(nn.BatchNorm2d(8), nn.Identity())) == []


def test_batch_norm_in_a_head_over_regions():
    head = "roi_heads.box_head.1"
    assert rules(Detector(nn.Identity(), nn.BatchNorm2d(8))) == [("bn-in-roi-head", head)]
    assert rules(Detector(gn(), nn.BatchNorm2d(8))) == [("bn-in-roi-head", head)]
    assert rules(Detector(gn(), batchfree.FrozenBatchNorm(8))) == []


def test_batch_norm_left_over_beside_group_norm():
    assert rules(Detector(nn.BatchNorm2d(8), gn())) == [("left-over-bn", "backbone.1")]
    assert rules(Detector(batchfree.FrozenBatchNorm(8), gn())) == []


def test_a_frozen_stem_in_a_training_from_scratch():
    network = Detector(gn(), gn())
    network.backbone[0].requires_grad_(False)
    assert rules(network) == [("frozen-stem", "backbone.0")]


@pytest.mark.parametrize("name", ["imagenet_r50_gn", "imagenet_r50_bn", "digits_small_gn"])
def test_our_own_recipes_are_clean(name):
    assert lint(get_recipe(name)) == []


def test_every_finding_says_what_to_do_and_whose_rule_it_is():
    network = Detector(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    network.backbone[0].requires_grad_(False)
    for found in lint(get_recipe("imagenet_r50_gn"), network):
        assert found.message
        assert found.advice
        assert found.source
