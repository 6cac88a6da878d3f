import pytest

from batchfree import Groups
from batchfree._checks import divisors


@pytest.mark.parametrize(
    ("policy", "channels", "expected"),
    [
        (Groups(), 256, 32),
        (Groups(32), 64, 32),
        (Groups(32), 80, 40),
        (Groups(32), 48, 24),  # 24 and 48 divide; 24 is nearer
        (Groups(12), 144, 12),
        (Groups(3), 8, 2),  # 2 and 4 are equally near: the larger groups
        (Groups(32), 7, 7),
        (Groups(32), 31, 31),
        (Groups(32, on_indivisible="gcd"), 80, 16),
        (Groups(32, on_indivisible="gcd"), 7, 1),
        (Groups(channels_per_group=16), 64, 4),
        (Groups(channels_per_group=16), 8, 1),
        (Groups(channels_per_group=16), 24, 2),  # 12 channels each: 12 is nearer than 24
        (Groups(channels_per_group=3), 8, 2),  # 2 and 4 are equally near: the larger groups
    ],
)
def test_policy(policy, channels, expected):
    assert policy.resolve(channels) == expected


@pytest.mark.parametrize(("positions", "expected"), [(1, 4), (4, 16), (16, 32), (1000, 32)])
def test_floor_on_elements_per_group(positions, expected):
    policy = Groups(32, min_elements_per_group=16)
    groups = policy.resolve(64, positions)
    assert groups == expected
    assert 64 // groups * positions >= 16


def test_floor_that_no_split_reaches():
    with pytest.raises(
        ValueError, match=r"8 channels at 1 position.*16 elements per group: one group holds 8"
    ):
        Groups(32, min_elements_per_group=16).resolve(8)


def test_error_names_channels_wish_and_nearest_divisors():
    with pytest.raises(ValueError, match=r"80 channels .* 32 groups.* 20 and 40"):
        Groups(32, on_indivisible="error").resolve(80)
    with pytest.raises(ValueError, match=r"80 channels .* 32 channels per group.* 20 and 40"):
        Groups(channels_per_group=32, on_indivisible="error").resolve(80)


@pytest.mark.parametrize("channels", range(1, 200))
def test_the_result_always_divides(channels):
    for policy in (Groups(32), Groups(channels_per_group=16), Groups(6, on_indivisible="gcd")):
        assert policy.resolve(channels) in divisors(channels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_groups=32, channels_per_group=16), "not both"),
        (dict(num_groups=0), "num_groups must be a positive int, got 0"),
        (dict(channels_per_group=-1), "channels_per_group must be a positive int"),
        (dict(num_groups=2.5), "got 2.5"),
        (dict(on_indivisible="closest"), "on_indivisible must be one of"),
        (dict(min_elements_per_group=0), "min_elements_per_group"),
    ],
)
def test_a_wrong_policy_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Groups(**options)
