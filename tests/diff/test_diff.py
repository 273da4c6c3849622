"""What `nox -s diff` promises: the ci profile agrees, on generated models and on real data; kept cases stay fixed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from found import agreed

import needle
from oracle.blame import judged, report
from oracle.cases import case as c
from oracle.cases import coverage
from oracle.commands import Asked
from oracle.exits import ExitCode
from oracle.operations import OPERATIONS

ROOT = Path(__file__).parents[2]
CASES = sorted((ROOT / "tests" / "cases").glob("*.json"))


@pytest.fixture(scope="module")
def ci_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diff")
    command = [sys.executable, "-m", "oracle", "diff", "--profile", "ci", "--verbose", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True)
    agreed(done.returncode, folder, done.stdout + done.stderr)
    return done, json.loads((folder / "summary.json").read_text())


def test_the_ci_profile_agrees(ci_run):
    done, summary = ci_run
    assert "0 divergences in 500 cases" in done.stdout
    assert summary["failures"] == []
    assert summary["oracle_errors"] == []
    assert summary["tensors"] > 50_000
    assert summary["out_of_domain"] < 0.1 * 500
    assert max(v for k, v in summary["largest_share"].items()) < 1


IN_TURN = (
    "loss SoftmaxLoss, ",  # a label for each dtype of labels
    *("second ", "twice ", "three times ", "long ", "dtype ", "dtypes ", "program ", "index ", "power ", "argument "),
    *("beside ", "alone ", "rows ", "lying ", "nonfinite "),
    *("batch above 1,024", "batch labels above 63", "parameter ", "size "),
    *(f"model float{n} on " for n in (16, 32, 64)),  # eight of them share six cases in a hundred
)


def test_it_reaches_all_that_there_is_to_reach(ci_run):
    done, summary = ci_run
    assert set(summary["coverage"]) == set(coverage.LABELS)
    assert summary["missed"] == [label for label, count in summary["coverage"].items() if not count]
    # these have few cases in a hundred, or many labels that take turns; a longer run makes up for it
    assert [label for label in summary["missed"] if not label.startswith(IN_TURN)] == []
    ops = len(OPERATIONS)
    assert re.search(rf"^op +{ops} of {ops}: ", done.stdout, re.MULTILINE)
    assert re.search(r"^missed +", done.stdout, re.MULTILINE)


def test_the_summary_says_where_the_time_went(ci_run):
    done, summary = ci_run
    assert {"needle", "torch", "truth", "rules", "OP", "drawing"} <= set(summary["seconds"])
    assert summary["cpu_seconds"] > 0
    assert 0 < summary["start_seconds"] < summary["start_seconds"] + summary["wall_seconds"]
    line = " ".join(done.stdout.split())
    assert "inside needle" in line
    assert "around them" in line
    assert f"per second of a core, {summary['start_seconds']:.1f} s before the first" in line


def test_it_learns_the_digits(ci_run):
    done, summary = ci_run
    digits = summary["digits"]
    print(f"UCI digits: accuracy {digits['accuracy']:.1%}, {digits['tensors']:,} tensors compared")
    assert digits["accuracy"] >= 0.95
    assert digits["tensors"] > 30_000
    assert "test accuracy" in done.stdout


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_a_case_that_once_failed_agrees(path, tmp_path):
    case = c.read(path)
    assert path.stem == case.digest, f"rename it to {case.digest}.json: a case file is named by its digest"
    verdict = judged(case, needle, validate=True)
    if verdict.divergence is not None:
        report.write(case, verdict.divergence, Asked(folder=tmp_path))
        agreed(ExitCode.PART, tmp_path, report.block(case, verdict.divergence, Asked().replay(case.digest)))
    assert verdict.oracle_errors == []
