"""The table of exit codes (oracle/README.md), a test for each row: what the code says is true, and 0 is never a lie."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import needle
from oracle import apart, blame, exits
from oracle.__main__ import main
from oracle.blame import script
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.exits import ExitCode
from oracle.operations import OPERATIONS
from oracle.rules.verdict import Divergence
from oracle.runs import runner
from oracle.runs.real_data import digits_case

ROOT = Path(__file__).parents[2]
OP = c.OpCase(op="tanh", operands=(c.Operand((2,), (0.5, -1.0)),))
PLAIN = c.OpCase(op="exp", operands=(c.Operand((2,), (0.5, -1.0)),))
TRAIN = c.TrainCase(
    model=(c.Linear(2), c.Tanh()),
    data=c.Data(rows=2, features=2),
    loss=c.WeightedSum(),
    optimizer=c.SGD(momentum=0.5),
    seed=0,
    steps=2,
)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What is paid once, before the first child is forked."""
    for case in (OP, PLAIN, TRAIN):
        assert blame.judged(case, needle, validate=True).divergence is None


def command(capfd, *args):
    """A command as ``python -m oracle`` runs it, in a child of this process: nothing is imported again."""
    capfd.readouterr()
    code = exits.supervised(lambda: main([str(a) for a in args]))
    return code, *capfd.readouterr()


def kept(folder, case):
    path = folder / f"{case.digest}.json"
    path.write_bytes(c.encode(case))
    return path


class Odd(BaseException):
    """Neither an Exception nor anything that Python knows."""


def ends(how):
    """A tanh that does not come back."""

    def tanh(self, a):
        if isinstance(how, type):
            raise how(0)
        how()

    return tanh


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def swallow():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


WAYS = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "BaseException": Odd,
    "os._exit": lambda: os._exit(0),
    "segfault": segfault,
    "endless": lambda: time.sleep(1000),
    "endless, whatever is raised": swallow,
}


@pytest.mark.parametrize("way", WAYS)
def test_1_whatever_way_needle_does_not_come_back(way, monkeypatch, tmp_path, capfd):
    """A crash or an endless loop is the candidate's, in replay and in diff; and the other cases are judged all the same."""
    monkeypatch.setattr(needle.ops.Tanh, "compute", ends(WAYS[way]))
    if "endless" in way:
        monkeypatch.setattr("oracle.runs.shrinking.ENDLESS_SECONDS", 0.5)
        monkeypatch.setattr(apart, "CASE_SECONDS", 1.0)
        monkeypatch.setattr("oracle.runs.replay.CASE_SECONDS", 1.0)
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [PLAIN, OP, TRAIN, PLAIN])
    monkeypatch.setattr(runner, "PARTS", 1)
    code, out, err = command(capfd, "replay", kept(tmp_path, OP))
    assert code == ExitCode.PART, out + err
    assert re.search(r"needle (raises|does not return|crashes)", out)
    assert "Traceback" not in out + err

    code, out, err = command(
        capfd, "diff", "--cases", 1, "--seed", 0, "--workers", 1, "--no-digits", "--out", tmp_path / "out"
    )
    assert code == ExitCode.PART, out + err
    assert "exit code 1: they part" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["exit_codes"] == [1]
    # what comes behind an endless loop is not judged, and said to be so
    assert summary["unjudged"] == (2 if "endless" in way else 0)
    assert sum(summary["cases"].values()) + summary["unjudged"] == 4


def diff(capfd, folder, *more):
    args = ("--cases", 1, "--seed", 0, "--workers", 1, "--no-digits", "--out", folder, *more)
    code, out, err = command(capfd, "diff", *args)
    path = folder / "summary.json"
    return code, out + err, json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [PLAIN, OP, TRAIN])
    monkeypatch.setattr(runner, "PARTS", 1)


def wrong(self, a):
    return 1.25 * a


def test_0_and_1_the_numbers_decide(few, monkeypatch, tmp_path, capfd):
    code, shown, summary = diff(capfd, tmp_path)
    assert (code, summary["exit_codes"]) == (ExitCode.AGREE, [0])
    assert "exit code" not in shown
    monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)
    code, shown, summary = diff(capfd, tmp_path)
    assert (code, summary["exit_codes"]) == (ExitCode.PART, [1])
    assert command(capfd, "replay", kept(tmp_path, OP))[0] == ExitCode.PART


def other(folder, line):
    """A needle with another line at its end."""
    shutil.copytree(ROOT / "needle", folder / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "needle" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    return folder


IMPORTS = {
    "exit": "import sys; sys.exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "os._exit": "import os; os._exit(0)",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_2_a_needle_that_cannot_be_imported(how, tmp_path):
    folder = other(tmp_path / "other", IMPORTS[how])
    line = [sys.executable, "-m", "oracle", "replay", kept(tmp_path, OP), "--needle", folder]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE, done.stdout + done.stderr
    assert "cannot be imported" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_0_an_exit_handler_of_needle_changes_no_code(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)

    def work():
        import atexit

        atexit.register(os._exit, 0)
        return main(["replay", str(kept(tmp_path, OP))])

    assert exits.supervised(work) == ExitCode.PART


@pytest.mark.parametrize("args", [["replay", "absent"], ["diff", "--cases", "0"], ["dif"], ["bench", "--rounds", "0"]])
def test_2_usage(args, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capfd, *args)
    assert code == ExitCode.USAGE
    assert err
    assert "Traceback" not in out + err
    assert command(capfd, *args[:1], "--help")[0] == (ExitCode.USAGE if args == ["dif"] else ExitCode.AGREE)


def test_3_torch_is_wrong_and_both_are_shown(few, monkeypatch, tmp_path, capfd):
    right = torch.tanh
    wrong_in_torch = dataclasses.replace(OPERATIONS["tanh"], torch=lambda torch, x: 1.25 * right(x))
    monkeypatch.setitem(OPERATIONS, "tanh", wrong_in_torch)
    monkeypatch.setattr("oracle.runs.result.PEER_SHARE", 1)
    code, out, err = command(capfd, "replay", kept(tmp_path, OP))
    assert code == ExitCode.CONTRADICTION, out + err
    monkeypatch.setattr(needle.ops.Exp, "compute", wrong)
    code, shown, summary = diff(capfd, tmp_path)
    assert code == ExitCode.CONTRADICTION, shown
    assert summary["exit_codes"] == [3, 1]
    assert "exit code 3: the oracle contradicts itself; also 1: they part" in shown
    assert "1 divergence in 1 of 3 cases" in shown


def test_4_the_harness_itself_fails(few, monkeypatch, tmp_path, capfd):
    def broken(case, ndl, **options):
        if case == PLAIN:
            raise ZeroDivisionError("planted")
        return judge(case, ndl, **options)

    judge = blame.judge
    monkeypatch.setattr(blame, "judge", broken)
    monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)
    code, shown, summary = diff(capfd, tmp_path)
    assert code == ExitCode.HARNESS, shown
    assert summary["exit_codes"] == [4, 1], "what was found is not lost"
    assert "ZeroDivisionError: planted" in shown
    assert "please report" in shown
    code, _, err = command(capfd, "replay", kept(tmp_path, PLAIN))
    assert code == ExitCode.HARNESS
    assert len(err.splitlines()) == 1
    assert "ZeroDivisionError: planted (test_exit_codes.py" in err
    told = Path(err.rpartition(" ")[2].strip())
    assert "in broken" in told.read_text(encoding="utf-8")
    told.unlink()


def test_4_a_process_that_ends_without_a_verdict_is_no_agreement(capfd):
    assert exits.supervised(lambda: os._exit(0)) == ExitCode.HARNESS
    assert "ended with exit status 0, without a verdict" in capfd.readouterr().err
    assert exits.supervised(lambda: os.kill(os.getpid(), signal.SIGKILL)) == ExitCode.HARNESS


def test_5_nothing_could_be_judged(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [])
    code, shown, summary = diff(capfd, tmp_path)
    assert (code, summary["exit_codes"]) == (ExitCode.NO_VERDICT, [5]), shown
    assert "no verdict: nothing could be judged" in shown
    far = TRAIN.__class__(
        **{n: getattr(TRAIN, n) for n in TRAIN.__struct_fields__ if n != "data"},
        data=c.Data(rows=2, features=2, scale=1e30),
    )
    code, out, err = command(capfd, "replay", kept(tmp_path, far))
    assert code == ExitCode.NO_VERDICT, out + err
    assert "no verdict: step 0 leaves the domain" in out


def test_without_scikit_learn_the_failures_are_kept(few, monkeypatch, tmp_path, capfd):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    inputs.digits.cache_clear()
    monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)
    code, out, err = command(
        capfd, "diff", "--keep-going", "--cases", 1, "--seed", 0, "--workers", 1, "--out", tmp_path
    )
    assert code == ExitCode.PART, out + err
    assert "real data left out: scikit-learn" in out
    code, out, err = command(capfd, "replay", kept(tmp_path, digits_case()))
    assert code == ExitCode.NO_VERDICT
    assert "no verdict: scikit-learn" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("when", ["before the first case", "while cases are judged"])
def test_130_interrupted(number, when, few, monkeypatch, tmp_path, capfd):
    mine = os.getpid()

    def interrupt(*args):
        os.kill(mine, number)  # the parent, as `kill` and `timeout` do
        time.sleep(20)

    if when == "before the first case":
        monkeypatch.setattr(runner, "warm_up", interrupt)
    else:
        monkeypatch.setattr(runner, "SHARD_SIZE", 1)
        outcomes = iter([lambda future: future.result(), interrupt])
        monkeypatch.setattr(runner, "_outcome", lambda future: next(outcomes)(future))
    args = ("diff", "--cases", 5, "--seed", 0, "--workers", 1, "--no-digits", "--out", tmp_path)
    code, out, err = command(capfd, *args)
    assert code == ExitCode.INTERRUPTED, out + err
    assert "interrupted" in out
    if when != "before the first case":
        assert "after 3 cases" in out, "what is known so far is shown"


@pytest.mark.parametrize("part", [False, True], ids=["agree", "part"])
def test_a_closed_pipe_is_silence_with_the_code_of_the_verdict(part, monkeypatch, tmp_path, capfd):
    if part:
        monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)
    path = kept(tmp_path, OP)
    reading, writing = os.pipe()
    os.close(reading)

    def work():
        os.dup2(writing, 1)
        return main(["replay", str(path)])

    assert exits.supervised(work) == (ExitCode.PART if part else ExitCode.AGREE)
    assert capfd.readouterr().err == ""
    os.close(writing)


def test_a_folder_that_cannot_be_written_costs_no_verdict(few, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(needle.ops.Tanh, "compute", wrong)
    (tmp_path / "file").write_text("not a folder")
    code, shown, _ = diff(capfd, tmp_path / "file")
    assert code == ExitCode.PART, shown
    assert "failing cases not written" in shown
    assert "not written: " in shown
    assert "1 divergence" in shown


def test_of_several_the_first():
    everything = dict.fromkeys(("no_verdict", "interrupted", "part", "contradiction", "harness"), True)
    assert [int(code) for code in exits.held(**everything)] == [4, 3, 1, 130, 5]
    assert exits.held(part=[], harness=0) == [ExitCode.AGREE]
    assert exits.decided(interrupted=True, no_verdict=True) == ExitCode.INTERRUPTED


def test_damaged_files_are_one_line(tmp_path, capfd):
    whole = c.encode(TRAIN).decode()
    for text in (
        "", "[" * 5000, '{"a":' * 200 + "1" + "}" * 200, whole[:100], whole.replace("2", "NaN"),
        whole.replace('"rows": 2', '"rows": 1e400'), whole.replace('"rows": 2', '"rows": "\\ud800"'),
        c.encode(OP).decode().replace('"tanh"', '"matmul"'),
    ):  # fmt: skip
        path = tmp_path / "damaged.json"
        path.write_text(text, encoding="utf-8")
        code, out, err = command(capfd, "replay", path)
        assert (code, len(err.splitlines()), out) == (ExitCode.USAGE, 1, ""), (text[:80], err)


# -- the standalone script --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    """A script of a failure that ours does not have."""
    found = Divergence(0, "activation", "tanh", "G", "planted", (0,), 0.0, 0.0, 0.0, "float32", 1.0, 1e-9, suspect=None)
    return script.script(OP, found, needle)


def alone(folder, text, line="", needle_too=True, **more):
    folder.mkdir()
    if needle_too:
        other(folder, line)
    (folder / "failing.py").write_text(text, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = [
        sys.executable,
        "-I" if not needle_too else "-W",
        *(() if not needle_too else ("error",)),
        "failing.py",
        "--needle",
        ".",
    ]
    return subprocess.Popen(
        program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


TANH = "ops.Tanh.compute = lambda self, a: {}"


def test_a_script_has_the_same_codes(text, tmp_path):
    """Side by side: most of their time is the import of torch."""
    end = TANH.format("__import__('os')._exit(0)")
    torch_fails = text.replace("def in_torch(dtype):", "def in_torch(dtype):\n    raise ValueError('planted')")
    loose = text.replace("ALLOWED = 1e-09", "ALLOWED = 1e-06")
    assert loose != text
    started = {
        "exit": (ExitCode.PART, "ends the process: exit status 0", alone(tmp_path / "a", loose, end)),
        "loop": (
            ExitCode.PART,
            "does not return within 2 s",
            alone(
                tmp_path / "b",
                re.sub("PATIENCE = .*", "PATIENCE = 2", loose),
                TANH.format("__import__('time').sleep(99)"),
            ),
        ),
        "import": (ExitCode.USAGE, "no needle to import", alone(tmp_path / "c", loose, IMPORTS["exit"])),
        "torch": (ExitCode.HARNESS, "please report it", alone(tmp_path / "d", torch_fails)),
        "agree": (ExitCode.AGREE, "they agree", alone(tmp_path / "e", loose)),
    }
    for name, (code, words, process) in started.items():
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (code, ""), (name, out, err)
        assert words in out


def test_a_script_is_interrupted(text, tmp_path):
    process = alone(tmp_path / "a", text, TANH.format("(print('now', flush=True), __import__('time').sleep(99))"))
    assert process.stdout.readline().startswith("needle and torch part")
    assert process.stdout.readline() == f"  of       {tmp_path / 'a'}\n"
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "interrupted\n", "")


def test_the_table_is_written_down():
    page = (ROOT / "oracle" / "README.md").read_text(encoding="utf-8")
    rows = {int(code): words for code, words in re.findall(r"^\| (\d+) \| ([^|]*) \|", page, re.MULTILINE)}
    assert set(rows) == {int(code) for code in ExitCode}
