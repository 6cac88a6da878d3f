"""`tools/detection_speed.py` runs and says what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "detection_speed.py"
if not TOOL.exists():
    pytest.skip("an installed package has no tools", allow_module_level=True)


def test_it_times_steps_and_loading():
    small = ["--height", "64", "--width", "96", "--batch", "1", "--images", "2", "--workers", "1"]
    short = ["--rounds", "1", "--loop", "1", "--threads", "1"]
    networks = ["torchvision, frozen BN", "ours, frozen BN"]
    command = [sys.executable, "-W", "ignore", TOOL, *small, *short, "--networks", *networks]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout)
    assert list(found["step_seconds"]) == networks
    assert all(len(times) == 1 and times[0] > 0 for times in found["step_seconds"].values())
    ours, theirs = (found["step_seconds"][name][0] for name in reversed(networks))
    assert found["ratio_by_round"] == pytest.approx([ours / theirs], abs=0.01)
    assert found["loading_seconds_per_batch"] > 0
    assert 0 <= found["waiting_share_of_step"] < 1
    assert found["origin"]["commit"]
