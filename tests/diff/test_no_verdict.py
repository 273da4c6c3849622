"""Another needle that cannot be judged, or lacks what somebody requires of it: what the exit code says of it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "tests" / "needles" / "plain" / "needle"
TO_WRITE = (
    "compute",
    "gradient",
    "forward",
    "step",
    "compute_gradient_of_variables",
    "find_topo_sort",
    "topo_sort_dfs",
)


def emptied(folder, *names, classes=()):
    """A correct needle as its author got it: the named functions are still to be written, in all classes or in some."""
    shutil.copytree(PLAIN, folder / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "needle").glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for kind in ast.walk(tree):
            if classes and not (isinstance(kind, ast.ClassDef) and kind.name in classes):
                continue
            for function in ast.walk(kind) if classes else [kind]:
                if isinstance(function, ast.FunctionDef) and function.name in names:
                    function.body = ast.parse("raise NotImplementedError()").body
        path.write_text(ast.unparse(tree), "utf-8")
    return folder


def diff(folder, out, *words):
    command = [sys.executable, "-m", "oracle", "diff", "--needle", folder, "--cases", "1", "--seed", "1", "--out", out]
    done = subprocess.run(
        [*command, "--no-digits", "--workers", "1", *words], cwd=ROOT, env=os.environ | {"NO_COLOR": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    return done, done.stdout.split("\n\n")[1].replace("\n", " ")


@pytest.mark.parametrize(
    ("names", "classes", "why"),
    [
        (TO_WRITE, (), "layer Linear, loss SoftmaxLoss, optimizer SGD"),
        (("forward",), ("SoftmaxLoss",), "loss SoftmaxLoss"),
    ],
    ids=["skeleton", "no SoftmaxLoss"],
)
def test_without_a_training_run_there_is_no_verdict(tmp_path, names, classes, why):
    done, verdict = diff(emptied(tmp_path / "needle", *names, classes=classes), tmp_path / "out")
    assert done.returncode == 5, done.stdout + done.stderr
    assert verdict == f"no verdict: {why} is not offered, and without it there is no training run"
    assert "exit code 5" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_what_is_required_and_absent_is_a_finding_and_what_is_there_is_none(tmp_path):
    folder = emptied(tmp_path / "needle", "forward", classes=("Dropout",))
    done, verdict = diff(
        folder, tmp_path / "out", "--require", "Dropout", "--require", "BatchNorm1d", "--require", "tanh"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdict.startswith("1 finding in ")
    assert "1. Dropout is required, and is not offered" in done.stdout
    assert "BatchNorm1d is required" not in done.stdout
