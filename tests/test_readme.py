"""The README's code blocks run, its files exist, its numbers are those of the committed rows."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from batchfree.cli import main
from batchfree.experiments.results import read_results
from batchfree.report.series import cell, norms

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [
    line.split("  #")[0].strip()
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line.strip()
]


def test_every_block_has_a_language_that_is_run_here():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert README.count("```") == 2 * len(BLOCKS)
    assert PYTHON
    assert SHELL


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[0][:40])
def test_python_block(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("line", [s for s in SHELL if s.startswith("make ")])
def test_make_target(line):
    done = subprocess.run(
        [*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Minutes of training, or images of the reader's: the commands' own tests stand for these.
LONG = ("batchfree demo", "batchfree reproduce", "batchfree predict")


@pytest.mark.parametrize("line", [s for s in SHELL if s.startswith("batchfree ")])
def test_batchfree_command(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT if "results/" in line else tmp_path)
    words = shlex.split(line)[1:]
    if line.startswith(LONG):
        words = [words[0], "--help"]
    elif words[0] == "report":
        words = [*words, "-o", str(tmp_path / "report.html")]
    elif "imagenet" in line or "coco" in line:
        words = [*words, "--print_config"]
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", [s for s in SHELL if not s.startswith(("make ", "batchfree "))])
def test_other_shell_lines_are_the_expected_ones(line):
    assert line.startswith(("pip install", "git clone", "cd "))


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def results_table(path):
    """The README's table of a results file: mean validation error, lowest to highest seed."""
    results = read_results(path)
    lines = [f"| norm | {' | '.join(map(str, results.sizes))} |"]
    lines.append("|---|" + "---|" * len(results.sizes))
    for norm in norms(results):
        found = [cell(results, norm, size) for size in results.sizes]
        if found[0].shared:
            found = found[:1]
        texts = [f"{c.mean:.2f} ({c.low:.2f} to {c.high:.2f})" for c in found]
        if len(found) == 1:
            texts += ["same run"] * (len(results.sizes) - 1)
        lines.append(f"| {norm.upper()} | {' | '.join(texts)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["batch-size"])
def test_the_table_of_results_is_that_of_the_committed_rows(name):
    table = results_table(ROOT / "results" / name / "results.json")
    assert table in README, f"the README should show\n{table}"


def test_the_committed_rows_are_of_a_clean_commit_with_three_seeds():
    results = read_results(ROOT / "results" / "batch-size" / "results.json")
    assert all(row.commit and not row.commit.endswith("+dirty") for row in results.rows)
    for norm in norms(results):
        assert len(cell(results, norm, results.sizes[0]).seeds) >= 3


def tuning_table(folder):
    """The table of the short sweeps: validation error of BN at 32 and of GN, one seed."""
    lines = ["| changed from the recipe | BN at 32 | GN |", "|---|---|---|"]
    for path in sorted(folder.glob("*/results.json")):
        results = read_results(path)
        errors = {row.norm: f"{row.val_error:.1f}" for row in results.rows}
        lines.append(f"| `{path.parent.name}` | {errors['bn']} | {errors['gn']} |")
    return "\n".join(lines)


def test_the_table_of_short_sweeps_is_that_of_the_committed_rows():
    table = tuning_table(ROOT / "results" / "tuning")
    assert table in (ROOT / "docs" / "batch-size.md").read_text(), f"it should show\n{table}"
