"""Input that an audit cannot use: an error that says so, and the model as it was either way."""

import copy

import numpy as np
import pytest
import torch
from test_zoo import assert_same, state_of
from torch import nn
from zoo import images, net

import batchfree
from batchfree import ConfigError


class Raises(nn.Module):
    """In some modes."""

    def __init__(self, *modes):
        super().__init__()
        self.modes, self.norm = modes, nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.norm(x)
        if (self.training and "train" in self.modes) or (
            not self.training and "eval" in self.modes
        ):
            raise ValueError("not like this\nand more lines")
        return y


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.randn(1, 3, 8, 8), "at least two samples, got 1"),
        (torch.randn(0, 3, 8, 8), "at least two samples, got none"),
        ([torch.randn(3, 8, 8)], "at least two samples, got 1"),
        ("images", "holds no tensor, got str"),
        ({}, "holds no tensor, got dict"),
        (torch.ones(4, 3, 8, 8), "4 samples are all alike"),
        ([torch.ones(3, 8, 8)] * 2, "2 samples are all alike"),
    ],
)
def test_a_batch_that_shows_nothing_is_an_error(batch, words):
    model = net(nn.BatchNorm2d(8))
    before = state_of(model)
    with pytest.raises(ConfigError, match=words):
        batchfree.audit(model, batch)
    assert_same(before, state_of(model))


def test_other_arguments_that_do_not_fit():
    model, x = net(nn.BatchNorm2d(8)), images()
    with pytest.raises(ConfigError, match=r"must be a torch.nn.Module, got function"):
        batchfree.audit(lambda x: x, x)
    with pytest.raises(ValueError, match=r"a mode must be one of .*'eval', 'train'.*got 'test'"):
        batchfree.audit(model, x, modes=["test"])
    with pytest.raises(ConfigError, match="labels must hold one for each of the 6 samples, got 2"):
        batchfree.audit(model, x, labels=[0, 1])


def test_a_model_that_raises_in_both_modes_is_an_error_with_its_cause():
    model = Raises("train", "eval")
    before = state_of(model)
    with pytest.raises(ConfigError, match=r"raises in train mode .*ValueError: not like this") as e:
        batchfree.audit(model, images())
    assert isinstance(e.value.__cause__, ValueError)
    assert "and more lines" not in str(e.value)
    assert_same(before, state_of(model))


@pytest.mark.parametrize(("broken", "sound"), [("train", "eval"), ("eval", "train")])
def test_a_mode_that_cannot_be_audited_is_no_clean_bill(broken, sound):
    model = Raises(broken)
    before = state_of(model)
    report = batchfree.audit(model, images())
    assert_same(before, state_of(model))
    assert report.skipped == (broken,)
    assert [m.mode for m in report.modes] == [sound]
    assert not report.ok
    (finding,) = [f for f in report.findings if f.kind == "not audited"]
    assert (finding.mode, finding.level) == (broken, "warning")
    if sound == "eval":
        assert "could not be audited in train mode; no sample depends" in str(report)
        assert batchfree.audit(model, images(), modes=["eval"]).ok


def test_a_model_that_takes_the_whole_batch_only_is_an_error():
    class Six(nn.Module):
        def forward(self, x):
            (a, b, c, d, e, f) = x
            return torch.stack([a, b, c, d, e, f])

    with pytest.raises(ConfigError, match="runs on the whole batch and not on a part of it"):
        batchfree.audit(Six(), images(6), modes=["eval"])


class Writes(nn.Module):
    """Changes all that a forward can reach, its input included."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.calls, self.log = 0, []

    def forward(self, x):
        self.calls += 1
        self.log.append(x.shape)
        self.extra = x
        self.seen += x.mean(0).detach()
        with torch.no_grad():
            self.fc.weight.mul_(1.1)
        torch.rand(3)
        return self.fc(x.mul_(0.5))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_writes_to_itself_and_its_input_is_left_as_it_was(training):
    model, x = Writes().train(training), torch.randn(4, 4)
    model.fc.weight.grad = torch.ones(4, 4)
    model.fc.bias.requires_grad_(False)
    handle = model.register_forward_hook(lambda *_: None)
    before, kept = state_of(model), copy.deepcopy(vars(model)["log"])
    given, gradient = x.clone(), model.fc.weight.grad
    batchfree.audit(model, x)
    after = state_of(model)
    assert before["gradients"][0] is after["gradients"][0] is gradient
    assert torch.equal(gradient, torch.ones(4, 4))
    before["gradients"] = after["gradients"] = []
    assert_same(before, after)
    assert torch.equal(x, given)
    assert (model.calls, model.log) == (0, kept)
    assert not hasattr(model, "extra")
    handle.remove()


def test_frozen_parts_of_a_model_in_training_stay_frozen():
    model = net(nn.BatchNorm2d(8))
    model.train()
    model[1].eval()
    report = batchfree.audit(model, images())
    assert report.ok
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_wrapped_models_are_looked_into():
    model = net(nn.BatchNorm2d(8))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert batchfree.audit(wrapped, images()).findings[0].module == "1"


@pytest.mark.parametrize("bitwise", [False, True])
def test_the_assertion_names_the_first_module_and_by_how_much(bitwise):
    model = net(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    batchfree.assert_batch_independent(model, images())
    pattern = r"Sequential depends on its batch in train mode: module '1' \(BatchNorm2d\): .*moves"
    with pytest.raises(AssertionError, match=pattern):
        batchfree.assert_batch_independent(model, images(), mode="train", bitwise=bitwise)
    batchfree.assert_batch_independent(model, images(), mode="train", atol=1e3)
    with pytest.raises(ValueError, match=r"mode must be one of .*got 'test'"):
        batchfree.assert_batch_independent(model, images(), mode="test")


def test_bits_are_asked_for_by_name():
    class Rounds(nn.Module):
        """The same numbers, added in another order in a batch."""

        def forward(self, x):
            x = x.flatten(1)
            return x.sum(1) if len(x) < 4 else x.double().sum(1).float()

    x = torch.randn(6, 2000)
    report = batchfree.audit(Rounds(), x, modes=["eval"])
    assert report.ok
    assert [f.level for f in report.findings] == ["bits"]
    batchfree.assert_batch_independent(Rounds(), x)
    with pytest.raises(AssertionError, match="not batch-invariant to the bit"):
        batchfree.assert_batch_independent(Rounds(), x, bitwise=True)


class Holder:
    """A plain object with a counter."""

    def __init__(self):
        self.n = 0


class Deep(nn.Module):
    """State in containers in containers, in an object, a generator and an unregistered module."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.state = {"bank": torch.zeros(4), "inner": {"calls": 0}, "list": [[0]]}
        self.holder, self.generator = Holder(), torch.Generator()
        self.hidden = [nn.BatchNorm1d(4)]

    def forward(self, x):
        self.state["bank"] += x.mean(0).detach()
        self.state["inner"]["calls"] += 1
        self.state["list"][0].append(1)
        self.holder.n += 1
        torch.rand(2, generator=self.generator)
        return self.hidden[0](self.fc(x))


def test_state_however_deep_is_left_as_it_was():
    model = Deep()
    drawn = model.generator.get_state()
    batchfree.audit(model, torch.randn(5, 4))
    assert torch.equal(model.state["bank"], torch.zeros(4))
    assert model.state["inner"] == {"calls": 0}
    assert model.state["list"] == [[0]]
    assert model.holder.n == 0
    assert torch.equal(model.generator.get_state(), drawn)
    assert model.hidden[0].num_batches_tracked == 0


def test_an_output_without_a_tensor_is_no_clean_bill():
    class Lists(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)).tolist()

    with pytest.raises(ConfigError, match="returns a list without a tensor in train mode"):
        batchfree.audit(Lists(), torch.randn(4, 3))


def test_what_cannot_be_repeated_is_never_taken_for_coupling():
    generator = np.random.default_rng(0)

    class Noise(nn.Module):
        def forward(self, x):
            return x * float(generator.random())

    report = batchfree.audit(Noise(), torch.randn(4, 3))
    assert [f.kind for f in report.findings if f.level in ("coupling", "warning")] == [
        "randomness",
        "randomness",
    ]


def test_samples_that_did_not_run_apart_are_told():
    report = batchfree.audit(nn.Identity(), torch.randn(16, 3), probes=4)
    (told,) = [f for f in report.findings if f.kind == "probes"]
    assert "4 of 16 samples ran apart" in told.message
    assert not [f for f in batchfree.audit(nn.Identity(), images()).findings if f.kind == "probes"]
