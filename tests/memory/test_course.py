"""`memory --needle DIR`: of another needle, growth is told with its holder, and nothing else is a failure."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("memray", reason="memray does not exist on this system")

from needles.mistakes import MISTAKES

from oracle.cases import case as c
from oracle.memory.gates import failures, grows, hints
from oracle.memory.probe import STEPS, Measured

ROOT = Path(__file__).parents[2]


def oracle(*words):
    return subprocess.run(
        [sys.executable, "-m", "oracle", *map(str, words)],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def memory(needle, out, *given):
    done = oracle("memory", "--needle", needle, "--out", out, "--workers", "1", *given)
    return done, json.loads((out / "memory.json").read_text())


def test_a_correct_one_with_cycles_is_flat_and_the_cycles_are_said_once(tmp_path):
    done, summary = memory(ROOT / "tests/needles/plain", tmp_path, "--model", "clipping")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "memory does not grow in any of 1 models" in done.stdout
    assert done.stdout.count("cycle collector") == 1
    assert summary["rows"][0]["failures"] == {}
    assert "Tensors" in (tmp_path / "memory.html").read_text()


def test_two_leaks_in_one_needle_are_two_findings_each_with_its_line(tmp_path):
    velocity, statistic = (
        next(m for m in MISTAKES if m.name == name)
        for name in ("the velocity keeps its graph", "a running statistic keeps its graph")
    )
    folder = velocity.planted(tmp_path / "needle", statistic)
    texts = velocity.texts(statistic)
    model = (c.Linear(3), c.BatchNorm(), c.Linear(2))
    case = c.TrainCase(
        model, c.Data(4, 3), c.SoftmaxLoss(), c.SGD(momentum=0.9), seed=0, steps=STEPS, memory=c.Memory()
    )
    path = tmp_path / "case.json"
    path.write_bytes(c.encode(case))
    done = oracle("replay", path, "--needle", folder)
    assert done.returncode == 1, done.stdout + done.stderr
    for mistake, keeper in ((velocity, "SGD.u"), (statistic, "BatchNorm1d.running_mean")):
        finding = re.search(
            rf"^\d\. memory grows .*: {keeper} holds the graph of every step.*\n   at +(\S+):(\d+)", done.stdout, re.M
        )
        assert finding, done.stdout
        assert finding[1] == f"needle/{mistake.file}"
        assert any(int(finding[2]) in lines for lines in mistake.lines(texts[mistake.file])), finding[0]


def test_one_that_cannot_train_gets_no_verdict(tmp_path):
    package = tmp_path / "needle"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from types import SimpleNamespace\n\n\nclass Tensor:\n    def backward(self):\n        raise NotImplementedError\n\n\n"
        "nn = SimpleNamespace(Module=object, Parameter=Tensor)\noptim = SimpleNamespace()\n"
    )
    done, _ = memory(tmp_path, tmp_path / "out")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "no verdict: layer Linear, loss SoftmaxLoss, optimizer SGD is not offered" in done.stdout


@pytest.mark.parametrize(
    ("series", "rate"),
    [
        ([7] * 11, 0),
        ([0, 5, 0, 5, 0, 5, 0, 5, 0, 5, 0], 0),  # goes up and down
        ([0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], 0),  # a cache is filled once
        (list(range(0, 110, 10)), 10),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3], pytest.approx(1 / 3, rel=0.1)),
        ([5], 0),
    ],
)
def test_what_grows(series, rate):
    assert grows(series) == rate


def test_cycles_and_what_is_held_for_a_while_are_hints_and_growth_is_not():
    steps = STEPS + 1
    flat = Measured([9] * steps, [9] * steps, [3] * steps, [0] * steps, with_graph=4, wide=["0.weight"])
    assert failures(flat, course=True) == {}
    assert list(hints(flat)) == ["cycles", "kept", "float64"]
    assert set(failures(flat)) == {"A", "B"}, "of ours, both are failures"
    grown = Measured([9 + t for t in range(steps)], [9] * steps, [0] * steps, list(range(steps)))
    assert set(failures(grown, course=True)) == {"A", "C"}
