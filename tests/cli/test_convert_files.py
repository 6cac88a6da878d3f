"""Files of `batchfree convert` that cannot be used or written: exit code 2, 1 says "moved"."""

import importlib
import json

import pytest
import torch
from command_line import run
from test_convert_command import net

from batchfree._naming import load_model, load_weights
from batchfree.convert import plan_conversion

NET = "test_convert_command:net"
QUIET = ("--quiet", "--threads", "1")


def fails(capsys, *line):
    """The error's line, without \"batchfree: error\"."""
    code, _, err = run(capsys, "convert", NET, *map(str, line), *QUIET)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    return err


def plan_file(tmp_path, change=lambda layers: None):
    """A plan's file, changed."""
    found = json.loads(plan_conversion(net()).to_json())
    change(found["layers"])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layers: layers.pop(0), "no row for 1 of the model's BatchNorms ('1' first)"),
        (lambda layers: layers[0].update(groups=5), "layer '1': num_groups must divide"),
        (lambda layers: layers[0].update(path="7"), "the plan is of another model"),
        (lambda layers: layers[0].update(eps=-1), "layer '1': eps must be a finite number"),
        (lambda layers: layers[0].update(then=None), "layer '1': then must be a list of str"),
    ],
)
def test_a_plan_is_checked_against_the_model(capsys, tmp_path, dry, change, words):
    output = ["--dry-run"] if dry else ["--output", tmp_path / "o.safetensors"]
    assert words in fails(capsys, "--plan", plan_file(tmp_path, change), *output)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_that_fits_is_shown(capsys, tmp_path):
    line = ("--plan", str(plan_file(tmp_path)), "--dry-run")
    assert run(capsys, "convert", NET, *line)[0] == 0


def test_a_plan_that_is_no_text(capsys, tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe{")
    assert "cannot be read as a plan" in fails(
        capsys, "--plan", tmp_path / "plan.json", "--dry-run"
    )


def test_a_dry_run_writes_over_no_model(capsys, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    assert "give --output a name that ends with .json" in fails(
        capsys, "--dry-run", "--output", path
    )
    assert path.read_bytes() == b"weights"


@pytest.mark.parametrize("which", ["o.safetensors", "r.html", "r.json"])
def test_what_turns_out_unwritable_is_exit_code_2(capsys, tmp_path, monkeypatch, which):
    torch.save(net().state_dict(), tmp_path / "net.pt")
    modules = [importlib.import_module(f"batchfree.{n}") for n in ("cli.convert", "convert.saving")]
    write = modules[0].write_atomically

    def full(path, content):
        if path.name == which:
            raise OSError(28, "No space left on device")
        write(path, content)

    for module in modules:
        monkeypatch.setattr(module, "write_atomically", full)
    line = ["--weights", tmp_path / "net.pt", "--output", tmp_path / "o.safetensors"]
    line += ["--report", tmp_path / "r.html", "--json", tmp_path / "r.json"]
    err = fails(capsys, *line)
    assert f"{which} cannot be written: No space left on device" in err
    assert not (tmp_path / which).exists()


class Wrapped(torch.nn.Module):
    """A model whose own names begin with `module.`."""

    def __init__(self):
        super().__init__()
        self.module = net()

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m),
        lambda m: torch.nn.DataParallel(torch.compile(m)),
        lambda m: torch.compile(torch.nn.DataParallel(m)),
        lambda m: torch.nn.Sequential(torch.compile(m[0]), *m[1:]),
    ],
    ids=["compiled", "parallel compiled", "compiled parallel", "a part compiled"],
)
def test_checkpoints_of_compiled_models_load(tmp_path, wrap):
    model = net()
    state = wrap(model).state_dict()
    assert any("_orig_mod" in name for name in state)
    torch.save(state, tmp_path / "net.pt")
    loaded = load_model(NET, tmp_path / "net.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_names_that_are_the_models_own_stay(tmp_path):
    model = Wrapped()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    load_weights(other := Wrapped(), tmp_path / "net.pt")
    assert torch.equal(other.module[0].weight, model.module[0].weight)
