"""Every command that is shown is rendered in one place, from the options in force, and parses as those options."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import needle
from oracle import commands, files
from oracle.__main__ import main, parser
from oracle.cases import case as c
from oracle.rules.verdict import Divergence
from oracle.runs import diff as diff_screen
from oracle.runs import runner
from oracle.runs.result import Failed
from oracle.systems.trace import ENDED, Failure

ROOT = Path(__file__).parents[2]
BUILT = re.compile(r"\bnox -s\b|-m oracle\b")


def built(root: Path) -> list[str]:
    """Where a text names a command, other than in a docstring or a template's comment."""
    found = []
    for path in sorted((root / "oracle").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        found += [
            f"{path.relative_to(root).as_posix()}:{node.lineno}: {node.value.strip()}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in docs and BUILT.search(node.value)
        ]
    for path in sorted([*(root / "oracle").rglob("*.j2"), *(root / "oracle").rglob("*.html")]):
        found += [f"{path.name}: {line}" for line in path.read_text("utf-8").splitlines() if BUILT.search(line)]
    return found


ALLOWED = {
    "oracle/__main__.py": "python -m oracle",  # what argparse calls itself in the usage
    "oracle/commands.py": "",
}


def test_no_other_place_builds_a_command(tmp_path):
    others = [at for at in built(ROOT) if not any(at.startswith(f) and at.endswith(t) for f, t in ALLOWED.items())]
    assert others == []
    planted = tmp_path / "oracle" / "runs" / "late.py"
    planted.parent.mkdir(parents=True)
    planted.write_text('"""As ``nox -s diff`` does."""\n\ndef f(d):\n    return f"nox -s replay -- {d}"\n')
    (tmp_path / "oracle" / "page.html").write_text("<code>python -m oracle diff</code>\n")
    assert [at.partition(":")[0] for at in built(tmp_path)] == ["oracle/runs/late.py", "page.html"]


def pasted(line: str) -> list[str]:
    """The arguments that ``python -m oracle`` gets when a shell reads the line."""
    words = shlex.split(line)
    if words[:2] == ["nox", "-s"]:
        assert words[3:4] in ([], ["--"])
        return [words[2], *words[4:]]
    assert words[:3] == ["python", "-m", "oracle"]
    return words[3:]


FOLDERS = st.one_of(
    st.none(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1).map(Path),
    st.sampled_from(["my needles", "-x", "--", "a'b", 'a"b', "$HOME", "[bold]", "/", "..", "a\nb", "~"]).map(Path),
)


@given(FOLDERS, FOLDERS, st.booleans(), st.booleans(), st.integers(0, 2**40), st.integers(1, 10**9))
def test_a_pasted_command_has_the_options_in_force(needle, folder, digits, keep_going, seed, cases):
    folder = folder or commands.LATEST
    asked = commands.Asked(needle, folder)

    def same(given: Path | None, path: Path | None) -> bool:
        return (None if given is None else commands.meant(given)) == (None if path is None else commands.meant(path))

    found = parser().parse_args(pasted(asked.replay("f93132ed")))
    assert found.case == "f93132ed"
    assert same(found.needle, needle)
    assert same(found.folder, folder)
    by_path = parser().parse_args(pasted(asked.replay(folder / "case.json")))
    assert same(Path(by_path.case), folder / "case.json")
    line = asked.diff(seed, cases=cases, digits=digits, keep_going=keep_going)
    found = parser().parse_args(pasted(line))
    keeps_going = needle is not None if found.keep_going is None else found.keep_going
    assert (found.seed, found.cases, found.no_digits, keeps_going) == (seed, cases, not digits, keep_going)
    assert same(found.needle, needle)
    assert same(found.out, folder)


def test_outside_the_project_it_is_python(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands.started_here()
    assert commands.Asked().replay("f93132ed") == "nox -s replay -- f93132ed"
    assert commands.command("memory") == "nox -s memory"
    monkeypatch.chdir(tmp_path)
    commands.started_here()
    try:
        assert commands.Asked().replay("f93132ed") == "python -m oracle replay f93132ed"
    finally:
        monkeypatch.undo()
        commands.started_here()


# -- a run and what it leaves -----------------------------------------------------------------------------------------

OPS = ("tanh", "exp", "sigmoid", "negate", "relu")
CASES = [c.OpCase(op=op, operands=(c.Operand((n,), (0.5,) * n),)) for op in OPS for n in (1, 2)]


@pytest.fixture
def faulty(monkeypatch):
    """Four operators wrong, one of which raises, in cases that are few."""
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: CASES)
    monkeypatch.setattr(runner, "SHOWN", 2)
    for name in ("Tanh", "Exp", "Sigmoid"):
        monkeypatch.setattr(getattr(needle.ops, name), "compute", lambda self, a: 1.25 * a)
    monkeypatch.setattr(needle.ops.ReLU, "compute", lambda self, a: a / "two")


def run_diff(*more):
    return main(["diff", "--cases", "1", "--seed", "0", "--workers", "1", "--no-digits", *map(str, more)])


def test_every_entry_is_written_worst_first_and_its_line_can_be_pasted(faulty, monkeypatch, tmp_path, capsys):
    out = tmp_path / "a folder"
    assert run_diff("--out", out) == 1
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    shown = capsys.readouterr().out
    lines = [f["replay"] for f in summary["failures"]]
    assert len(lines) == 4 > runner.SHOWN
    first, *others = re.findall(r"^  replay   (.*)$", shown, re.M)
    assert pasted(first)[0] == "diff", "what is shown at once has no file yet"
    assert others == lines[: diff_screen.SHOWN][::-1], "the worst comes last"
    assert all(re.search(f"^  {f['case']} needle ", shown, re.M) for f in summary["failures"][diff_screen.SHOWN :])
    assert "needle raises" in (out / f"{summary['failures'][0]['case']}.md").read_text("utf-8").splitlines()[3]
    assert all(f["written"] for f in summary["failures"])
    for line in lines:
        assert main(pasted(line)) == 1, line
        assert f"replay   {line}\n" in capsys.readouterr().out, "and shows itself again"
    assert sorted(p.stem for p in out.glob("*.py")) == sorted(f["case"] for f in summary["failures"])

    monkeypatch.undo()
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: CASES)
    somebodys = out / "notes.md"
    somebodys.write_text("# notes\n")
    for name in ("needle.md", "needle.html"):  # of a run with --needle
        (out / name).write_text("of another needle\n")
    assert run_diff("--out", out) == 0
    today = {p.name for p in out.iterdir()}
    ours = {"summary.json", "diff.html", "diff-history.jsonl"}
    assert today == {*ours, "notes.md", files.EARLIER}, "nothing of the older run is taken for today's"
    capsys.readouterr()
    assert {"diff.html", "needle.md", "needle.html"} <= {p.name for p in (out / files.EARLIER).iterdir()}
    assert main(pasted(lines[0])) == 0, "what is replayed may still be of the older run"
    assert "of an earlier run: " in capsys.readouterr().out


def test_worst_first():
    def failed(count, failure=None):
        return Failed(CASES[0], Divergence(0, "activation", "", "G", "", failure=failure), count)

    ends = Failure("forward", ENDED, "the process was ended by signal SIGSEGV")
    raises = Failure("forward", "TypeError", "")
    order = [failed(1, ends), failed(7, raises), failed(2, raises), failed(90), failed(3)]
    found = order[::-1]
    found.sort(key=runner.worst_first)
    assert found == order


def test_a_folder_that_is_full_costs_files_and_the_line_runs_the_cases_again(faulty, monkeypatch, tmp_path, capsys):
    save, count = files.save, 0

    def full(path, data):
        nonlocal count
        count += path.suffix == ".json" and path.parent == tmp_path / "out"
        if count > 2:
            raise OSError(28, "No space left on device")
        save(path, data)

    monkeypatch.setattr(files, "save", full)
    assert run_diff("--out", tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert "failing cases not written to" in shown.out
    assert "No space left on device" in " ".join(shown.out.split())
    assert "not written: " in shown.err
    lines = re.findall(r"^  replay   (.*)$", shown.out, re.M)
    assert [pasted(line)[0] for line in lines] == ["diff", "diff", "replay", "replay"]
    count = 0
    assert main(pasted(lines[1])) == 1


def test_an_early_ctrl_c_proposes_what_was_asked(monkeypatch, tmp_path):
    plan = runner.Plan(
        seed=7, cases=300, workers=1, digits=False, folder=tmp_path, needle=Path("theirs"), keep_going=True
    )
    run = runner.Run(plan, interrupted=True)
    again = f"nox -s diff -- --seed 7 --cases {{}} --needle theirs --no-digits --out {tmp_path}"
    assert run.again == again.format(300)
    run.shards = 2
    assert run.again == again.format(200)
    plan.minutes = 1.5
    assert run.again == again.format(200)
    run.shards = 0
    assert run.again == again.format(300).replace("--cases 300", "--minutes 1.5")


def test_a_folder_is_tried_before_the_run_and_costs_no_verdict(faulty, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert run_diff("--out", tmp_path / "file") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("failing cases will not be written to ")
    assert {pasted(line)[0] for line in re.findall(r"^  replay   (.*)$", shown.out, re.M)} == {"diff"}


def test_a_needle_that_changes_the_working_directory_loses_no_file(faulty, monkeypatch, tmp_path):
    def elsewhere(self, a):
        os.chdir("/")
        return 1.25 * a

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(needle.ops.Tanh, "compute", elsewhere)
    monkeypatch.setattr("oracle.runs.shard.apart", lambda function, *args, **more: function(*args))
    try:
        assert run_diff("--out", "out") == 1
        assert len(list((tmp_path / "out").glob("*.json"))) == 5
    finally:
        monkeypatch.undo()
        commands.started_here()


def test_ours_is_not_asked_for_what_another_needle_may_lack(capsys):
    assert main(["diff", "--require", "Dropout", "--cases", "1"]) == 2
    assert "--needle DIR" in capsys.readouterr().err


def test_half_a_file_is_never_seen(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.save(path, "old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.save(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_is_looked_up_and_a_path_may_have_any_name(tmp_path, capsys):
    case, other = CASES[:2]
    odd = tmp_path / "not a digest [1].txt"
    odd.write_bytes(c.encode(case))
    assert main(["replay", str(odd)]) == 0
    (tmp_path / f"{case.digest}.json").write_bytes(c.encode(case))
    (tmp_path / "summary.json").write_text("{}")
    assert main(["replay", case.digest[:5], "--from", str(tmp_path)]) == 0
    (tmp_path / f"{case.digest}.json").write_bytes(c.encode(other))
    assert main(["replay", str(tmp_path / f"{case.digest}.json")]) == 0, "by its path it is what it is"
    capsys.readouterr()
    for name, message in (
        (case.digest, f"{case.digest}.json holds {other.digest}, another case"),
        ("summary", "no case 'summary' in"),
        ("*", "no case '*' in"),
        ("x" * 5000, "no case"),
        ("absent.json", "No such file"),
        (str(tmp_path), "no case"),
    ):
        assert main(["replay", name, "--from", str(tmp_path)]) == 2, name
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_any_encoding_of_the_output_works(encoding, tmp_path):
    out = tmp_path / "é"
    env = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "NO_COLOR": "1", "PYTHONUTF8": "0"}
    path = tmp_path / "é.json"
    path.write_bytes(c.encode(CASES[0]))
    line = [sys.executable, "-m", "oracle", "replay", path, "--from", out]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needle and torch agree" in done.stdout.decode(encoding)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("encoding", "command", "shown"),
    [
        (
            "ascii",
            ("diff", "--cases", "100", "--seed", "0", "--workers", "1", "--no-digits", "--verbose"),
            "0 divergences in 100",
        ),
        ("cp1252", ("memory", "--model", "MLP", "--workers", "1"), "1 models"),
    ],
    ids=["diff", "memory"],
)
def test_any_encoding_of_the_output_works_for_a_whole_run(encoding, command, shown, tmp_path):
    if command[0] == "memory":
        pytest.importorskip("memray", reason="memray does not exist on this system")
    env = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "NO_COLOR": "1", "PYTHONUTF8": "0"}
    line = [sys.executable, "-m", "oracle", *command, "--out", tmp_path]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # what memory comes to is another test's
    assert shown in done.stdout.decode(encoding)
    assert done.stderr == b""
