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
from command_line import run
from safetensors.torch import load_file

from batchfree import DataError, ResultsError
from batchfree.cli import COMMANDS, Command, main
from batchfree.cli.parsing import one_line
from batchfree.recipes import get_recipe
from batchfree.train import Config

TINY = shlex.split(
    "--model.width 4 --batch_size 8 --data.val_samples 20 --trainer.accelerator cpu"
    " --trainer.evaluate_every 10"
)


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


def test_an_unknown_task_in_a_config_file_is_named(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("task: detektion\n")
    code, _, err = run(capsys, "train", "--config", str(tmp_path / "a.yaml"))
    assert code == 2
    assert "task must be 'detection', or left out" in err
