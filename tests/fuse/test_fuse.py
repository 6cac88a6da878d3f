"""`fuse` against the model it came from: the same numbers in fewer calls, nothing else changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import batchfree
from batchfree.fuse import Fusion, find_fusions, out_of_place


def outputs(model, x):
    """The output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(y.square().sum(), [x, *parameters], materialize_grads=True)
    return [y, *found]


def assert_same(model, x=None):
    """In float64, in train and in eval mode; returns the fused copy."""
    torch.manual_seed(0)
    model = model.double()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64) if x is None else x.double()
    for mode in (True, False):
        fused = batchfree.fuse(model.train(mode))
        assert fused.training == mode
        for want, got in zip(outputs(model, x), outputs(fused, x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert fused.state_dict().keys() == before.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return fused


def calls(fused):
    """(activation, with a residual) of each call of a Group Norm in a forward."""
    found = []
    for m in fused.modules():
        if isinstance(m, nn.GroupNorm):
            m.register_forward_pre_hook(
                lambda m, args: found.append((getattr(m, "activation", None), len(args) > 1))
            )
    return found


class Caller(nn.Module):
    """Calls `body(self, x)`."""

    def __init__(self, body, **modules):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


FUSED = {
    "relu module": (lambda s, x: s.act(s.norm(x)), {"act": nn.ReLU()}, "relu", False),
    "in place": (lambda s, x: s.act(s.norm(x)), {"act": nn.ReLU(inplace=True)}, "relu", False),
    "silu module": (lambda s, x: s.act(s.norm(x)), {"act": nn.SiLU()}, "silu", False),
    "gelu module": (lambda s, x: s.act(s.norm(x)), {"act": nn.GELU()}, "gelu", False),
    "tanh gelu": (lambda s, x: s.act(s.norm(x)), {"act": nn.GELU("tanh")}, "gelu_tanh", False),
    "F.relu": (lambda s, x: F.relu(s.norm(x), inplace=True), {}, "relu", False),
    "torch.relu": (lambda s, x: torch.relu(s.norm(x)), {}, "relu", False),
    "method": (lambda s, x: s.norm(x).relu_(), {}, "relu", False),
    "F.silu": (lambda s, x: F.silu(s.norm(x)), {}, "silu", False),
    "F.gelu": (lambda s, x: F.gelu(s.norm(x)), {}, "gelu", False),
    "F.gelu tanh": (lambda s, x: F.gelu(s.norm(x), approximate="tanh"), {}, "gelu_tanh", False),
    "sum, relu": (lambda s, x: F.relu(s.norm(x) + x), {}, "relu", True),
    "sum the other way": (lambda s, x: F.relu(x + s.norm(x)), {}, "relu", True),
    "torch.add": (lambda s, x: torch.add(x, s.norm(x)).relu(), {}, "relu", True),
    "sum alone": (lambda s, x: s.norm(x) + x, {}, None, True),
    "a sum that is used twice": (lambda s, x: (y := s.norm(x) + x) * F.relu(y), {}, None, True),
    "identities between": (
        lambda s, x: F.relu(s.i(s.i(s.norm(x)) + s.conv(x))),
        {"i": nn.Identity(), "conv": nn.Conv2d(8, 8, 1)},
        "relu",
        True,
    ),
    "a smaller residual": (lambda s, x: s.norm(x) + x.mean((2, 3), keepdim=True), {}, None, True),
    "a shared activation": (
        lambda s, x: s.act(s.act(s.norm(x)) - 1),
        {"act": nn.ReLU()},
        "relu",
        0,
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_what_follows_moves_into_the_call(case):
    body, modules, activation, residual = FUSED[case]
    model = Caller(body, **modules)
    assert find_fusions(model) == [Fusion("norm", "", activation, bool(residual))]
    fused = assert_same(model)
    found = calls(fused)
    fused(torch.randn(2, 8, 4, 4, dtype=torch.float64))
    assert found == [(activation, bool(residual))]


def test_an_addition_in_place_to_the_norms_output():
    def body(s, x):
        y = s.norm(x)
        shortcut = s.conv(x)
        y += shortcut
        return F.relu(y, inplace=True)

    model = Caller(body, conv=nn.Conv2d(8, 8, 1))
    assert [str(f) for f in find_fusions(model)] == ["norm: + residual + relu"]
    assert_same(model)


def added_to_x(s, x):
    y = s.conv(x)
    return y.add_(s.norm(x * 2))


def changed_input(s, x):
    x = x * 1
    with_norm = s.norm(x)
    x.detach().mul_(2)
    return with_norm + x


class Optional(Caller):
    def forward(self, x, mask=None):
        y = F.relu(self.norm(x))
        return y if mask is None else y * mask


class Counting(Caller):
    def __init__(self):
        super().__init__(None)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return F.relu(self.norm(x))


LEFT = {
    "another activation": (Caller(lambda s, x: s.norm(x).sigmoid()), "no addition or activation"),
    "ReLU6": (Caller(lambda s, x: s.a(s.norm(x)), a=nn.ReLU6()), "no addition or activation"),
    "nothing": (Caller(lambda s, x: s.norm(x)), "nothing follows"),
    "several": (Caller(lambda s, x: F.relu(y := s.norm(x)) + y), "nothing follows, or several"),
    "called twice": (Caller(lambda s, x: F.relu(s.norm(F.relu(s.norm(x))))), "several places"),
    "scaled sum": (Caller(lambda s, x: torch.add(s.norm(x), x, alpha=2)), "no addition"),
    "plus a number": (Caller(lambda s, x: s.norm(x) + 1), "no addition"),
    "another tensor in place": (Caller(added_to_x, conv=nn.Conv2d(8, 8, 1)), "no addition"),
    "the mode": (
        Caller(lambda s, x: F.relu(s.norm(x)) if s.training else s.norm(x)),
        "depends on the mode",
    ),
    "control flow": (Caller(lambda s, x: s.norm(x) if x.sum() > 0 else x), "cannot be traced"),
    "own tensors": (
        Caller(lambda s, x: F.relu(s.norm(x)) + torch.ones(1, dtype=x.dtype)),
        None,
    ),
    "optional arguments": (Optional(None), "optional arguments"),
    "a count": (Counting(), "changes the module"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_fused_is_left_and_said_so(case):
    model, reason = LEFT[case]
    found = find_fusions(model)
    if reason is not None:
        assert all(reason in f.reason for f in found)
        assert all(": left, " in str(f) for f in found)
        assert type(batchfree.fuse(model)) is type(model)
    assert len(found) == (2 if case == "called twice" else 1)
    assert_same(model)


def test_a_norm_whose_input_changes_before_the_sum_is_left():
    model = Caller(changed_input)
    assert [f.reason for f in find_fusions(model)] == ["its input is changed in place"]
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(batchfree.fuse(model)(x), model(x))


class Features(Caller):
    """As timm's: `forward_features` is called by others too."""

    def forward_features(self, x):
        return self.body(self, x)

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


@pytest.mark.parametrize(("act", "fused"), [(F.relu, True), (F.silu, False)])
def test_a_method_that_others_may_call_stays_right(act, fused):
    model = Features(lambda s, x: act(s.norm(x)))
    (found,) = find_fusions(model)
    assert found.reason == (
        "" if fused else "it is called in forward_features, which others may call"
    )
    x = torch.randn(2, 8, 4, 4)
    copied = batchfree.fuse(model)
    torch.testing.assert_close(copied(x), model(x))
    torch.testing.assert_close(copied.forward_features(x), model.forward_features(x))


def test_a_forward_of_the_instance_is_left():
    model = Caller(lambda s, x: F.relu(s.norm(x) + x))
    model.forward = lambda x: model.norm(x).relu() + x
    assert [f.reason for f in find_fusions(model)] == [
        "its caller's forward was replaced on the instance"
    ]


def test_a_norm_in_two_places_is_left():
    norm = nn.GroupNorm(2, 8)
    model = nn.Sequential(nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.SiLU()))
    assert {f.reason for f in find_fusions(model)} == {"it is called in several places"}
    assert_same(model)


def test_a_sequential_keeps_its_indices_and_an_activation_elsewhere():
    act = nn.ReLU()
    model = nn.Sequential(nn.GroupNorm(2, 8), act, nn.Conv2d(8, 8, 1), act)
    fused = assert_same(model)
    assert isinstance(fused[1], nn.Identity)
    assert isinstance(fused[3], nn.ReLU)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet(name, own):
    factory = batchfree.norm_layer("gn") if own else lambda c: nn.GroupNorm(8, c)
    model = torchvision.models.get_model(name, norm_layer=factory, num_classes=5)
    found = find_fusions(model)
    blocks = 8 if name == "resnet18" else 16
    assert sum(f.residual and f.activation == "relu" for f in found) == blocks
    assert all(f.activation == "relu" for f in found if "downsample" not in f.path)
    fused = assert_same(model, torch.randn(2, 3, 64, 64))
    assert isinstance(fused.layer1[0], type(model.layer1[0]))
    assert fused.fc.out_features == 5


def converted_from(model):
    with pytest.warns(batchfree.ConversionWarning, match="as they were made"):
        return batchfree.convert(model).model


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "efficientnet_b0", "densenet121"])
def test_timm_models_that_were_converted(name):
    timm = pytest.importorskip("timm")
    converted = converted_from(timm.create_model(name, num_classes=5))
    found = find_fusions(converted)
    assert sum(not f.reason for f in found) >= len(found) / 2
    fused = batchfree.fuse(converted.eval())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fused(x), converted(x), rtol=1e-4, atol=1e-4)


def test_timms_norm_with_activation():
    layers = pytest.importorskip("timm.layers")
    for kind in (layers.GroupNormAct, layers.GroupNorm1Act):
        model = nn.Sequential(kind(8, 2) if kind is layers.GroupNormAct else kind(8))
        assert [str(f) for f in find_fusions(model)] == ["0: + relu"]
        assert_same(model)


def test_what_a_conversion_makes_fuses():
    converted = converted_from(torchvision.models.vgg11_bn(num_classes=5)).eval()
    fused = batchfree.fuse(converted)
    norms = [m for m in fused.modules() if isinstance(m, nn.GroupNorm)]
    assert [m.activation for m in norms] == ["relu"] * 8
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fused(x), converted(x), rtol=1e-4, atol=1e-4)
    batchfree.assert_batch_independent(fused, x, mode="eval")


def test_hooks_stay():
    model = torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(8, c))
    seen = []
    model.layer1[0].register_forward_hook(lambda m, args, y: seen.append(y.shape))
    batchfree.fuse(model)(torch.randn(1, 3, 64, 64))
    assert seen == [(1, 64, 16, 16)]


def test_the_copy_can_be_copied_compiled_and_fused_again():
    model = Caller(lambda s, x: F.relu(s.norm(x) + x))
    fused = batchfree.fuse(model)
    x = torch.randn(2, 8, 4, 4)
    again = copy.deepcopy(fused)
    nn.init.zeros_(again.norm.weight)
    assert not torch.equal(again(x), fused(x))
    torch.testing.assert_close(batchfree.fuse(fused)(x), model(x))
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_mixed_precision_sums_in_the_norms_dtype():
    model = Caller(lambda s, x: F.relu(s.norm(x.bfloat16()) + x)).bfloat16()
    y = batchfree.fuse(model)(torch.randn(2, 8, 4, 4))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(8)), "convert BatchNorms first"),
        (nn.GroupNorm(2, 8), "calls no GroupNorm"),
        ("resnet", "must be a torch.nn.Module"),
    ],
)
def test_nothing_to_fuse(model, message):
    with pytest.raises(batchfree.ConfigError, match=message):
        batchfree.fuse(model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_out_of_place_gives_the_same_and_takes_hooks(name):
    model = torchvision.models.get_model(name, num_classes=5).eval()
    for m in model.modules():
        if getattr(m, "inplace", False):
            m.inplace = False
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    changed = out_of_place(model)
    assert torch.equal(changed(x), model(x))
    assert changed.state_dict().keys() == model.state_dict().keys()
    for m in changed.modules():
        m.register_full_backward_hook(lambda m, gx, gy: None)
    changed(x).sum().backward()
    if name != "shufflenet_v2_x0_5":  # whose forwards assign nothing in place
        for m in model.modules():
            m.register_full_backward_hook(lambda m, gx, gy: None)
        with pytest.raises(RuntimeError, match="modified inplace"):
            model(x).sum().backward()
