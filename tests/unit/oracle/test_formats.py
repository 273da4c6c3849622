"""What CI reads of a run says what the exit code says, and can be read by what reads it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import junitparser
import pytest

from oracle.runs import formats

ROOT = Path(__file__).parents[3]


def failure(number=0, **other):
    return {
        "case": f"{number:08x}",
        "count": 3,
        "culprit": "Tanh backward",
        "headline": "needle and torch part at step 0: adjoint 0[0]",
        "block": "needle and torch part at step 0: adjoint 0[0]\n  error    0.24, allowed 3e-06",
        "rule": "G",
        "suspect": {"what": "Tanh backward", "line": "needle/ops.py:574"},
        **other,
    }


def summary(*failures, code=None, **other):
    code = code if code is not None else (1 if failures else 0)
    return {
        "seed": 3,
        "workers": 2,
        "cases": {"train": 60, "op": 40},
        "steps": 200,
        "tensors": 12_345,
        "elements": 99_999,
        "digest": "0123456789abcdef",
        "again": "nox -s diff -- --seed 3 --cases 100",
        "wall_seconds": 1234.5,
        "largest_share": {"G activation": 0.1, "G loss": 0.3, "P loss": 0.2},
        "largest_share_at": {"G loss": "0000abcd loss loss"},
        "oracle_errors": [],
        "harness_errors": [],
        "interrupted": False,
        "failures": list(failures),
        "exit_code": code,
        "exit_codes": [code],
        **other,
    }


# -- JUnit


def test_junit_of_a_good_run_has_a_passing_test_for_each_rule():
    suite = ElementTree.fromstring(formats.junit(summary())).find("testsuite")
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert [c.attrib["name"].partition(":")[0] for c in suite.iter("testcase")] == [f"rule {r}" for r in formats.RULES]
    assert suite.attrib["tests"] == str(len(formats.RULES))
    assert "0.3 of it, G loss, 0000abcd" in next(t.text for t in suite.iter("system-out"))


def test_junit_of_a_failing_run_names_entry_and_rule():
    data = summary(failure(1), failure(2, rule="dtype"), failure(3, failure={"kind": "TypeError"}))
    root = ElementTree.fromstring(formats.junit(data))
    entries = [c for c in root.iter("testcase") if c.attrib["classname"] == "oracle.entries"]
    assert [c.attrib["name"] for c in entries] == [f"0000000{n}: Tanh backward" for n in (1, 2, 3)]
    assert [c.find("failure").attrib["type"] for c in entries] == ["G", "form", "behaviour"]
    assert "error    0.24" in entries[0].find("failure").text
    rules = [
        c for c in root.iter("testcase") if c.attrib["classname"] == "oracle.rules" and c.find("failure") is not None
    ]
    assert [c.attrib["name"].partition(":")[0] for c in rules] == ["rule form", "rule G", "rule behaviour"]
    assert root.attrib["failures"] == "6" == str(len(list(root.iter("failure"))))


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("the oracle contradicts itself", {"oracle_errors": ["rule P"], "code": 3}),
        ("the harness itself failed", {"harness_errors": ["ValueError: x"], "code": 4}),
        ("interrupted", {"interrupted": True, "code": 130}),
        ("no verdict", {"code": 5}),
    ],
)
def test_what_is_no_success_is_an_error_everywhere(what, other):
    data = summary(**other)
    root = ElementTree.fromstring(formats.junit(data))
    (error,) = root.iter("error")
    assert error.attrib["type"] == what
    assert root.attrib["errors"] == "1"
    assert f"title={what}" in "".join(formats.annotated(data, ROOT, ROOT))
    assert f"**{what}**" in formats.step_summary(data)
    assert "0 divergences" not in formats.step_summary(data)


def test_junit_keeps_within_xml():
    text = formats.junit(summary(failure(block="a\x00\x1b[31m\ud800 ]]> <b> \U0001f600", culprit="\x07")))
    found = ElementTree.fromstring(text.encode("utf-8")).find(".//testcase[@classname='oracle.entries']/failure")
    assert found.text == "a\ufffd\ufffd[31m\ufffd ]]> <b> \U0001f600"


def test_junit_is_read_back_by_a_library():
    read = junitparser.JUnitXml.fromstring(formats.junit(summary(failure(1), failure(2))).encode())
    (suite,) = read
    assert (suite.tests, suite.failures, suite.errors) == (len(formats.RULES) + 2, 3, 0)
    assert sum(bool(case.result) for case in suite) == 3
    before = (read.tests, read.failures, read.errors)
    read.update_statistics()  # counts anew
    assert (read.tests, read.failures, read.errors) == before


# -- GitHub


def test_an_annotation_stands_at_the_suspects_line(tmp_path):
    (line,) = formats.annotated(summary(failure(culprit="a,b:c 100%\nd")), tmp_path / "python", tmp_path)
    assert line.startswith(
        "::error file=python/needle/ops.py,line=574,title=00000000%3A a%2Cb%3Ac 100%25%0Ad::needle and torch part"
    )
    assert "\n" not in line
    assert line.endswith("0%5D%0A  error    0.24, allowed 3e-06".replace("%5D", "]"))


@pytest.mark.parametrize("suspect", [None, {"line": ""}, {"line": "needle/ops.py"}])
def test_without_a_known_line_it_stands_without_a_file(tmp_path, suspect):
    (line,) = formats.annotated(summary(failure(suspect=suspect)), tmp_path, tmp_path)
    assert line.startswith("::error title=")


def test_a_needle_outside_the_workspace_gives_no_path(tmp_path):
    (line,) = formats.annotated(summary(failure()), tmp_path / "elsewhere", tmp_path / "here")
    assert "file=" not in line


@pytest.mark.parametrize(("entries", "lines"), [(9, 9), (10, 10), (11, 10), (40, 10)])
def test_no_more_annotations_than_are_shown(entries, lines):
    found = list(formats.annotated(summary(*map(failure, range(entries))), ROOT, ROOT))
    assert len(found) == lines
    assert (f"title={entries - 9} more divergences" in found[-1]) == (entries > 10)


def test_the_summary_has_each_entry_and_survives_its_fences():
    text = formats.step_summary(summary(failure(block="```\nx"), failure(2)))
    assert text.startswith("## needle against PyTorch: 2 divergences in 100 cases\n")
    assert text.count("### Tanh backward") == 2
    assert "\n````\n```\nx\n````\n" in text


@pytest.mark.parametrize("limit", [0, 300, 2_000, 5_000])
def test_the_summary_keeps_its_limit_and_counts_the_rest(limit):
    text = formats.step_summary(summary(*(failure(n, block="é" * 200) for n in range(40))), limit)
    assert len(text.encode()) <= limit
    shown = text.count("### ")
    assert limit < 1_000 or f"… and {40 - shown} more" in text


def test_the_summary_is_appended_within_what_is_left(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("x" * (formats.SUMMARY_BYTES - 100))
    formats.write_step_summary(summary(failure()), path)
    assert formats.SUMMARY_BYTES - 100 < path.stat().st_size <= formats.SUMMARY_BYTES
    formats.write_step_summary(summary(failure()), path)
    assert path.stat().st_size <= formats.SUMMARY_BYTES


# -- the command


def test_the_command_writes_what_it_is_asked_for(tmp_path):
    """A planted fault, in a needle that lies in the workspace."""
    copy = tmp_path / "python" / "needle"
    copy.mkdir(parents=True)
    for path in (ROOT / "needle").glob("*.py"):
        text = path.read_text("utf-8")
        if path.name == "ops.py":
            assert text.count("return (g * (1 - y * y),)") == 1
            text = text.replace("return (g * (1 - y * y),)", "return (g * (1 - y),)")
            line = 1 + text[: text.index("return (g * (1 - y),)")].count("\n")
        (copy / path.name).write_text(text, "utf-8")
    environment = {
        **os.environ,
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"),
        "PYTHONPATH": str(ROOT),
    }
    arguments = "diff --needle python --seed 0 --cases 100 --workers 1 --no-digits --json - --junitxml j.xml --out out"
    done = subprocess.run(
        [sys.executable, "-m", "oracle", *arguments.split()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)  # standard output has nothing else
    assert data == json.loads((tmp_path / "out/summary.json").read_text())
    assert data["exit_code"] == 1
    (first, *_) = [x for x in done.stderr.splitlines() if x.startswith("::error file=")]
    at = int(re.match(r"::error file=python/needle/ops\.py,line=(\d+),", first)[1])
    assert at <= line <= at + 3  # the method's first line
    step = (tmp_path / "step.md").read_text()
    assert "### Tanh.vjp\n" in step, "named by their function"
    assert f"suspect  Tanh backward (needle/ops.py:{at}); " in step
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert len(root.findall(".//testcase[@classname='oracle.entries']")) == len(data["failures"])


def test_a_format_that_cannot_be_written_costs_no_verdict(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    asked = formats.Asked(junitxml=tmp_path / "file" / "j.xml", json=str(tmp_path / "file" / "s.json"))
    asked.write(summary(), ROOT)
    said = capsys.readouterr().err
    assert "named by --junitxml: " in said
    assert "named by --json: " in said
