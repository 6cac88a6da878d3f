import json

import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

from batchfree._naming import load_model


def clean():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))


def boom():
    raise ZeroDivisionError("no model")


def coupled():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


HERE = f"{__name__}:"
QUIET = ("--input", "4,3,8,8", "--quiet", "--threads", "1")


def test_a_clean_model_exits_with_0_and_a_coupled_one_with_1(capsys):
    assert run(capsys, "audit", f"{HERE}clean", *QUIET)[0] == 0
    code, out, _ = run(capsys, "audit", f"{HERE}coupled", *QUIET)
    assert code == 1
    assert "samples depend on each other in train mode; it enters at 1 module" in out
    assert "convert to GroupNorm with 8 groups" in " ".join(out.split())


def test_the_mode_and_the_level_decide_what_fails(capsys):
    assert run(capsys, "audit", f"{HERE}coupled", *QUIET, "--mode", "eval")[0] == 0
    assert run(capsys, "audit", f"{HERE}coupled", *QUIET, "--fail-on", "never")[0] == 0
    assert run(capsys, "audit", f"{HERE}coupled", *QUIET, "--mode", "train")[0] == 1


def test_json_and_a_page_that_escapes_are_written(capsys, tmp_path):
    files = tmp_path / "new" / "a.json", tmp_path / "a.html"
    line = ["--json", str(files[0]), "--html", str(files[1])]
    code, out, _ = run(capsys, "audit", f"{HERE}coupled", *QUIET, *line)
    assert code == 1
    assert all(f"wrote {path}" in out for path in files)
    found = json.loads(files[0].read_text())
    assert found["schema"] == "batchfree-audit-1"
    assert not found["ok"]
    assert [f["module"] for f in found["findings"] if f["level"] == "coupling"] == ["1"]
    page = files[1].read_text()
    assert "samples depend on each other in train mode" in page
    assert "BatchNorm2d" in page
    assert "http" not in page


def test_weights_are_loaded_and_code_in_them_is_not_run(capsys, tmp_path):
    good, other, code_inside = (tmp_path / name for name in ("good.pt", "other.pt", "code.pt"))
    torch.save({"state_dict": clean().state_dict()}, good)
    torch.save(nn.Linear(2, 2).state_dict(), other)
    torch.save(clean(), code_inside)
    wanted = torch.load(good, weights_only=True)["state_dict"]
    assert torch.equal(
        load_model(f"{HERE}clean", good).state_dict()["0.weight"], wanted["0.weight"]
    )
    for path, exit_code, words in (
        (other, 2, "are of another model"),
        (code_inside, 2, "holds no weights that can be read safely"),
        (tmp_path / "none.pt", 2, "there is no checkpoint"),
    ):
        code, _, err = run(capsys, "audit", f"{HERE}clean", *QUIET, "--weights", str(path))
        assert (code, len(err.strip().splitlines())) == (exit_code, 1), err
        assert words in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("audit resnet18 --input 4,3,8,8", "a model is named torchvision:NAME"),
        ("audit torchvision:resnet81 --input 4,3,8,8", "did you mean 'resnet18'"),
        ("audit timm:resnet5 --input 4,3,8,8", "timm has no model 'resnet5'"),
        ("audit no.such:model --input 4,3,8,8", "there is no module 'no.such'"),
        (f"audit {__name__}:boom --input 4,3,8,8", "raises ZeroDivisionError: no model"),
        (f"audit {__name__}:OnlyEval.x --input 4,3,8,8", "has no function 'OnlyEval.x'"),
        (f"audit {__name__}:QUIET --input 4,3,8,8", "is a tuple, not a function"),
        (f"audit {__name__}:clean --input 4,3,8,8 --json /", "/ is a folder; name a file"),
        ("audit torchvision:resnet18", "give --input N,C,H,W or --data DIR"),
        ("audit torchvision:resnet18 --input 4,3,x", "--input must be whole numbers"),
        ("audit torchvision:resnet18 --input 1,3,32,32", "needs at least two samples"),
        ("audit torchvision:resnet18 --input 4,3,8,8 --mode both2", "no mode 'both2'"),
        ("audit torchvision:resnet18 --input 4,3,8,8 --fail-on bit", "did you mean 'bits'"),
        ("audit torchvision:resnet18 --input 4,5,32,32", "to have 3 channels, but got 5 channels"),
        ("lint imagenet_r50_gm", "did you mean 'imagenet_r50_gn'"),
        ("lint imagenet_r50_gn --optimizer.lr 1", "there is no field 'optimizer.lr'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, line, message):
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("imagenet_r50_gn", []),
        ("imagenet_r50_bn", []),
        ("imagenet_r50_bn --model.normalization_batch 2", ["small-batch"]),
        ("imagenet_r50_gn --optimizer.linear_scaling false --batch_size 32", ["learning-rate"]),
        ("imagenet_r50_gn --batch_size 1024 --schedule.warmup 0", ["warm-up"]),
        ("imagenet_r50_gn --optimizer.decay_norm_parameters false", ["norm-decay"]),
        ("imagenet_r50_gn --model.zero_init_residual false", ["zero-init"]),
    ],
)
def test_lint_names_the_mistakes_in_a_recipe(capsys, line, rules):
    code, out, _ = run(capsys, "lint", *line.split())
    found = [row.partition(":")[0] for row in out.splitlines()[:-1] if not row.startswith(" ")]
    assert (found, code) == (rules, int(bool(rules)))


def write_images(folder, classes, each=3):
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(each):
            grey = (60 * label + 9 * i,) * 3
            Image.new("RGB", (12, 10), grey).save(folder / f"class{label}" / f"{i}.png")


def test_images_of_a_folder_are_the_batch_and_its_folders_the_classes(capsys, tmp_path):
    write_images(tmp_path / "data", classes=2)
    line = ["--data", str(tmp_path / "data"), "--batch", "6", "--size", "8"]
    line += ["--quiet", "--threads", "1", "--json", str(tmp_path / "a.json")]
    assert run(capsys, "audit", f"{HERE}coupled", *line)[0] == 1
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["samples"] == 6
    assert [f["kind"] for f in found["findings"] if f["kind"] == "not i.i.d."] == ["not i.i.d."]


def test_a_folder_without_enough_images_is_one_line(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path / "empty", "0 images"),
    ):
        code, _, err = run(capsys, "audit", f"{HERE}clean", "--data", str(path), "--quiet")
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert words in err


def test_a_mode_that_cannot_be_audited_is_no_success(capsys):
    code, out, _ = run(capsys, "audit", f"{HERE}only_eval", *QUIET)
    assert code == 1
    assert "could not be audited in train mode" in out


class OnlyEval(nn.Module):
    def forward(self, x):
        if self.training:
            raise ValueError("no training here")
        return x


def only_eval():
    return OnlyEval()
