"""A test that finds something though it should not: the files lie in reports/latest, and the text is shown once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from found import agreed

from oracle import commands

ROOT = Path(__file__).parents[2]

FAILING = """
from pathlib import Path

import found
from oracle import commands

commands.ROOT = Path(__file__).parent


def test_finds(tmp_path):
    (tmp_path / "0123abcd.json").write_text("new")
    (tmp_path / "summary.json").write_text("new")
    found.agreed(1, tmp_path, "needle and torch part at step 0\\n  needle   1.25")
"""


def test_nothing_happens_where_all_agrees(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "0123abcd.json").write_text("x")
    agreed(0, tmp_path, "text")
    assert not (tmp_path / commands.LATEST).exists()


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_found_is_kept_and_shown_once(tmp_path, ci):
    (tmp_path / "test_finds.py").write_text(FAILING, encoding="utf-8")
    latest = tmp_path / commands.LATEST
    latest.mkdir(parents=True)
    (latest / "summary.json").write_text("old")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            tmp_path,
            "-p",
            "no:cacheprovider",
            tmp_path,
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "CI": ci},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("needle   1.25") == 1
    assert f"exit code 1: they part; 2 files in {commands.LATEST}" in done.stdout
    assert (latest / "0123abcd.json").read_text() == (latest / "summary.json").read_text() == "new"
    assert (latest / "earlier" / "summary.json").read_text() == "old"
