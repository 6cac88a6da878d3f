import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from command_line import run

from batchfree import ConfigError
from batchfree.bench.results import read_bench
from batchfree.cli import main
from batchfree.cli.bench_run import _into

QUICK = shlex.split("--repetitions 2 --threads 1 --peers eager batchfree floor")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench targt", "no suite 'targt'; did you mean 'target'"),
        ("bench overhaed", "no suite 'overhaed'"),
        ("bench --peers eagre", "no peer 'eagre'; did you mean 'eager'"),
        ("bench --dtypes bf61", "no dtype 'bf61'"),
        ("bench --layouts channel_last", "did you mean 'channels_last'"),
        ("bench --modes backward", "no mode 'backward'"),
        ("bench --parameters half", "no choice of --parameters 'half'"),
        ("bench --allocator keeep", "did you mean 'keep'"),
        ("bench --device gpu", "--device must be cpu or cuda, got 'gpu'"),
        ("bench --repetitions 1", "--repetitions must be at least 2, got 1"),
        ("bench --threads 0", "--threads must be at least 1, got 0"),
        ("bench --budget -1", "--budget must be a positive number of seconds, got -1.0"),
        ("bench --repetition x", "argument --repetitions: invalid int value: 'x'"),
        ("bench --peer-list", "unknown argument '--peer-list'"),
        ("bench overhead --suite", "unknown argument '--suite'"),
        ("bench training-step --network resnet5", "did you mean 'resnet50'"),
        ("bench training-step --clock device", "--clock device is a GPU's"),
        ("bench training-step --clock hosts", "no clock 'hosts'; did you mean 'host'"),
        ("bench training-step --batch 0", "--batch must be at least 1, got 0"),
        ("bench training-step --layouts last", "no layout 'last'"),
    ],
)
def test_a_wrong_benchmark_is_one_line(capsys, line, message):
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_bench_lists_its_suites(capsys):
    code, out, _ = run(capsys, "bench", "--list")
    assert code == 0
    assert re.search(r"^target: GN\+SiLU and GN\+residual\+ReLU of 1 to 32 MB", out, re.M)
    assert re.search(r"^  1x128x20x256x256 +GN\+silu +32 groups  tile 256  \(over 128", out, re.M)


def test_bench_writes_rows_and_a_page_that_can_be_made_again(capsys, tmp_path):
    output = tmp_path / "out"
    code, out, _ = run(capsys, "bench", "tiny", *QUICK, "--modes", "forward", "-o", str(output))
    assert code == 0
    assert "times as fast as eager" in out
    assert sorted(p.name for p in output.iterdir()) == ["bench.html", "bench.json", "kernels.csv"]
    found = read_bench(output)
    assert found.complete
    assert len(found.kernels) == 15 * 3
    assert found.origin.command.startswith("batchfree bench tiny --repetitions 2")
    assert all(row.failure is None for row in found.kernels)
    page = tmp_path / "again.html"
    assert run(capsys, "report", str(output), "-o", str(page))[0] == 0
    assert "Speed against PyTorch eager" in page.read_text()
    code, _, err = run(capsys, "report", str(output), "results", "-o", str(page))
    assert code == 2
    assert "do not share a page" in err


def test_bench_without_the_report_extra_writes_rows(capsys, tmp_path, monkeypatch):
    def missing(*_):
        raise ConfigError('the report needs plotly: pip install "batchfree[report]"')

    monkeypatch.setattr("batchfree.report.write_bench_page", missing)
    line = ["bench", "overhead", "--repetitions", "2", "--threads", "1", "-o", str(tmp_path)]
    code, out, err = run(capsys, *line)
    assert code == 0
    assert "batchfree.GroupNorm(relu)" in out
    assert "no page: the report needs plotly" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "overhead.csv"]


def test_a_budget_that_is_spent_leaves_settings_out(capsys, tmp_path):
    code, _, err = run(capsys, "bench", "tiny", *QUICK, "--budget", "0.2", "-o", str(tmp_path))
    assert code == 0
    assert re.search(r"the time budget is spent: \d+ of 90 rows are there and kept", err)
    assert not read_bench(tmp_path).complete


def test_each_allocator_setting_has_a_process(capfd, tmp_path):
    line = [*QUICK, "--budget", "1", "--allocator", "both", "-o", str(tmp_path)]
    assert main(["bench", "tiny", *line]) == 0
    assert {row.allocator for row in read_bench(tmp_path).kernels} == {"default", "keep"}
    assert "allocator setting keep" in capfd.readouterr().out


def test_a_process_that_dies_is_told_and_its_rows_are_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("batchfree.cli.bench_run._child", lambda *_: -11)
    line = [*QUICK, "--budget", "1", "--allocator", "both", "-o", str(tmp_path)]
    code, _, err = run(capsys, "bench", "tiny", *line)
    assert code == 1
    assert "the process with the allocator setting 'keep' ended with -11" in err
    assert read_bench(tmp_path).kernels


def test_a_ctrl_c_that_is_lost_on_its_way_is_heard_at_the_next_row(tmp_path):
    def measure(record, budget):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        record([])
        pytest.fail("measured on")

    # A shell's background jobs ignore Ctrl-C, and so do the tests in one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _into(tmp_path / "rows.jsonl", measure, 1.0, lambda rows: None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("allocator", ["default", "keep"])
def test_ctrl_c_keeps_what_is_timed(tmp_path, allocator):
    line = ["bench", "tiny", "target", *QUICK, "--allocator", allocator, "-o", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "batchfree.cli", *line],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    rows = tmp_path / f"rows-{allocator}.jsonl"
    while not rows.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.search(r"interrupted: \d+ of \d+ rows are there and kept", err)
    assert "wrote" in out
    found = read_bench(tmp_path)
    assert not found.complete
    assert found.kernels
