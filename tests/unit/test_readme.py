"""The README tells the truth: its program prints what it says, its commands and its files exist."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from needle.optim import SGD

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```\s+prints\s+```text\n(.*?)```", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")


def same(printed: str, promised: str) -> bool:
    """Equal texts, but a number may be off by one in its last decimal: BLAS builds sum in other orders."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", promised):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(promised), strict=True)
    return all(
        len(a.split(".")[1]) == len(b.split(".")[1])
        and math.isclose(float(a), float(b), rel_tol=0, abs_tol=1.01 * 10.0 ** -len(b.split(".")[1]))
        for a, b in pairs
    )


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("loss 0.1234\n", True),
        ("loss 0.1235\n", True),
        ("loss 0.1236\n", False),
        ("loss 0.12340\n", False),
        ("loss -0.1234\n", False),
        ("cost 0.1234\n", False),
        ("loss 0.1234\nloss 0.1\n", False),
        ("", False),
    ],
)
def test_the_comparison_allows_the_last_decimal_and_no_more(printed, verdict):
    assert same(printed, "loss 0.1234\n") is verdict


def test_the_suspect_of_the_failing_example_is_named_by_its_line():
    (named,) = re.findall(r"SGD velocity update \(needle/optim\.py:(\d+)\)", README)
    assert int(named) == SGD.step.__code__.co_firstlineno


def test_every_program_is_checked():
    assert len(PROGRAMS) == README.count("```python") > 0


@pytest.mark.parametrize(("program", "promised"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_prints_what_the_readme_says(program, promised):
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert same(run.stdout, promised), run.stdout


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "reports/README.md"])
def test_every_session_named_exists(page):
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    exist = set(re.findall(r"^@nox\.session.*\ndef (\w+)", noxfile, re.MULTILINE))
    assert set(re.findall(r"nox -s (\w+)", (ROOT / page).read_text("utf-8"))) <= exist


def test_every_file_on_the_map_exists():
    folder, paths = ROOT, []
    for line in README.split("## What is where")[1].splitlines():
        if entry := re.match(r" {4}( *)([\w./]+)(?:  |$)", line):
            if entry[1]:
                paths.append(folder / entry[2])
            else:
                folder = ROOT / entry[2]
                paths.append(folder)
    assert {ROOT / "needle/ops.py", ROOT / "tests/cases", ROOT / "noxfile.py"} <= set(paths)
    assert [str(path) for path in paths if not path.exists()] == []
