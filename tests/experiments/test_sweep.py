"""Sweeps: finished runs are kept, whatever happens to the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchfree._errors import SweepError
from batchfree.experiments import pool, sweep
from batchfree.experiments.batch_size import make_preset, plan, results_of
from batchfree.experiments.batch_size_run import BatchSizeRun
from batchfree.experiments.pool import default_workers
from batchfree.experiments.results import read_results, write_row
from batchfree.experiments.sweep import run_sweep

PRESET = make_preset("quick", steps=2)


class Log:
    """A watcher that writes down what it is told."""

    def __init__(self):
        self.kept, self.rows, self.notes = 0, [], []

    def started(self, runs, kept, steps, workers):
        self.kept, self.steps, self.workers = kept, steps, workers

    def advanced(self, steps):
        pass

    def finished(self, row):
        self.rows.append(row)

    def warned(self, message):
        self.notes.append(message)


def small(runs):
    return [
        BatchSizeRun(r.norm, r.normalization_batch, r.config.replace(data={"val_samples": 20}))
        for r in runs
    ]


RUNS = small(plan(PRESET))


def go(folder, runs=RUNS, **options):
    log = Log()
    results = run_sweep(
        runs,
        folder,
        lambda rows: results_of(
            rows, preset=PRESET, preset_name="quick", protocol="isolated", command="batchfree demo"
        ),
        command="batchfree demo",
        watcher=log,
        **{"workers": 1, **options},
    )
    return results, log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, *go(folder)


def test_a_sweep_trains_everything_and_writes_it(finished):
    folder, results, log = finished
    assert len(results.rows) == len(RUNS) == 3
    assert [row.key for row in results.rows] == [
        (r.norm, r.normalization_batch, r.config.seed) for r in RUNS
    ]
    assert read_results(folder / "results.json").rows == results.rows
    assert log.kept == 0
    assert log.steps == 2 * len(RUNS)
    row = results.rows[0]
    assert row.steps == 2
    assert row.curve[-1].step == 2
    assert row.machine["cores"] >= 1
    assert row.versions["torch"]


def test_the_same_sweep_again_trains_nothing(finished):
    folder, results, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "rows").iterdir()}
    again, log = go(folder)
    assert log.kept == len(RUNS)
    assert log.rows == []
    assert again.rows == results.rows
    assert {p: p.stat().st_mtime_ns for p in (folder / "rows").iterdir()} == before


def copy_of(finished, folder):
    source, results, _ = finished
    for run, row in zip(RUNS, results.rows, strict=True):
        write_row(folder / "rows" / f"{run.name}.json", row)
    return source


def test_only_what_is_missing_cut_short_or_of_other_settings_is_trained(finished, tmp_path):
    copy_of(finished, tmp_path)
    rows = sorted((tmp_path / "rows").iterdir())
    rows[0].unlink()
    text = rows[1].read_text()
    rows[1].write_text(text[: len(text) // 2])
    other = json.loads(rows[2].read_text())
    other["config"]["optimizer"]["base_lr"] = 9.0
    rows[2].write_text(json.dumps(other))
    results, log = go(tmp_path)
    assert log.kept == 0
    assert len(log.rows) == 3
    assert len(results.rows) == 3
    assert any("cannot be read" in note for note in log.notes)
    assert any("settings have changed" in note for note in log.notes)


def test_a_results_file_cut_in_half_is_rebuilt_from_the_rows(finished, tmp_path):
    copy_of(finished, tmp_path)
    (tmp_path / "results.json").write_text('{"schema": "batchfree.res')
    results, log = go(tmp_path)
    assert log.kept == 3
    assert read_results(tmp_path / "results.json").rows == results.rows


def test_a_failing_run_is_named_and_the_others_are_kept(tmp_path):
    broken = RUNS[0].config.replace(model={"name": "resnet_none"})
    runs = [BatchSizeRun("bn", 2, broken), RUNS[2]]
    with pytest.raises(SweepError, match=r"1 of 2 runs failed.*bn-2-seed0.*resnet_none"):
        go(tmp_path, runs)
    assert len(read_results(tmp_path / "results.json").rows) == 1


def test_a_full_disk_loses_no_finished_run(finished, tmp_path, monkeypatch):
    _, results, _ = finished
    pairs = list(zip(RUNS, results.rows, strict=True))
    monkeypatch.setattr(sweep, "train_all", lambda *a: iter(pairs))
    monkeypatch.setattr(sweep.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "refuge"))

    def full(path, row):
        if "refuge" not in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_row(path, row)

    monkeypatch.setattr(sweep, "write_row", full)
    with pytest.raises(OSError, match=r"3 finished runs could not be written.*refuge"):
        go(tmp_path / "out")
    assert len(list((tmp_path / "refuge").iterdir())) == 3


def test_a_folder_that_cannot_be_written_fails_before_any_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"choose another file or folder.*file/out"):
        go(tmp_path / "file" / "out")


def test_a_short_spell_of_full_disk_is_survived(finished, tmp_path, monkeypatch):
    _, results, _ = finished
    pairs = list(zip(RUNS, results.rows, strict=True))
    monkeypatch.setattr(sweep, "train_all", lambda *a: iter(pairs))
    calls = []

    def once(path, row):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device", str(path))
        write_row(path, row)

    monkeypatch.setattr(sweep, "write_row", once)
    got, log = go(tmp_path)
    assert len(got.rows) == 3
    assert len(list((tmp_path / "rows").iterdir())) == 3
    assert any("tried again" in note for note in log.notes)


def test_workers_fit_the_machine(monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.setattr(pool, "_available_memory", lambda: 4e9)
    assert default_workers(100) == 2
    monkeypatch.setattr(pool, "_available_memory", lambda: 1e8)
    assert default_workers(100) == 1
    monkeypatch.setattr(pool, "_available_memory", lambda: 1e12)
    assert default_workers(100) == 8
    assert default_workers(3) == 3


def start(folder, *extra):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "batchfree.cli", "reproduce", "batch-size"),
            *("--preset", "quick", "--steps", "40", "--workers", "1", "--output", str(folder)),
            *extra,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_a_row(folder, process):
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        rows = list((Path(folder) / "rows").glob("*.json"))
        if rows:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"no row appeared: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_sweep_resumes_without_repeating_a_finished_run(tmp_path, how):
    process = start(tmp_path)
    wait_for_a_row(tmp_path, process)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    _, err = process.communicate(timeout=60)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "rows").glob("*.json")}
    assert 1 <= len(kept) < 3
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command continues" in err
        assert "Traceback" not in err

    process = start(tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"{len(kept)} of them kept" in err
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "rows").glob("*.json")}
    assert len(now) == 3
    assert {name: now[name] for name in kept} == kept
    assert (tmp_path / "report.html").exists()
    assert "report:" in out
