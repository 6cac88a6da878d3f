import json
from pathlib import Path

import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

import batchfree
from batchfree.convert import ConversionPlan, read_manifest
from batchfree.data import DigitsInTheWild


def net():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.BatchNorm2d(16)
    )


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x).argmax(1)


def no_norm():
    return nn.Conv2d(3, 8, 3)


HERE = f"{__name__}:"
QUIET = ("--quiet", "--threads", "1")


def weights(path):
    torch.manual_seed(0)
    model = net()
    for _ in range(20):
        model(torch.randn(8, 3, 16, 16))
    torch.save(model.state_dict(), path)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path):
    weights(tmp_path / "net.pt")
    return str(tmp_path / "net.pt")


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 24), (20 * i, 40, 255 - 10 * i)).save(path)
    return str(tmp_path / "images")


def test_a_model_is_converted_written_and_loaded(capsys, tmp_path, checkpoint):
    output = tmp_path / "new" / "out.safetensors"
    line = ["--weights", checkpoint, "--calibration", "embedded", "--samples", "32"]
    files = ["--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")]
    code, out, err = run(
        capsys, "convert", f"{HERE}net", *line, *files, "--output", str(output), *QUIET
    )
    assert (code, err) == (0, "")
    assert "2 BatchNorms became GroupNorms (calibrated)" in " ".join(out.split())
    assert f"wrote {output}" in out
    original = net()
    original.load_state_dict(torch.load(checkpoint, weights_only=True))
    loaded = batchfree.load_converted(output, model=original).eval()
    x = DigitsInTheWild("train", seed=3).batch(range(32))[0]
    with torch.no_grad():
        wanted = original.eval()(x)
        assert float((loaded(x) - wanted).norm() / wanted.norm()) < 0.5
    manifest = read_manifest(output)
    assert (manifest["source"], manifest["calibration"]) == (f"{HERE}net", 32)
    assert manifest["preprocessing"] == "digits in the wild, 16 pixels"
    assert "Drift along the network" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["held_out"] == 32


def test_a_folder_of_images(capsys, tmp_path, checkpoint, folder):
    output = tmp_path / "out.safetensors"
    line = ["--weights", checkpoint, "--calibration", folder, "--size", "16", "--groups", "auto"]
    code, _, err = run(capsys, "convert", f"{HERE}net", *line, "--output", str(output), *QUIET)
    assert (code, err) == (0, "")
    manifest = read_manifest(output)
    assert manifest["calibration"] == 11
    assert "centre crop 16" in manifest["preprocessing"]


def test_a_dry_run_shows_the_plan_which_can_be_changed_and_applied(capsys, tmp_path, checkpoint):
    path, output = tmp_path / "plan.json", tmp_path / "out.safetensors"
    code, out, _ = run(capsys, "convert", f"{HERE}net", "--dry-run", "--output", str(path))
    assert code == 0
    assert "GroupNorm(2, 32)" in out
    assert "load the trained weights" in " ".join(out.split())
    plan = ConversionPlan.from_json(path.read_text())
    plan["1"].groups = 8
    path.write_text(plan.to_json())
    line = ["--weights", checkpoint, "--plan", str(path), "--output", str(output), *QUIET]
    assert run(capsys, "convert", f"{HERE}net", *line)[0] == 0
    assert read_manifest(output)["layers"]["1"]["groups"] == 8
    code, out, _ = run(capsys, "convert", f"{HERE}net", "--dry-run", "--keep", "4")
    assert code == 0
    assert "1 BatchNorms to convert, 1 kept" in " ".join(out.split())
    assert {p.name for p in tmp_path.iterdir()} == {"plan.json", "out.safetensors", "net.pt"}


def test_outputs_that_moved_too_far_are_exit_code_1(capsys, tmp_path, checkpoint):
    line = ["--weights", checkpoint, "--calibration", "embedded", "--samples", "16"]
    line += ["--output", str(tmp_path / "o.safetensors"), *QUIET]
    assert run(capsys, "convert", f"{HERE}net", *line, "--fail-above", "1e-6")[0] == 1
    assert run(capsys, "convert", f"{HERE}net", *line, "--fail-above", "1000")[0] == 0


@pytest.mark.filterwarnings("ignore::batchfree.ConversionWarning")
def test_outputs_that_cannot_be_compared_are_no_success_and_no_move(capsys, tmp_path):
    output = tmp_path / "o.safetensors"
    line = ["--calibration", "embedded", "--samples", "16", "--output", str(output), *QUIET]
    assert run(capsys, "convert", f"{HERE}Classes", *line)[0] == 0
    code, _, err = run(capsys, "convert", f"{HERE}Classes", *line, "--fail-above", "5")
    assert code == 2
    assert "outputs were not compared: they are no measures but int64 values" in err
    assert output.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("convert {net}", "name a file with --output, or look with --dry-run"),
        ("convert resnet18 --output {out}", "a model is named torchvision:NAME"),
        ("convert {net} --output {out} --method calib", "did you mean 'calibrated'"),
        ("convert {net} --output {out} --method distill", "needs --calibration DIR"),
        ("convert {net} --output {out} --groups auto", "needs --calibration DIR"),
        ("convert {net} --output {out} --groups 0", "--groups must be a positive number or 'auto'"),
        ("convert {net} --output {out} --anchor -1", "--anchor must be 0 to 100 or 'none'"),
        ("convert {net} --output {out} --anchor x", "--anchor must be 0 to 100 or 'none'"),
        ("convert {net} --output {out} --samples 0", "--samples must be at least 1, got 0"),
        ("convert {net} --output {out} --steps -1", "--steps must not be negative"),
        ("convert {net} --output {out} --keep 9", "keep='9' matches no norm layer"),
        ("convert {net} --output {out} --fail-above 1", "--fail-above needs --calibration"),
        ("convert {net} --output {out} --calibration none", "there is no folder 'none'"),
        ("convert {net} --output {out} --calibration embedded --size 8", "must be 16 to 64"),
        ("convert {net} --output {out} --plan none.json", "there is no plan at 'none.json'"),
        ("convert {net} --output {out} --plan x --groups 2", "leave out --groups and --keep"),
        ("convert {net} --output {out} --weights none.pt", "there is no checkpoint at"),
        ("convert {no_norm} --output {out}", "has no BatchNorm to convert"),
        ("convert {net} --output .", "is a folder; name a file"),
        ("convert {net} --output g.txt", "ends with .safetensors, got 'g.txt'"),
        ("convert {net} --dry-run --output {out}", "ends with .json, got 'out.safetensors'"),
        (
            "convert {net} --dry-run --report r.html",
            "converts nothing, so there is nothing for --r",
        ),
        ("convert {net} --dry-run --json r.json", "nothing for --json"),
        ("convert {net} --dry-run --fail-above 3", "nothing for --fail-above"),
        ("convert {net} --output {out} --fail-above nan --calibration embedded", "got nan"),
        ("convert {net} --output {out} --fail-above=-5 --calibration embedded", "got -5"),
        ("convert {net} --outptu x", "did you mean '--output'"),
    ],
)
def test_a_wrong_line_is_one_line_exit_code_2_and_no_file(
    capsys, tmp_path, monkeypatch, line, message
):
    monkeypatch.chdir(tmp_path)
    words = line.format(net=f"{HERE}net", no_norm=f"{HERE}no_norm", out="out.safetensors").split()
    code, _, err = run(capsys, *words)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_hold_code_or_another_model(capsys, tmp_path):
    torch.save(net(), tmp_path / "code.pt")
    torch.save(no_norm().state_dict(), tmp_path / "other.pt")
    for name, message in (
        ("code.pt", "holds no weights that can be read safely"),
        ("other.pt", "are of another model"),
    ):
        line = ["--weights", str(tmp_path / name), "--output", str(tmp_path / "o.safetensors")]
        code, _, err = run(capsys, "convert", f"{HERE}net", *line, *QUIET)
        assert code == 2
        assert message in err
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("what", ["weights", "report"])
def test_no_file_is_written_over_another(capsys, tmp_path, checkpoint, what):
    before = Path(checkpoint).read_bytes()
    if what == "weights":
        checkpoint = str((tmp_path / "net.pt").rename(tmp_path / "net.safetensors"))
    output = checkpoint if what == "weights" else str(tmp_path / "same.safetensors")
    line = ["--weights", checkpoint, *(["--report", output] if what == "report" else [])]
    code, _, err = run(capsys, "convert", f"{HERE}net", *line, "--output", output, *QUIET)
    assert code == 2
    assert "named twice" in err
    assert Path(checkpoint).read_bytes() == before
    assert not (tmp_path / "same.safetensors").exists()


def test_a_place_that_cannot_be_written_is_said_before_the_work(capsys, tmp_path, checkpoint):
    output = tmp_path / "net.pt" / "out.safetensors"  # a folder that is a file
    line = ("--weights", checkpoint, "--output", str(output))
    code, out, err = run(capsys, "convert", f"{HERE}net", *line, *QUIET)
    assert (code, out) == (2, "")
    assert "cannot be written" in err


def test_a_checkpoint_of_a_parallel_model_loads(capsys, tmp_path, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "parallel.pt")
    line = ("--weights", str(tmp_path / "parallel.pt"), "--output", str(tmp_path / "o.safetensors"))
    assert run(capsys, "convert", f"{HERE}net", *line, *QUIET)[0] == 0
