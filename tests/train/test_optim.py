import math

import pytest
import torch
from torch import nn

import batchfree
from batchfree.train.config import OptimizerConfig, ScheduleConfig
from batchfree.train.optim import (
    Schedule,
    build_optimizer,
    build_schedule,
    build_scheduler,
    parameter_groups,
)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),  # the warm-up's first step
        (5, 0.55),  # halfway from 0.1 to 1
        (10, 1.0),
        (60, 0.5),  # halfway down the cosine
        (35, (1 + math.cos(math.pi / 4)) / 2),
        (110, 0.0),
        (500, 0.0),  # beyond the end
    ],
)
def test_cosine_after_warm_up_by_hand(step, factor):
    assert Schedule("cosine", total=110, warmup=10).factor(step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 3), (250, 2 / 3), (500, 1), (1999, 1), (2000, 0.1), (3000, 0.01)]
)
def test_steps_after_the_papers_coco_warm_up(step, factor):
    schedule = Schedule(
        "step", total=4000, warmup=500, warmup_factor=1 / 3, milestones=(2000, 3000)
    )
    assert schedule.factor(step) == pytest.approx(factor)


def test_constant_and_final_factor():
    assert Schedule("constant", total=10).factor(9) == 1
    assert Schedule("cosine", total=10, final_factor=0.2).factor(10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("unit", "warmup", "milestone"),
    [("epochs", 5, 30), ("fraction", 0.05, 0.3), ("steps", 50, 300)],
)
def test_units_give_the_same_steps(unit, warmup, milestone):
    config = ScheduleConfig("step", unit, warmup=warmup, milestones=[milestone])
    schedule = build_schedule(config, total_steps=1000, steps_per_epoch=10, learning_rate=0.1)
    assert (schedule.warmup, schedule.milestones) == (50, (300,))


@pytest.mark.parametrize(("learning_rate", "warmup"), [(0.1, 0), (0.2, 50)])
def test_warm_up_only_above_a_learning_rate(learning_rate, warmup):
    config = ScheduleConfig(unit="steps", warmup=50, warmup_above_lr=0.1)
    schedule = build_schedule(
        config, total_steps=1000, steps_per_epoch=None, learning_rate=learning_rate
    )
    assert schedule.warmup == warmup


def test_scheduler_sets_the_rates_of_the_schedule():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerConfig(), 0.4)
    schedule = Schedule("cosine", total=8, warmup=2)
    scheduler = build_scheduler(optimizer, schedule)
    for step in range(8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * schedule.factor(step))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["bn", "gn", "ln", "in", "sync_bn"])
def test_gamma_and_beta_without_decay(kind):
    norm = batchfree.norm_layer(kind)
    net = nn.Sequential(nn.Conv2d(3, 32, 1), norm(32), nn.Linear(32, 2))
    decayed, free = parameter_groups(net, 1e-4, decay_norm_parameters=False)
    assert {id(p) for p in free["params"]} == {id(p) for p in net[1].parameters()}
    assert len(decayed["params"]) == 4  # biases included: the paper exempts gamma and beta only
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0.0)


def test_one_group_where_all_decay_and_no_empty_group():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    (group,) = parameter_groups(net, 1e-4, decay_norm_parameters=True)
    assert len(group["params"]) == 4
    assert len(parameter_groups(nn.Linear(2, 2), 1e-4, decay_norm_parameters=False)) == 1


def test_frozen_parameters_are_left_out():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    (group,) = parameter_groups(net, 0.0, decay_norm_parameters=True)
    assert group["params"] == [net.weight]


def test_a_step_is_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([2.0]))
    net = nn.Module()
    net.register_parameter("weight", weight)
    optimizer = build_optimizer(net, OptimizerConfig(momentum=0.5, weight_decay=0.1), 0.1)
    for _ in range(2):
        weight.grad = torch.tensor([1.0])
        optimizer.step()
    # d1 = 1 + 0.1 * 2 = 1.2, w = 1.88; d2 = 1.188 + 0.5 * 1.2 = 1.788, w = 1.7012
    assert weight.item() == pytest.approx(1.7012)
