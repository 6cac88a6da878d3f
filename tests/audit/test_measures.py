"""What an audit measures beside coupling, on models whose answer is known by hand."""

import dataclasses
import math
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import images, net

import batchfree


def of_kind(report, kind):
    return [f for f in report.findings if f.kind == kind]


class Shift(nn.Module):
    """x plus c times the batch's mean, so that every distance is known."""

    def __init__(self, c):
        super().__init__()
        self.c = c

    def forward(self, x):
        return x + self.c * x.mean(0)


def test_smaller_batches_are_set_against_the_whole():
    report = batchfree.audit(net(nn.BatchNorm2d(8)), images(16), tolerance=0.5)
    assert [p.size for p in report.sweep] == [1, 2, 4, 8]
    for field in ("output", "mean", "variance"):
        values = [getattr(point, field) for point in report.sweep]
        assert all(a > b > 0 for a, b in pairwise(values)), field
    (size,) = [p.size for p in report.sweep if p.size == report.smallest_batch]
    within = [p.output <= 0.5 for p in report.sweep]
    assert within == [p.size >= size for p in report.sweep]
    assert of_kind(report, "batch size")[0].module == ""


def test_the_means_error_falls_with_the_root_of_the_batch():
    """Of independent samples: a batch of n stands 1 / sqrt(n) of a deviation off the population."""
    x = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    points = batchfree.audit(nn.BatchNorm2d(3), x).sweep
    for point in points:
        # E|z| of a normal z is sqrt(2 / pi); the whole batch is finite, hence the second factor.
        want = math.sqrt(2 / math.pi * (1 / point.size - 1 / 64))
        if point.size > 1:
            assert 0.5 * want < point.mean < 1.5 * want, point


def test_an_independent_model_has_no_smallest_batch():
    report = batchfree.audit(net(nn.GroupNorm(2, 8)), images())
    assert report.sweep == ()
    assert report.smallest_batch is None


def test_one_batch_size_in_tolerance_and_none():
    batch = 1 + 0.01 * images(8)
    close = batchfree.audit(Shift(1e-4), batch, modes=["train"], tolerance=0.05)
    assert close.smallest_batch == 1
    far = batchfree.audit(Shift(-1.0), batch, modes=["train"], tolerance=1e-4)
    assert far.smallest_batch is None


def test_a_batch_norm_refuses_one_value_and_the_others_are_measured():
    report = batchfree.audit(nn.BatchNorm1d(3), torch.randn(8, 3), modes=["train"])
    assert [p.output is None for p in report.sweep] == [True, False, False]
    assert [f.level for f in of_kind(report, "refuses one")] == ["warning"]


def test_the_gap_between_modes_is_told_by_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Dropout())
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)  # a unit or so off
    report = batchfree.audit(model, images())
    gaps = {layer.module: layer.gap for layer in report.layers}
    assert gaps.keys() == {"1"}
    assert gaps["1"] > 0.5
    (finding,) = of_kind(report, "train/eval gap")
    assert finding.module == "1"
    still = batchfree.audit(net(nn.GroupNorm(2, 8)), images())
    assert of_kind(still, "train/eval gap") == []


def test_a_metric_is_compared_between_the_modes():
    model, batches = net(nn.BatchNorm2d(8)), [images(4), 2 * images(4)]
    seen = []

    def metric(model, batch):
        seen.append(model.training)
        return model(batch).mean().item()

    report = batchfree.audit(model, images(), loader=batches, metric=metric)
    assert seen == [False, False, True, True]
    (finding,) = of_kind(report, "metric gap")
    model.eval()
    with torch.no_grad():
        evaluated = sum(model(b).mean().item() for b in batches) / 2
    assert f"{evaluated:.4g}" in finding.message


def test_batches_of_one_class_are_set_against_mixed_ones():
    x = images(8)
    x[:4] += 5  # the first class is bright
    labels = [0] * 4 + [1] * 4
    report = batchfree.audit(net(nn.BatchNorm2d(8)), x, labels=labels)
    (finding,) = of_kind(report, "not i.i.d.")
    assert finding.amount > 0.5
    assert finding.level == "warning"
    mixed = batchfree.audit(net(nn.GroupNorm(2, 8)), x, labels=torch.tensor(labels))
    assert of_kind(mixed, "not i.i.d.") == []


class OfImages(nn.Module):
    """Pads a list of images to one size, as detectors do, and takes a mean that sees the zeros."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.conv = masked, nn.Conv2d(3, 4, 1)

    def forward(self, images):
        height, width = (max(i.shape[d] for i in images) for d in (1, 2))
        found = []
        for image in images:
            room = image.new_zeros(3, height, width)
            room[:, : image.shape[1], : image.shape[2]] = image
            y = self.conv(room[None])[0]
            if self.masked:
                y = y[:, : image.shape[1], : image.shape[2]]
            found.append(y.mean((1, 2)))
        return torch.stack(found)


@pytest.mark.parametrize("masked", [True, False])
def test_padding_by_a_larger_mate_is_seen(masked):
    batch = [torch.randn(3, 8, 8), torch.randn(3, 8, 8)]
    report = batchfree.audit(OfImages(masked), batch)
    assert len(of_kind(report, "padding")) == (not masked)
    assert report.ok  # of one size, samples do not influence each other


class Looped(nn.Module):
    """Calls its modules for each sample by itself, twice each, in one of two orders."""

    def __init__(self, in_turn, mixes):
        super().__init__()
        self.in_turn, self.mixes = in_turn, mixes
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        if self.mixes:
            x = x - x.mean(0)
        rows = list(x)
        if self.in_turn:
            for _ in range(2):
                rows = [self.b(self.a(row)).tanh() for row in rows]
        else:
            for _ in range(2):
                rows = [self.b(self.a(row[None]))[0].sin() for row in rows]
            rows = [self.a(self.a(row)) for row in rows]
        return torch.stack(rows)


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("in_turn", [True, False])
def test_modules_that_are_called_for_each_sample_by_itself(in_turn, mixes):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    report = batchfree.audit(Looped(in_turn, mixes), x, modes=["eval"])
    assert [f.module for f in report.findings if f.level == "coupling"] == [""] * mixes


def test_images_of_several_sizes_are_padded_once_for_coupling():
    batch = [torch.randn(3, 8, 8), torch.randn(3, 6, 9), torch.randn(3, 7, 5)]
    assert batchfree.audit(OfImages(False), batch).ok


def test_nan_is_a_finding_and_stops_nothing():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    report = batchfree.audit(nn.Sequential(nn.Identity(), Log()), images())
    told = of_kind(report, "not finite")
    assert {(f.module, f.mode) for f in told} == {("1", "eval"), ("1", "train")}
    assert report.ok


def test_a_norm_of_single_values_is_told():
    report = batchfree.audit(net(nn.GroupNorm(8, 8)), images(size=3))
    assert [f.module for f in of_kind(report, "degenerate")] == ["1"]
    assert of_kind(batchfree.audit(net(nn.GroupNorm(8, 8)), images()), "degenerate") == []


@pytest.mark.parametrize(
    ("layer", "level"),
    [
        (lambda: batchfree.FrozenBatchNorm(8), "note"),
        (lambda: nn.BatchNorm2d(8, track_running_stats=False), "warning"),
        (lambda: nn.InstanceNorm2d(8, track_running_stats=True), "warning"),
        (lambda: nn.BatchNorm2d(8).eval(), "note"),
    ],
)
def test_what_the_class_alone_tells(layer, level):
    report = batchfree.audit(net(layer()), images())
    assert [(f.module, f.level) for f in of_kind(report, "static")] == [("1", level)]


def test_groups_are_proposed_by_the_policy():
    model = nn.Sequential(nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48))
    for policy, groups in ((None, batchfree.Groups().resolve(48)), (batchfree.Groups(8), 8)):
        report = batchfree.audit(model, images(), groups=policy)
        assert report.layers[0].groups == groups
        assert f"{groups} groups" in report.findings[0].advice


def coupled_modes(model, batch, **options):
    report = batchfree.audit(model, batch, **options)
    return [m.mode for m in report.modes if m.coupled]


class Contrastive(nn.Module):
    """Each sample's negatives are its batchmates; all that comes out is a loss."""

    def __init__(self, form):
        super().__init__()
        self.form, self.f = form, nn.Linear(8, 8)

    def forward(self, x):
        z = F.normalize(self.f(x), dim=1)
        loss = F.cross_entropy(z @ z.t() / 0.1, torch.arange(len(x)))
        return {"number": loss, "dict": {"loss": loss, "z": z}}[self.form]


@pytest.mark.parametrize("form", ["number", "dict"])
def test_in_batch_negatives_in_a_loss(form):
    x = torch.randn(6, 8)
    assert coupled_modes(Contrastive(form), x) == ["eval", "train"]
    with pytest.raises(AssertionError, match="no sum or mean over samples"):
        batchfree.assert_batch_independent(Contrastive(form), x, mode="train")


class Supervised(nn.Module):
    """A loss that is a mean, or a sum, over samples."""

    def __init__(self, reduction):
        super().__init__()
        self.reduction, self.f = reduction, nn.Linear(8, 5)

    def forward(self, x, y):
        return F.cross_entropy(self.f(x), y, reduction=self.reduction)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_that_is_a_sum_over_samples_is_no_coupling(reduction, n):
    batch = torch.randn(n, 8), torch.arange(n) % 5
    report = batchfree.audit(Supervised(reduction), batch)
    assert report.ok, str(report)


class Squeezed(nn.Module):
    """A score for each sample, whose batch dimension goes with the other where there is one."""

    def __init__(self, mixes):
        super().__init__()
        self.mixes, self.e, self.f = mixes, nn.Embedding(20, 8), nn.Linear(8, 1)

    def forward(self, ids):
        y = self.f(self.e(ids).mean(1))
        return (y - y.mean() if self.mixes else y).squeeze()


@pytest.mark.parametrize("mixes", [True, False])
def test_scores_that_are_squeezed(mixes):
    ids = torch.arange(24).reshape(6, 4) % 20
    assert coupled_modes(Squeezed(mixes), ids) == ["eval", "train"] * mixes


class Shifted(nn.Module):
    """Row 3 gets a part of row 2, and no other row anything."""

    def forward(self, x):
        if len(x) < 4:
            return x.clone()
        return torch.cat([x[:3], x[3:4] + x[2:3], x[4:]])


def test_coupling_of_one_sample_alone():
    assert coupled_modes(Shifted(), torch.randn(8, 5)) == ["eval", "train"]


def test_slots_nested_tensors_and_vmap_are_taken():
    @dataclasses.dataclass(slots=True)
    class Output:
        logits: torch.Tensor

    class Slots(nn.Module):
        def forward(self, x):
            return Output(x - x.mean(0))

    assert coupled_modes(Slots(), torch.randn(4, 3)) == ["eval", "train"]

    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)

        def forward(self, x):
            return torch.func.vmap(lambda row: self.f(row))(x)

    assert coupled_modes(Mapped(), torch.randn(4, 3)) == []
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:, 3:] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = {"src": torch.randn(4, 5, 8), "src_key_padding_mask": mask}
        report = batchfree.audit(encoder, batch, modes=["train"])
        assert report.ok
        batchfree.audit(encoder, batch)


def test_nan_in_the_input_of_a_batch_norm_makes_a_page():
    x = torch.randn(4, 8)
    x[1] = float("nan")
    report = batchfree.audit(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), x)
    assert report.smallest_batch is None
    assert "<html" in report.to_html()


def test_arguments_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(input=x)

    report = batchfree.audit(ByName(), torch.randn(8, 3))
    assert [p.mean is None for p in report.sweep] == [True, False, False]
