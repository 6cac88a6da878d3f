"""Watching BatchNorms in training: what is seen, and that looking changes nothing."""

import copy
import math

import pytest
import torch
from torch import nn
from zoo import images, net

import batchfree
from batchfree.audit.watch import watch


def trained(model, batches, around):
    """Outputs and state after some steps of SGD inside of a context manager."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    outputs = []
    with around:
        for x in batches:
            y = model(x)
            optimizer.zero_grad()
            y.square().mean().backward()
            optimizer.step()
            outputs.append(y.detach())
    return outputs, model.state_dict()


def test_looking_changes_nothing_and_leaves_nothing():
    from contextlib import nullcontext

    torch.manual_seed(0)
    model, batches = net(nn.BatchNorm2d(8)), [images(4), 2 * images(4), images(5)]
    other = copy.deepcopy(model)
    seen = []
    a, b = (
        trained(model, batches, watch(model, seen.extend)),
        trained(other, batches, nullcontext()),
    )
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y)
    assert all(torch.equal(v, b[1][k]) for k, v in a[1].items())
    assert [r.samples for r in seen] == [4, 4, 5]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_numbers_are_those_of_the_definition():
    layer = nn.BatchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    x, seen = 3 * images(5) + 1, []
    running = layer.running_mean.clone(), layer.running_var.clone()
    with watch(layer, seen.extend):
        trained_output = layer(x)
    (record,) = seen
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    deviation = (running[1] + layer.eps).sqrt()
    assert record.module == ""
    assert (record.samples, record.elements) == (5, 5 * 64)
    drift = ((mean - running[0]).abs() / deviation).mean().item()
    assert record.mean_drift == pytest.approx(drift, rel=1e-4)
    ratio = ((variance + layer.eps) / (running[1] + layer.eps)).log().abs().mean().item()
    assert record.variance_drift == pytest.approx(ratio, rel=1e-4)
    layer.running_mean.copy_(running[0])
    layer.running_var.copy_(running[1])
    gap = (layer.eval()(x) - trained_output).square().mean().sqrt().item()
    assert record.gap == pytest.approx(gap, rel=1e-4)


def test_the_normalisation_batch_is_what_the_layer_uses():
    layer, seen = batchfree.BatchNorm2d(3, normalization_batch=2), []
    with watch(layer, seen.extend):
        layer(images(8))
    assert (seen[0].samples, seen[0].elements) == (2, 128)


def test_every_so_many_forwards_and_in_training_only():
    model, seen = net(nn.BatchNorm2d(8)), []
    with watch(model, lambda found: seen.append(len(found)), every=3):
        for _ in range(7):
            model(images(2))
        model.eval()
        model(images(2))
    assert seen == [1, 1, 1]
    frozen = net(nn.BatchNorm2d(8, track_running_stats=False), batchfree.FrozenBatchNorm(8))
    with watch(frozen, seen.append):
        frozen(images(2))
    assert len(seen) == 3


def test_hooks_go_where_the_training_raises():
    model = net(nn.BatchNorm2d(8))
    with pytest.raises(ZeroDivisionError), watch(model, print):
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_step_that_does_not_fit(every):
    with pytest.raises(ValueError, match="every must be a positive number of forwards"):
        watch(nn.Identity(), print, every).__enter__()


def test_the_callback_logs_to_tensorboard(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from batchfree.train.watch import BatchWatch

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net(nn.BatchNorm2d(8))

        def training_step(self, batch):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    loader = torch.utils.data.DataLoader(images(16), batch_size=4)
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, version="x"),
        callbacks=[BatchWatch(every=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "x"))
    events.Reload()
    told = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert told["batch/net.1/samples"] == [4, 4]
    for name in ("mean_drift", "variance_drift", "gap"):
        assert len(told[f"batch/{name}"]) == 2
        assert told[f"batch/{name}"] == told[f"batch/net.1/{name}"]
        assert all(math.isfinite(v) and v > 0 for v in told[f"batch/{name}"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
