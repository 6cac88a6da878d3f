import json

import pytest
import torch
from detection_runs import tiny
from safetensors.torch import save_file
from torch import nn

from batchfree import ConfigError, DataError
from batchfree.models import CascadeRoIHeads
from batchfree.train import fit
from batchfree.train.detection_build import (
    build_detector,
    build_norms,
    build_random,
    load_detector,
)


def test_the_norms_of_a_config():
    norms = build_norms(tiny(model={"norm": "frozen_bn", "fpn_norm": "none"}).model)
    assert norms.backbone.kind == "frozen_bn"
    assert norms.fpn is None
    assert norms.box_head(16).num_groups == 4


def test_the_network_of_a_config():
    model = build_random(tiny(model={"cascade": True, "rois_per_image": 7}).model, 5)
    assert isinstance(model.roi_heads, CascadeRoIHeads)
    assert model.roi_heads.box_predictor[0].cls_score.out_features == 6
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 7
    assert model.rpn.post_nms_top_n() == 30
    assert model.transform.image_mean == [0.45] * 3
    assert model.backbone.body.conv1.kernel_size == (7, 7)


def test_weights_of_other_conventions_are_refused_or_adopted(tmp_path):
    body = build_random(tiny().model, 1).backbone.body
    told = {"conventions": {"mean": [0.1] * 3, "std": [0.25] * 3}}
    path = str(tmp_path / "w.safetensors")
    save_file(body.state_dict(), path, metadata={"batchfree": json.dumps(told)})
    with pytest.raises(ConfigError, match=r"mean of its images is \(0.1, 0.1, 0.1\)"):
        build_detector(tiny(model={"weights": path}).model, 3)
    adopt = tiny(model={"weights": path, "adopt_conventions": True}).model
    model, remarks = build_detector(adopt, 3)
    assert model.transform.image_mean == [0.1] * 3
    presumed, adopted = remarks  # the file says nothing of its groups
    assert "gn with 2 to 16 groups" in presumed
    assert adopted.startswith("adopted: the mean")


def test_a_trained_detector_comes_back(tmp_path):
    trained = fit(tiny(trainer={"max_steps": 1}), output=tmp_path, progress=False)
    for file in ("model.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        model, config, categories = load_detector(tmp_path / file)
        assert config == tiny(trainer={"max_steps": 1})
        assert categories.name(4) == "3"
        assert not model.training
        state = trained.model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_adopted_conventions_survive_the_checkpoint(tmp_path):
    body = build_random(tiny().model, 1).backbone.body
    told = {"conventions": {"mean": [0.1] * 3, "std": [0.5] * 3, "eps": 1e-3}}
    path = str(tmp_path / "w.safetensors")
    save_file(body.state_dict(), path, metadata={"batchfree": json.dumps(told)})
    adopt = {"weights": path, "adopt_conventions": True}
    config = tiny(model=adopt, trainer={"max_steps": 1})
    trained = fit(config, output=tmp_path / "run", progress=False)
    for file in ("model.safetensors", "checkpoints/last.ckpt"):
        model, _, _ = load_detector(tmp_path / "run" / file)
        assert model.transform.image_mean == trained.model.transform.image_mean == [0.1] * 3
        assert model.transform.image_std == [0.5] * 3
        eps = {m.eps for m in model.backbone.body.modules() if isinstance(m, nn.GroupNorm)}
        assert eps == {1e-3}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"weight": torch.zeros(1)}, ConfigError, "is no detector of batchfree train"),
        ([1], DataError, "names and tensors were expected"),
    ],
)
def test_another_file_is_refused(tmp_path, content, error, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(error, match=message):
        load_detector(tmp_path / "w.pth")


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path):
    fit(tiny(trainer={"max_steps": 1}), output=tmp_path, progress=False)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    saved["batchfree"]["config"]["model"]["width"] = 16
    torch.save(saved, tmp_path / "changed.ckpt")
    with pytest.raises(ConfigError, match="holds other weights than its config"):
        load_detector(tmp_path / "changed.ckpt")


def test_a_detector_with_weights_that_are_not_finite_is_refused(tmp_path):
    fit(tiny(trainer={"max_steps": 1}), output=tmp_path, progress=False)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    saved["state_dict"]["network.rpn.head.cls_logits.bias"][0] = float("nan")
    torch.save(saved, tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match=r"NaN or infinite values in rpn\.head\.cls_logits\.bias"):
        load_detector(tmp_path / "bad.ckpt")
