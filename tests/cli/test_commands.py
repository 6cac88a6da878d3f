import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from batchfree import ConfigError, DataError, ResultsError
from batchfree.bench.results import read_bench
from batchfree.cli import COMMANDS, Command, main
from batchfree.cli.parsing import one_line
from batchfree.recipes import get_recipe
from batchfree.train import Config

TINY = shlex.split(
    "--model.width 4 --batch_size 8 --data.val_samples 20 --trainer.accelerator cpu"
    " --trainer.evaluate_every 10"
)


def run(capsys, *args):
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", out, re.MULTILINE)
    assert run(capsys)[0] == 2


def test_the_command_line_loads_nothing_heavy():
    code = (
        "import sys; from batchfree.cli import main; main(['--help']);"
        "sys.exit(any(m in sys.modules for m in ('lightning', 'torchvision', 'jsonargparse')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version(capsys):
    assert run(capsys, "--version")[1].startswith("batchfree ")


def test_list_of_recipes(capsys):
    code, out, _ = run(capsys, "train", "--list")
    assert code == 0
    assert re.search(r"^imagenet_r50_gn +ResNet-50 with GroupNorm: 24.1% validation", out, re.M)


def test_help_of_train_explains_the_fields(capsys):
    code, out, _ = run(capsys, "train", "digits_small_gn", "--help")
    assert code == 0
    assert "--model.normalization_batch" in out
    assert "images over which `bn` takes its statistics" in " ".join(out.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "no command 'trian'; did you mean 'train'"),
        ("train", "train needs the name of a recipe"),
        ("train digits_smal_gn", "no recipe 'digits_smal_gn'; did you mean 'digits_small_gn'"),
        ("train digits_small_gn --model.nrom bn", "'model.nrom'; did you mean 'model.norm'"),
        ("train digits_small_gn --norm=bn", "no field 'norm'; did you mean 'model.norm'"),
        ("train digits_small_gn --model.norm gm", "got 'gm'; did you mean 'gn'"),
        ("train digits_small_gn --model.name resnt50", "did you mean 'resnet50'"),
        ("train digits_small_gn --seed x", "seed must be a whole number, got 'x'"),
        ("train digits_small_gn --batch_size -3", "batch_size must be a positive number, got -3"),
        ("train digits_small_gn bn", "unexpected argument 'bn'"),
        ("train digits_small_gn --model.width", "--model.width: expected one argument"),
        ("train digits_small_gn --output", "--output: expected one argument"),
        ("train digits_small_gn --config /none.yaml", "no config file '/none.yaml'"),
        ("train digits_small_gn --resume /none/last.ckpt", "lies in no run's folder"),
        ("train digits_small_gn --resume /none/checkpoints/last.ckpt", "no checkpoint at '/none"),
        ("train imagenet_r50_gn", "data.root is missing"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, line, message):
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("batchfree: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model:\n  nrom: bn\n", "'model.nrom'; did you mean 'model.norm'"),
        ("modle:\n  norm: bn\n", "'modle.norm'; did you mean 'model.norm'"),
        ("model:\n  norm: gm\n", "got 'gm'; did you mean 'gn'"),
        ("model: [\n", "parsing"),
        ("42", "42"),
    ],
)
def test_a_wrong_config_file_is_one_line(capsys, tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    code, _, err = run(capsys, "train", "digits_small_gn", "--config", str(path))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_print_config_reads_back(capsys, tmp_path):
    change = ["--model.norm", "bn", "--model.num_groups", "null", "--seed", "3"]
    code, out, _ = run(capsys, "train", "digits_small_gn", *change, "--print_config")
    assert code == 0
    expected = get_recipe("digits_small_gn").replace(
        seed=3, model={"norm": "bn", "num_groups": None}
    )
    assert Config.from_dict(yaml.safe_load(out)) == expected
    path = tmp_path / "c.yaml"
    path.write_text(out)
    assert run(capsys, "train", "--config", str(path), "--print_config")[1] == out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("the folder\nis empty"), 1),
        (ResultsError("cut in half"), 1),
        (FileNotFoundError(2, "No such file", "x.json"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(0), 0),
    ],
)
def test_expected_errors_have_no_traceback(capsys, monkeypatch, error, code):
    def fail(args):
        raise error

    monkeypatch.setitem(COMMANDS, "fail", Command("fails", fail))
    got, _, err = run(capsys, "fail")
    assert got == code
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "bug", Command("has one", lambda args: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        main(["bug"])


def test_one_line_of_a_loading_processs_error():
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
    error = DataError(text + " last):\n  File ...\nbatchfree._errors.DataError: the image is bad\n")
    assert one_line(error) == "the image is bad"


def test_missing_data_and_unwritable_folders(capsys, tmp_path):
    code, _, err = run(capsys, "train", "imagenet_r50_gn", "--data.root", str(tmp_path / "none"))
    assert code == 1
    assert "none' does not exist" in err
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "run")
    code, _, err = run(capsys, "train", "digits_small_gn", *TINY, "--output", output)
    assert code == 1
    assert "cannot write to the output folder" in err
    assert output in err


def test_train_names_its_result_and_takes_a_new_folder_each_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", "digits_small_gn", *TINY, "--trainer.max_steps", "2", "--quiet"]
    for folder in ("runs/digits_small_gn", "runs/digits_small_gn-2"):
        code, out, err = run(capsys, *line)
        assert (code, err) == (0, "")
        assert "digits_small_gn: validation error" in out
        assert f"weights in {folder}/model.safetensors" in out
        assert Path(folder, "model.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_finishes_the_run_to_the_bit(capsys, tmp_path, monkeypatch):
    line = ["train", "digits_small_bn", *TINY, "--trainer.max_steps", "120", "--trainer.log_every"]
    line += ["1", "--model.normalization_batch", "4", "--trainer.threads", "1", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "batchfree.cli", *line, "--output", "cut"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    history = tmp_path / "cut" / "history.json"
    while not history.exists():  # the first evaluation is done, training goes on
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Traceback" not in err
    command = shlex.split(err.strip().splitlines()[-1])
    assert command[:3] == ["batchfree", "train", "digits_small_bn"]
    assert command[-2:] == ["--resume", "cut/checkpoints/last.ckpt"]
    step = torch.load(tmp_path / command[-1], weights_only=True)["global_step"]
    assert 0 < step < 120

    whole = tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    assert main(command[1:]) == 0
    assert main([*line, "--output", str(whole)]) == 0
    resumed, straight = (load_file(p / "model.safetensors") for p in (tmp_path / "cut", whole))
    assert all(torch.equal(resumed[k], v) for k, v in straight.items())
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys, monkeypatch):
    def needs(library):
        def command(args):
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)

        return Command("", command)

    monkeypatch.setitem(COMMANDS, "demo", needs("lightning.pytorch"))
    code, _, err = run(capsys, "demo")
    assert code == 1
    assert "lightning is not installed" in err
    assert 'pip install "batchfree[train]"' in err
    monkeypatch.setitem(COMMANDS, "demo", needs("batchfree.nothing"))
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


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
