import re
import shlex

import pytest

from batchfree import ConfigError
from batchfree.recipes import RECIPES, digits_small, get_recipe, imagenet
from batchfree.train import fit, validate
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


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("digits")])
def test_a_digits_recipe_trains(name):
    short = {"max_steps": 2, "accelerator": "cpu"}
    result = fit(get_recipe(name).replace(trainer=short, data={"val_samples": 20}))
    assert result.curve[-1]["step"] == 2
