import re
import shlex
from dataclasses import replace

import pytest
import torch

import batchfree
from batchfree import ConfigError
from batchfree.convert import BlendNorm, read_manifest
from batchfree.recipes import RECIPES, digits_small, get_recipe, imagenet
from batchfree.recipes.digits import digits_small_bn_network
from batchfree.train import fit, validate
from batchfree.train.build import build_network
from batchfree.train.evaluate import evaluate
from batchfree.train.optim import build_schedule


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_documented_and_named_like_its_run(name):
    config = get_recipe(name)
    doc = RECIPES[name].__doc__.replace("\\\n", "")
    root = "/data" if config.data.kind in ("image_folder", "coco") else None
    config = config.replace(data={"root": root})
    if "--model.weights" in doc:
        config = config.replace(model={"weights": "w.pth"})
    validate(config)
    assert config.name == name
    commands = re.findall(r"^ +(batchfree train .*)$", doc, re.MULTILINE)
    assert commands
    for command in commands:
        assert shlex.split(command)[2] == name
    if name.startswith("imagenet"):
        assert re.search(r"\d\d\.\d% validation error \(Wu & He 2018", doc)
    if name.startswith("coco"):
        assert re.search(r"\d\d\.\d box AP|box AP to see", " ".join(doc.split()))
        assert re.search(r"mask AP|Mask AP", doc)
        assert "2018" in doc
    if name.startswith(("imagenet", "coco")):
        assert "GPUs" in doc
        assert "hours" in " ".join(doc.split())


def test_recipes_are_fresh_each_time():
    get_recipe("digits_small_gn").model.width = 1
    assert get_recipe("digits_small_gn").model.width != 1


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'imagenet_r50_gn'"):
        get_recipe("imagenet_r5_gn")
    with pytest.raises(ConfigError, match="no recipe 'xyzzy'; `batchfree train --list`"):
        get_recipe("xyzzy")


@pytest.mark.parametrize(
    ("images", "rate"), [(32, 0.1), (16, 0.05), (8, 0.025), (4, 0.0125), (2, 0.00625)]
)
def test_the_papers_learning_rate(images, rate):
    config = imagenet(norm="bn", images_per_gpu=images)
    assert config.learning_rate() == pytest.approx(rate)
    assert config.batch_size == 8 * config.model.normalization_batch == 8 * images


@pytest.mark.parametrize(("batch", "warmup"), [(256, 0), (8192, 782)])
def test_the_papers_imagenet_schedule(batch, warmup):
    images = 1_281_167
    config = imagenet().replace(batch_size=batch)
    schedule = build_schedule(
        config.schedule,
        total_steps=round(100 * images / batch),
        steps_per_epoch=images / batch,
        learning_rate=config.learning_rate(),
    )
    assert schedule.warmup == warmup
    epoch = images / batch
    factors = [schedule.factor(round(e * epoch) + d) for e in (30, 60, 90) for d in (-1, 0)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_the_digits_recipes_differ_in_the_norm_only():
    bn, gn = digits_small("bn", 2), digits_small("gn", 2)
    assert (bn.model.normalization_batch, gn.model.normalization_batch) == (2, None)
    assert bn.replace(name=gn.name, model=gn.model) == gn
    kind = {"norm": "gn", "normalization_batch": None, "num_groups": gn.model.num_groups}
    assert bn.replace(model=kind).model == gn.model


@pytest.mark.parametrize("method", ["analytic", "blend"])
def test_a_converted_model_is_fine_tuned_and_saved_as_one(tmp_path, method):
    network = digits_small_bn_network()
    with pytest.warns(batchfree.ConversionWarning, match="as they were made"):
        result = batchfree.convert(network, method=method)
    name = "batchfree.recipes.digits:digits_small_bn_network"
    result.save(tmp_path / "start.safetensors", source=name, preprocessing="as made")
    config = get_recipe("digits_converted").replace(
        model={"converted": str(tmp_path / "start.safetensors")},
        data={"val_samples": 20},
        trainer={"max_steps": 4, "accelerator": "cpu"},
    )
    trained = fit(config, output=tmp_path / "run", progress=False)
    assert trained.curve[-1]["step"] == 4
    assert not any(isinstance(m, BlendNorm) for m in trained.model.modules())
    again = batchfree.load_converted(tmp_path / "run" / "converted.safetensors").eval()
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(again(x), trained.model.cpu().eval()(x))
    manifest = read_manifest(tmp_path / "run" / "converted.safetensors")
    assert (manifest["source"], manifest["preprocessing"]) == (name, "as made")
    assert manifest["method"] == f"{method}, fine-tuned"
    start = batchfree.load_converted(tmp_path / "start.safetensors").eval()
    assert not torch.allclose(start(x), again(x))
    (tmp_path / "start.safetensors").unlink()
    figures = evaluate(config, tmp_path / "run" / "model.safetensors")
    assert figures["val_error"] == pytest.approx(trained.curve[-1]["val_error"])


def test_a_converted_model_of_other_classes_or_none_is_refused(tmp_path):
    config = get_recipe("imagenet_r50_converted").model
    with pytest.raises(batchfree.DataError, match="no converted model at"):
        build_network(config, 1000)
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 7))
    config = replace(config, converted=str(tmp_path / "a.safetensors"))
    with pytest.warns(batchfree.ConversionWarning):
        result = batchfree.convert(network)
    result.save(config.converted, source="torchvision:resnet50")
    with pytest.raises(ConfigError, match="the plan is of another model"):
        build_network(config, 10)


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("digits_small")])
def test_a_digits_recipe_trains(name):
    short = {"max_steps": 2, "accelerator": "cpu"}
    result = fit(get_recipe(name).replace(trainer=short, data={"val_samples": 20}))
    assert result.curve[-1]["step"] == 2
