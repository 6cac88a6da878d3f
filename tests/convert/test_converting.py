import copy

import pytest
import timm.layers
import torch
from nets import Shared, images, resnet, trained
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import batchfree
from batchfree.convert import BlendNorm, ConvertedNorm
from batchfree.convert.converting import METHODS


def error(model, original, x):
    with torch.no_grad():
        wanted = original(x)
        return float((model.eval()(x) - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return trained(resnet())


def state_of(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [type(m) for m in model.modules()],
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_never_touched_and_the_copy_stands_in_its_modes(method, training):
    torch.manual_seed(0)
    model = trained(resnet()).train(training)
    model[3].eval()
    before = state_of(model)
    drawn = torch.get_rng_state()
    result = batchfree.convert(model, images(), method=method, steps=2)
    assert torch.equal(drawn, torch.get_rng_state())
    after = state_of(model)
    assert all(torch.equal(v, after[0][k]) for k, v in before[0].items())
    assert before[1:] == after[1:]
    assert result.model[0].training == training
    assert not any(m.training for m in result.model[3].modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.model.modules())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    fixed = {n for n, p in result.model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[-1] for n in fixed} <= {"scale", "shift"}
    assert all(p.grad is None for p in result.model.parameters())


def test_each_method_comes_nearer_than_the_one_before(original):
    x = images(200)
    errors = {}
    for method in METHODS:
        result = batchfree.convert(original, x, method=method, steps=40)
        errors[method] = error(result.model, original, images(seed=9))
    assert errors["blend"] < 1e-6
    assert errors["distill"] < errors["calibrated"] < errors["analytic"] < errors["copy"]
    assert errors["calibrated"] < 0.5 * errors["copy"]


def test_without_data_it_is_analytic_and_with_data_calibrated(original):
    assert batchfree.convert(original).report.method == "analytic"
    assert batchfree.convert(original, images()).report.method == "calibrated"


def test_the_result_depends_on_no_batch_in_train_mode(original):
    result = batchfree.convert(original, images())
    batchfree.assert_batch_independent(result.model, images(6), mode="train")
    with pytest.raises(AssertionError, match="depends on its batch"):
        batchfree.assert_batch_independent(original, images(6), mode="train")


def test_one_pass_and_a_pass_a_layer_give_the_same(original):
    whole = batchfree.convert(original, images(), chunk=64)
    parts = batchfree.convert(original, images(), chunk=10)
    assert whole.report.passes == 2
    assert parts.report.passes == 1 + 5
    for (k, a), b in zip(
        whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=k)


def test_each_layer_is_fitted_on_what_the_converted_ones_feed_it(original):
    x = images()
    result = batchfree.convert(original, x, held_out=x, anchor=None)
    seen = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.__setitem__(m, args[0].clone()))
        for m in result.model.modules()
        if isinstance(m, nn.GroupNorm)
    ]
    result.model.eval()(x)
    wanted = {}
    for name, m in original.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(
                lambda m, args, y, name=name: wanted.__setitem__(name, y.clone())
            )
    original(x)
    for h in handles:
        h.remove()
    for name, m in original.named_modules():
        m._forward_hooks.clear()
        if name in wanted:
            norm = result.model.get_submodule(name)
            y = norm(seen[norm])
            mean = wanted[name].mean((0, 2, 3)), y.mean((0, 2, 3))
            torch.testing.assert_close(*mean, atol=1e-4, rtol=1e-4)


def test_the_anchor_is_worth_it_and_without_it_the_layers_are_plain(original):
    x, held = images(200), images(seed=9)
    plain = batchfree.convert(original, x, groups=1, anchor=None)
    anchored = batchfree.convert(original, x, groups=1)
    assert type(plain.model[1]) is batchfree.GroupNorm
    assert type(anchored.model[1]) is ConvertedNorm
    assert error(anchored.model, original, held) < error(plain.model, original, held)


def test_groups_are_chosen_by_measured_error(original):
    auto = batchfree.convert(original, images(200), groups="auto")
    fixed = [batchfree.convert(original, images(200), groups=g) for g in (1, 32)]
    first = [r.report.layers[0].predicted for r in (auto, *fixed)]
    assert first[0] <= 1.02 * min(first)
    assert auto.plan["1"].groups == auto.model[1].num_groups
    assert auto.report.layers[0].groups == auto.plan["1"].groups
    assert auto.plan["1"].candidates == [1, 2, 4, 8, 16, 32]
    assert "chosen by measured error" in auto.report.layers[0].reason


def test_shared_modules_stay_shared():
    model = trained(Shared())
    result = batchfree.convert(model, images())
    assert result.model.norm is result.model.again is result.model.plain[0]
    assert isinstance(result.model.norm, nn.GroupNorm)
    assert error(result.model, model, images(seed=9)) < 0.5
    many = batchfree.convert(model, images(), chunk=7)
    torch.testing.assert_close(
        many.model.norm.weight, result.model.norm.weight, rtol=1e-4, atol=1e-4
    )


def test_a_model_that_is_a_norm_itself():
    model = trained(nn.BatchNorm2d(3))
    result = batchfree.convert(model, images(), groups=1)
    assert isinstance(result.model, nn.GroupNorm)
    assert isinstance(model, nn.BatchNorm2d)


def test_timms_activation_stays():
    norm = timm.layers.BatchNormAct2d(32, act_layer=nn.SiLU)
    model = trained(nn.Sequential(nn.Conv2d(3, 32, 3), norm))
    result = batchfree.convert(model, images())
    assert isinstance(result.model[1].act, nn.SiLU)
    assert error(result.model, model, images(seed=9)) < 0.3


@pytest.mark.parametrize("frozen", [FrozenBatchNorm2d, batchfree.FrozenBatchNorm])
def test_frozen_layers_become_layers_that_learn(frozen):
    layer = frozen(32)
    for t in (layer.weight, layer.running_var):
        t.uniform_(0.5, 2)
    for t in (layer.bias, layer.running_mean):
        t.normal_()
    model = nn.Sequential(nn.Conv2d(3, 32, 3), layer).eval()
    result = batchfree.convert(model, images(), groups=1)
    assert all(p.requires_grad for p in (result.model[1].weight, result.model[1].bias))
    assert error(result.model, model, images(seed=9)) < 0.3


def test_parameters_that_do_not_learn_stay_so(original):
    model = copy.deepcopy(original)
    model[1].weight.requires_grad_(False)
    result = batchfree.convert(model, images(), method="distill", steps=1)
    assert not result.model[1].weight.requires_grad
    assert result.model[1].bias.requires_grad


def test_affine_free_layers_get_gamma_and_beta_unless_copied():
    model = trained(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, affine=False)))
    assert batchfree.convert(model, method="copy").model[1].weight is None
    result = batchfree.convert(model, images())
    assert result.model[1].weight.shape == (32,)
    assert error(result.model, model, images(seed=9)) < 0.3


def test_layers_without_running_statistics_are_fitted_on_the_data():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, track_running_stats=False))
    result = batchfree.convert(model, images(200))
    assert error(result.model, model, images(200, seed=9)) < 0.3
    data_free = batchfree.convert(model)
    assert torch.equal(data_free.model[1].weight, model[1].weight)


def test_residual_and_activation_of_our_own_layers_stay():
    from batchfree.models import build_model

    norm = batchfree.norm_layer("bn")
    model = trained(build_model("resnet_small", num_classes=10, norm=norm, width=16, stages=2))
    result = batchfree.convert(model, images(200), groups=1)
    assert result.model.bn1.activation == "relu"
    assert error(result.model, model, images(seed=9)) < 0.5


def test_a_lazy_model_runs_first():
    model = nn.Sequential(nn.LazyConv2d(32, 3), nn.LazyBatchNorm2d())
    with pytest.warns(batchfree.ConversionWarning, match="running statistics of 1"):
        result = batchfree.convert(model, images())
    assert result.model[1].num_channels == 32
    assert isinstance(model[1], nn.LazyBatchNorm2d)


def test_layers_that_do_not_run_are_analytic_and_told():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux = resnet(), nn.BatchNorm2d(3)

        def forward(self, x):
            return (self.body(x), self.aux(x)) if self.training else self.body(x)

    model = trained(Auxiliary())
    result = batchfree.convert(model, images())
    row = next(x for x in result.report.layers if x.path == "aux")
    assert "did not run" in row.reason
    assert (row.new, row.error, row.predicted) == ("GroupNorm(1, 3)", None, None)
    assert "1 layers did not run" in result.report.notes[0]


def test_loaders_of_images_and_labels_lists_and_dicts():
    model = trained(resnet())
    x, y = images(), torch.zeros(48, dtype=torch.long)
    wanted = batchfree.convert(model, x).model.state_dict()
    data = torch.utils.data.TensorDataset(x, y)
    for calibration in (
        torch.utils.data.DataLoader(data, batch_size=16),
        iter([(x[:20], y[:20]), (x[20:], y[20:])]),
        [x],
    ):
        found = batchfree.convert(model, calibration).model.state_dict()
        assert all(torch.allclose(v, found[k], atol=1e-4) for k, v in wanted.items())

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, pixels):
            return {"logits": self.net(pixels)}

    found = batchfree.convert(Named(), [{"pixels": x}])
    assert found.report.output_error < 0.5
    assert found.report.changed is None


def test_no_more_samples_are_read_than_asked_for(original):
    drawn = []

    def loader():
        for i in range(100):
            drawn.append(i)
            yield images(8, seed=i)

    report = batchfree.convert(original, loader(), samples=40).report
    assert (report.calibration, report.held_out) == (40, 32)
    assert len(drawn) == 9


def test_half_precision_models_stay_in_it(original):
    model = copy.deepcopy(original).bfloat16()
    result = batchfree.convert(model, images())
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert error(result.model, model, images(seed=9).bfloat16()) < 0.5


def test_wrapped_models_are_looked_into(original):
    for wrapped in (nn.DataParallel(original), torch.compile(original)):
        assert isinstance(batchfree.convert(wrapped).model[1], nn.GroupNorm)


def test_progress_names_layers_and_rises(original):
    told = []
    batchfree.convert(original, images(), progress=lambda what, part: told.append((what, part)))
    assert "4.bn2" in [what for what, _ in told]
    assert all(0 <= part <= 1 for _, part in told)


def test_distillation_helps_on_other_data(original):
    x = images(200)
    before = batchfree.convert(original, x)
    after = batchfree.convert(original, x, method="distill", steps=60)
    held = images(seed=9)
    assert error(after.model, original, held) < 0.8 * error(before.model, original, held)


def test_blend_anneals_and_collapses_into_what_calibration_gives(original):
    x = images(200)
    wanted = batchfree.convert(original, x).model.eval()
    model = batchfree.convert(original, x, method="blend").model.eval()
    assert len([m for m in model.modules() if isinstance(m, BlendNorm)]) == 5
    from batchfree.convert import collapse, set_alpha

    assert torch.equal(model(x), original(x))
    assert set_alpha(model, 0.0) == 5
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted(x), atol=1e-4, rtol=1e-4)
        collapsed = collapse(model)
        assert not any(isinstance(m, BlendNorm) for m in collapsed.modules())
        torch.testing.assert_close(collapsed(x), wanted(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="alpha must lie in 0 to 1, got 2"):
        set_alpha(model, 2)


def test_activations_in_place_are_turned_off_unless_asked_for(original):
    x = images(4)
    for inplace in (False, True):
        model = batchfree.convert(original, inplace=inplace).model
        relus = [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)]
        assert relus == [inplace] * 3
    assert all(m.inplace for m in original.modules() if isinstance(m, nn.ReLU))
    plain, changed = (batchfree.convert(original, inplace=i).model.eval() for i in (True, False))
    assert torch.equal(plain(x), changed(x))
