"""Whole runs on correct needles of the course's design, and on some of the mistakes that people make; `nox -s needles` has all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEEDLES = Path(__file__).parents[1] / "needles"

# one of each kind: an operator, a gradient, a keyword, a layer, an optimizer that holds on to graphs, a walk
SOME = (
    "reflected minus", "an axis is added", "keep_dims", "batch statistics in evaluation", "velocity keeps its graph", "recursive",
    "modules of a dict", "all optimizers have one state",  # what only programs show
    # and pairs, of which one hid the other where "it runs that function" was taken for evidence
    "shapes compared from the left + batch statistics in evaluation", "the mask is float64 + eps beside the root",
    # and what is found of every Tensor, beside what it causes
    "a result asks for no gradient + eps beside the root",
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "cases"), [(("plain", "arrays", "lazy", "named"), 60), (SOME, 0)], ids=["correct", "mistakes"]
)
def test_needles(names, cases):
    words = [word for name in names for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, NEEDLES / "run.py", "--cases", str(cases), *words],
        env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(names)} of {len(names)} as they should be" in done.stdout
