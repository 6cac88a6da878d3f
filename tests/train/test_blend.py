import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import batchfree
from batchfree.convert import BlendNorm
from batchfree.train.blend import AnnealBlend


class Module(pl.LightningModule):
    """Writes down alpha at every step."""

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 2))
        net(torch.randn(8, 3, 3, 3))
        self.net = batchfree.convert(net.eval(), method="blend").model.train()
        self.alphas = []

    def training_step(self, batch, index):
        self.alphas.append(float(self.net[1].alpha))
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module, callback, steps=6):
    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 3, 3))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.parametrize(
    ("until", "alphas"), [(4, [1, 0.75, 0.5, 0.25, 0, 0]), (None, [1, 2 / 3, 1 / 3, 0, 0, 0])]
)
def test_alpha_falls_linearly_and_plain_group_norms_are_left(until, alphas):
    module = Module()
    fit(module, AnnealBlend(until))
    assert module.alphas == pytest.approx(alphas)
    assert isinstance(module.net[1], nn.GroupNorm)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_the_layers_stay_where_they_are_not_to_be_collapsed():
    module = Module()
    before = module.net[1].weight.detach().clone()
    fit(module, AnnealBlend(3, collapse=False), steps=2)
    assert isinstance(module.net[1], BlendNorm)
    assert not torch.equal(module.net[1].weight, before)


@pytest.mark.parametrize("until", [0, -1, 2.5, float("nan"), True, "3"])
def test_until_is_a_step(until):
    with pytest.raises(batchfree.ConfigError, match="until must be at least 1 step and whole, got"):
        AnnealBlend(until)
