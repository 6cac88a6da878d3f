"""What Lightning does around a fit that anneals: data without a length, checkpoints, no layers."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_blend import Module
from torch import nn

from batchfree import ConfigError
from batchfree.train.blend import AnnealBlend

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]
X = torch.randn(16, 3, 3, 3)


class WithTest(Module):
    def test_step(self, batch, index):
        self.log("out", self.net(batch[0]).square().mean())


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(x,) for x in X])


def loader(data=None):
    data = torch.utils.data.TensorDataset(X) if data is None else data
    return torch.utils.data.DataLoader(data, batch_size=4)


def trainer(*callbacks, **options):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **options,
    )


@pytest.mark.parametrize(
    ("data", "options"),
    [(Stream(), {"max_epochs": 2}), (None, {"max_epochs": -1, "max_time": {"seconds": 20}})],
    ids=["no length", "no end"],
)
def test_half_of_an_unknown_length_is_refused(data, options):
    module = Module()
    with pytest.raises(ConfigError, match=r"half of the training is not known.*until=STEP"):
        trainer(AnnealBlend(), **options).fit(module, loader(data))
    assert module.alphas == []


def test_a_stream_is_annealed_until_a_step_or_by_its_max_steps():
    for callback, options in (
        (AnnealBlend(2), {"max_epochs": 1}),
        (AnnealBlend(), {"max_steps": 4}),
    ):
        module = Module()
        trainer(callback, **options).fit(module, loader(Stream()))
        assert module.alphas == [1, 0.5, 0, 0]


def test_a_module_without_such_layers_is_told():
    module = Module()
    module.net[1] = nn.GroupNorm(2, 32)
    with pytest.raises(ConfigError, match=r"Module holds no layer to anneal: .*method='blend'"):
        trainer(AnnealBlend(2), max_steps=2).fit(module, loader())


def checkpointed(folder, every, steps):
    """A fit that anneals in 3 steps, and the outputs that its module should have."""
    saving = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=every, filename="{step}")
    module = WithTest()
    fitted = trainer(AnnealBlend(3), saving, max_steps=steps)
    fitted.fit(module, loader())
    return fitted, module


def test_a_checkpoint_of_the_end_is_loaded_into_the_collapsed_module(tmp_path):
    fitted, module = checkpointed(tmp_path, every=4, steps=6)
    twin = copy.deepcopy(module)
    assert type(module.net[1]) is type(twin.net[1])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    (figures,) = fitted.test(
        module, loader(), ckpt_path=str(tmp_path / "step=4.ckpt"), verbose=False
    )
    # What the layers were at step 4, without being collapsed.
    blend = WithTest()
    state = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]
    blend.load_state_dict(state)
    assert float(blend.net[1].alpha) == 0
    with torch.no_grad():
        wanted = blend.net.eval()(X)
        assert torch.allclose(module.net.eval()(X), wanted, atol=1e-6)
        assert figures["out"] == pytest.approx(float(wanted.square().mean()), rel=1e-5)
        assert not torch.allclose(twin.net.eval()(X), wanted, atol=1e-6)
        twin.load_state_dict(state)  # a copy loads too, and a second time
        twin.load_state_dict(state)
        assert torch.allclose(twin.net.eval()(X), wanted, atol=1e-6)
    twin.load_state_dict(module.state_dict())  # its own state as ever
    assert "net.1.alpha" in state


def test_a_checkpoint_from_before_alpha_is_0_says_what_to_do(tmp_path):
    fitted, module = checkpointed(tmp_path, every=2, steps=4)
    with pytest.raises(
        ConfigError, match=r"alpha = 0\.\d+: 'net\.1' was part BatchNorm.*collapse=F"
    ):
        fitted.test(module, loader(), ckpt_path=str(tmp_path / "step=2.ckpt"), verbose=False)
