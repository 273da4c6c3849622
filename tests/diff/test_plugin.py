"""The plugin makes a needle one test of somebody's suite, and is nothing without its flag."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tmp_path):
    """A stranger's project: a test of its own, and a needle."""
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")

    def run(*arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GITHUB_"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "oracle.plugin", "-p", "no:cacheprovider", *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    run.folder = tmp_path
    return run


def copied(folder, old="", new=""):
    """Our needle in somebody's folder, with a fault planted in ops.py."""
    (folder / "needle").mkdir(parents=True)
    for path in (ROOT / "needle").glob("*.py"):
        text = path.read_text("utf-8")
        if path.name == "ops.py" and old:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / "needle" / path.name).write_text(text, "utf-8")


def test_without_its_flag_it_adds_nothing_and_loads_nothing_heavy(suite):
    done = suite("-q")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    code = "import sys, oracle.plugin; print(sorted({'numpy', 'torch', 'hypothesis', 'msgspec', 'rich'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"


def test_a_good_needle_is_one_more_test_that_passes(suite):
    copied(suite.folder / "python")
    done = suite("-v", "--oracle-needle", "python", "--oracle-cases", 100, "--junitxml", "j.xml")
    assert done.returncode == 0, done.stdout
    assert "oracle::needle against PyTorch PASSED" in done.stdout
    assert "2 passed" in done.stdout
    read = {p.attrib["name"]: p.attrib["value"] for p in ElementTree.parse(suite.folder / "j.xml").iter("property")}
    assert int(read["oracle tensors"]) > 1_000


def test_a_wrong_one_fails_with_what_the_run_says_and_no_traceback(suite):
    copied(suite.folder / "python", "return (g * (1 - y * y),)", "return (g * (1 - y),)")
    done = suite("--oracle-needle", "python", "--oracle-cases", 100)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    lines = (suite.folder / "python" / "needle" / "ops.py").read_text("utf-8").splitlines()
    at = next(i for i in range(lines.index("class Tanh(TensorOp):"), len(lines)) if "def vjp(" in lines[i])
    assert f"needle/ops.py:{at + 1} in Tanh.vjp\n" in done.stdout
    assert done.stdout.count("exit code 1: they part") == 1
    assert "Traceback" not in done.stdout
    assert "plugin.py" not in done.stdout


def test_flags_without_the_first_are_no_success(suite):
    for flag in ("--oracle-cases", "--oracle-seed"):
        done = suite("-q", flag, 100)
        assert done.returncode == 4, done.stdout
        assert f"{flag} goes with --oracle-needle DIR" in done.stderr


def test_a_needle_that_is_not_there_is_no_success(suite):
    done = suite("--oracle-needle", "nowhere")
    assert done.returncode == 1
    assert "there is no package" in done.stdout
