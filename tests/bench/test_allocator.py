import subprocess
import sys

import pytest

from batchfree.bench import allocator


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in (*allocator.KEEP, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


def test_the_setting_is_read_from_the_environment(monkeypatch):
    assert allocator.current() == "default"
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert allocator.current() == "custom"
    for name, value in allocator.KEEP.items():
        monkeypatch.setenv(name, value)
    assert allocator.current() == "keep"


@pytest.mark.parametrize("setting", ["default", "keep"])
def test_a_child_has_the_setting_it_is_given(monkeypatch, setting):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    code = "from batchfree.bench import allocator; print(allocator.current())"
    environment = dict(allocator.environment(setting))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == setting
