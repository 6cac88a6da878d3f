"""The house's rules: who imports whom, what `import batchfree` costs, which names are public."""

import ast
import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import batchfree

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "batchfree"
ORDER = [
    {"_errors", "_checks", "_files", "_weights", "_naming"},
    {"ops"},
    {"nn"},
    {"audit", "convert", "fuse", "models"},
    {"data"},
    {"train"},
    {"recipes"},
    {"experiments"},
    {"bench"},
    {"report"},
    {"cli"},
]
RANK = {name: i for i, level in enumerate(ORDER) for name in level}
PUBLIC = [
    "AuditReport",
    "BackendError",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConfigError",
    "ConversionPlan",
    "ConversionReport",
    "ConversionResult",
    "ConversionWarning",
    "DataError",
    "DegenerateGroupWarning",
    "FrozenBatchNorm",
    "GroupNorm",
    "GroupNorm1",
    "Groups",
    "InstanceNorm",
    "NoNorm",
    "NormLayer",
    "ResultsError",
    "SyncBatchNorm",
    "WeightStandardizedConv2d",
    "__version__",
    "assert_batch_independent",
    "audit",
    "backend",
    "convert",
    "fuse",
    "group_norm",
    "load_converted",
    "norm_layer",
    "plan_conversion",
    "save_converted",
    "standardize_weights",
]


def imports(path):
    """Every batchfree part that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            names = [node.module]
            if node.module == "batchfree":
                names = [f"batchfree.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "batchfree" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_a_folder_imports_only_what_stands_to_its_left(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in RANK, f"{part} has no place in the import rule"
    for imported in imports(path):
        if imported in RANK:
            assert RANK[imported] <= RANK[part], f"{path} imports batchfree.{imported}"
        else:
            assert imported in PUBLIC, f"{path} imports batchfree.{imported}"
            assert imported == "__version__" or RANK[part] > RANK["nn"]


def test_the_import_rule_stands_in_contributing():
    line = re.search(r"`(_errors, .* → cli)`", (ROOT / "CONTRIBUTING.md").read_text())
    written = [set(level.split(", ")) for level in line[1].split(" → ")]
    assert written == ORDER


@pytest.mark.parametrize("part", sorted(RANK))
def test_the_picture_in_contributing_shows_every_part(part):
    name = f"{part}.py" if (SOURCE / f"{part}.py").exists() else f"{part}/"
    assert re.search(rf"^  {re.escape(name)} ", (ROOT / "CONTRIBUTING.md").read_text(), re.M)


def test_public_names_are_frozen():
    assert sorted(batchfree.__all__) == sorted(PUBLIC)
    for name in batchfree.__all__:
        assert getattr(batchfree, name, None) is not None


def test_version_is_written_once_more_only():
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{batchfree.__version__}"' in pyproject
    assert f"## {batchfree.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_lean():
    code = """
import json, sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import batchfree
seconds = time.perf_counter() - start
added = {m.split(".")[0] for m in set(sys.modules) - before}
heavy = ["torchvision", "lightning", "triton", "timm", "plotly", "sklearn", "jsonargparse", "numpy"]
print(json.dumps(dict(
    added=sorted(added),
    heavy=[m for m in heavy if m in added],
    cuda=torch.cuda.is_initialized(),
    seconds=seconds,
)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["heavy"] == []
    assert not found["cuda"]
    assert found["seconds"] < 1.0


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_no_pickle_no_shell_no_unsafe_load(path):
    text = path.read_text()
    assert "weights_only=False" not in text
    assert "shell=True" not in text
    assert not re.search(r"\b(pickle|marshal)\.loads?\(|yaml\.(unsafe_)?load\(", text)


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in listed.stdout.split("\n") if name]


def test_no_machine_path_and_no_registry_address_is_committed():
    pattern = re.compile(r"/(root|home|work)/\w+|index-url|find-links|simple/$", re.M)
    for path in tracked_files():
        if path == Path(__file__) or not path.exists() or path.suffix in {".png", ".svg"}:
            continue
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found[0]!r}"


def test_every_exported_name_is_what_its_home_defines():
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE.parent).with_suffix("")
        if module.name != "__main__":
            importlib.import_module(".".join(p for p in module.parts if p != "__init__"))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "batchfree":
            for exported in getattr(module, "__all__", ()):
                assert not isinstance(getattr(module, exported), types.ModuleType), (name, exported)
