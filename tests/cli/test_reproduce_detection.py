"""`batchfree reproduce detection|scratch`, and `report` of what they leave."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import run
from detection_sweeps import FIELDS

from batchfree.experiments.detection_results import DetectionResults, DetectionRow
from batchfree.experiments.results import read_row
from batchfree.experiments.store import read_file

SMALL = [
    *("--preset", "quick", "--accelerator", "cpu", "--workers", "1"),
    *(word for name, value in FIELDS.items() for word in (f"--{name}", str(value))),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("detecton", "no experiment 'detecton'; did you mean 'detection'"),
        ("scratch --preset hours", "unknown preset 'hours'; did you mean 'hour'"),
        ("scratch --norms gm", "unknown norm 'gm'; did you mean 'gn'"),
        ("detection --norms frozen_bn+gm", "did you mean 'frozen_bn+"),
        ("scratch --sizes 2", "--sizes is an option of batch-size, not of scratch"),
        ("batch-size --images 8", "--images is an option of detection and scratch, not of batch"),
        ("scratch --seeds 0", "seeds must be at least 1"),
        ("scratch --images 8 --steps 4", "give one"),
        ("scratch --accelerator tpu", "invalid choice: 'tpu'"),
        ("scratch --model.rois_per_imag 8", "did you mean 'model.rois_per_image'"),
        ("scratch --workers 0", "workers must be at least 1"),
        ("scratch --imags 8", "unknown argument '--imags'; did you mean '--images'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    capsys, tmp_path, monkeypatch, line, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "reproduce", *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("batchfree: error: ")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two runs of two steps."""
    folder = tmp_path_factory.mktemp("swept")
    line = ["reproduce", "scratch", *SMALL, "--norms", "gn", "ln", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "batchfree.cli", *line, "--output", str(folder)],
        capture_output=True,
        text=True,
    )
    return folder, line, done


def test_a_sweep_tells_each_run_a_table_and_its_report(swept):
    folder, line, done = swept
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 at a time" in done.stderr
    assert "1/2  gn-scratch-2" in done.stderr
    assert "seed 0  box AP   0.0  mask AP   0.0" in done.stderr
    for word in ("GN, batch 2", "LN, batch 2", "box AP", f"report: {folder / 'report.html'}"):
        assert word in done.stdout
    results = read_file(folder / "results.json", DetectionResults)
    assert results.command == shlex.join(["batchfree", *line, "--output", str(folder)])
    assert [row.norm for row in results.rows] == ["gn", "ln"]
    assert "What each of them sees" in (folder / "report.html").read_text()
    assert (folder / "report-curves.svg").exists()


def test_report_reads_the_folder_and_keeps_kinds_apart(capsys, swept, tmp_path):
    folder, _, _ = swept
    page = tmp_path / "page.html"
    assert run(capsys, "report", str(folder), "-o", str(page))[:2] == (0, f"report: {page}\n")
    assert "Average precision during training" in page.read_text()
    other = Path(__file__).parents[2] / "results" / "batch-size"
    code, _, err = run(capsys, "report", str(folder), str(other), "-o", str(page))
    assert code == 2
    assert "detection and classification do not share a page" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["rows"][1].update(start="afresh"), "rows[1]: start: expected 'scratch' or"),
        (lambda v: v["rows"][0].pop("curve"), "rows[0]: the field 'curve' is missing"),
        (lambda v: v["rows"][0]["curve"][0].update(box_AP="x"), "curve[0]: box_AP: expected"),
        (lambda v: v.update(planned=[]), "rows[0]: expected one of the runs"),
        (lambda v: v["rows"].append(v["rows"][0]), "rows[2]: the same run as rows[0]"),
        (lambda v: v.update(schema="batchfree.detection/9"), "'batchfree.detection/9'"),
    ],
)
def test_a_damaged_results_file_is_named_with_its_place(capsys, swept, tmp_path, change, message):
    value = json.loads((swept[0] / "results.json").read_text())
    change(value)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    code, _, err = run(capsys, "report", str(path), "-o", str(tmp_path / "page.html"))
    assert code == 1
    assert message in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_report_without_the_detect_extra_names_it(capsys, swept, tmp_path, monkeypatch):
    find = "batchfree.report.find_spec"
    monkeypatch.setattr(find, lambda name: None if name == "faster_coco_eval" else object())
    code, _, err = run(capsys, "report", str(swept[0]), "-o", str(tmp_path / "page.html"))
    assert code == 2
    assert 'pip install "batchfree[detect]"' in err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_sweep_goes_on_within_its_training(tmp_path, how):
    words = ["reproduce", "scratch", *SMALL, "--norms", "gn", "--steps", "120"]
    command = [sys.executable, "-m", "batchfree.cli", *words, "--output", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    history = tmp_path / "runs" / "gn-scratch-2-seed0" / "history.json"
    deadline = time.time() + 200
    while not history.exists():  # half of it is done, and a checkpoint is there
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    _, err = process.communicate(timeout=100)
    assert list((tmp_path / "rows").glob("*.json")) == []
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command continues" in err
        assert "Traceback" not in err
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = read_row(tmp_path / "rows" / "gn-scratch-2-seed0.json", DetectionRow)
    assert [point.step for point in row.curve] == [60, 120]

    shutil.rmtree(tmp_path / "rows")
    shutil.rmtree(tmp_path / "runs")
    straight = subprocess.run(command, capture_output=True, text=True)
    assert straight.returncode == 0, straight.stderr
    whole = read_row(tmp_path / "rows" / "gn-scratch-2-seed0.json", DetectionRow)
    assert (whole.curve, whole.figures) == (row.curve, row.figures)
