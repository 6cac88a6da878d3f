import pytest

from batchfree import ConfigError
from batchfree.train import Config, validate
from batchfree.train.checks import check_batch_split
from batchfree.train.config import field_types


def test_defaults_are_valid():
    validate(Config())


def test_dict_round_trip():
    config = Config().replace(seed=3, model={"norm": "bn", "normalization_batch": 2})
    assert Config.from_dict(config.to_dict()) == config


def test_replace_leaves_the_original():
    config = Config()
    assert config.replace(model={"norm": "ln"}).model.norm == "ln"
    assert config == Config()


def test_linear_scaling_rule():
    config = Config(batch_size=16).replace(optimizer={"base_lr": 0.1, "base_batch_size": 256})
    assert config.learning_rate() == pytest.approx(0.00625)
    assert config.replace(optimizer={"linear_scaling": False}).learning_rate() == 0.1


def test_every_field_is_documented():
    for section in (Config(), *(v for v in vars(Config()).values() if hasattr(v, "__dict__"))):
        for name in vars(section):
            assert f"        {name}: " in (type(section).__doc__ or ""), name


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"norm": "gm"}, "model.norm must be one of .* got 'gm'; did you mean 'gn'"),
        ("model", {"name": "resnt50"}, "got 'resnt50'; did you mean 'resnet50'"),
        ("model", {"width": "wide"}, "model.width must be a whole number or null, got 'wide'"),
        ("model", {"num_groups": 8, "channels_per_group": 4}, "exclude each other"),
        ("model", {"norm": "bn", "num_groups": 8}, "of norm 'gn', not of 'bn'"),
        ("model", {"normalization_batch": 2}, "of norm 'bn', not of 'gn'"),
        ("model", {"weight_standardization": 1}, "must be true or false, got 1"),
        ("data", {"size": 0}, "data.size must be a positive number, got 0"),
        ("data", {"kind": "image_folder"}, "data.root is missing"),
        ("optimizer", {"base_lr": float("nan")}, "optimizer.base_lr must be a positive number"),
        ("optimizer", {"ema_decay": 1.0}, "from 0 to below 1, got 1.0"),
        ("optimizer", {"nesterov": True, "momentum": 0.0}, "needs a momentum"),
        ("schedule", {"kind": "step"}, "needs schedule.milestones"),
        ("schedule", {"unit": "epochs"}, "needs an epoch: set data.train_samples"),
        ("schedule", {"milestones": ["a"]}, "must be a list of numbers"),
        ("schedule", {"warmup": 5}, "schedule.warmup is a fraction of the training.* got 5"),
        ("schedule", {"kind": "step", "milestones": [30, 60]}, "milestones is a fraction.* got 30"),
        ("schedule", {"milestones": [-0.1]}, "must not be negative"),
        ("trainer", {"max_epochs": 1}, "set one of them"),
        ("trainer", {"max_steps": None}, "set one of them"),
        ("trainer", {"max_steps": True}, "whole number or null, got True"),
    ],
)
def test_bad_values_in_one_line(section, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(Config().replace(**{section: values}))
    assert "\n" not in str(caught.value)


def test_a_section_of_another_type():
    with pytest.raises(ConfigError, match="model must be a ModelConfig, got 'bn'"):
        validate(Config(model="bn"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"nrom": 1}}, "no field 'model.nrom'; did you mean 'model.norm'"),
        ({"norm": "bn"}, "no field 'norm'; did you mean 'model.norm'"),
        ({"xyzzy": 1}, "no field 'xyzzy'; --print_config shows them all"),
    ],
)
def test_unknown_fields_name_the_nearest(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(settings)


def test_field_types_are_dotted():
    assert field_types()["seed"] is int
    assert "trainer.max_steps" in field_types()


def test_batch_has_to_split():
    check_batch_split(Config(batch_size=32), 8)
    with pytest.raises(ConfigError, match="32 does not; take 30 or 33"):
        check_batch_split(Config(batch_size=32), 3)
