import ast
import functools
import hashlib
import json
import operator
import shutil
import types
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

import needle
from oracle.__main__ import parser
from oracle.cases import case as c
from oracle.trust.mutants import campaign, claims, cli, damage, report, tested, trial
from oracle.trust.mutants.mutant import Mutant, mutants_of

ROOT = Path(__file__).parents[3]


def _op(name, *values, **attributes):
    return c.OpCase(name, (c.Operand((len(values),), values),), attributes)


CASES = [_op("tanh", 0.5, -1.0, 2.0), _op("exp", 0.5, -1.0), _op("relu", 1.0, -1.0, 0.0)]


@pytest.fixture
def root(tmp_path):
    """A copy of needle that a test may break."""
    shutil.copytree(ROOT / "needle", tmp_path / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def planted(texts, file, before, after):
    """A mutant of a test's own."""
    text = texts[file].decode()
    assert text.count(before) == 1
    start = len(text[: text.index(before)].encode())
    line = text[: text.index(before)].count("\n") + 1
    end = start + len(before.encode())
    return Mutant("0" * 12, file, "planted", line, "planted", before, after, start, end, after, (line,))


def outcome(mutant, texts, cases=CASES, shares=None):
    judged = [trial.Judged(case, frozenset(), shares or {}, 0.0) for case in cases]
    ((_, found),) = trial.try_mutants(texts, [(mutant, list(enumerate(judged)))], workers=1)
    return found


TANH = ("ops", "return (g * (1 - y * y),)", "return (g * (1 + y * y),)")


def test_a_planted_mutant_is_killed_by_numbers(root):
    texts = trial.sources(root)
    found = outcome(planted(texts, *TANH), texts)
    assert (found.status, found.how, found.rule, found.quantity) == ("killed", "numeric", "G", "gradient")
    assert (found.cases, found.number, found.case) == (1, 1, CASES[0].digest)


def test_a_crash_is_counted_as_a_crash(root):
    texts = trial.sources(root)
    found = outcome(planted(texts, "ops", "return np.tanh(", "return np.tahn("), texts)
    assert (found.status, found.how) == ("killed", "exception")
    assert found.crashed
    found = outcome(planted(texts, "optim", "import math\n", "import maths\n"), texts)
    assert (found.status, found.how) == ("killed", "import")


def test_what_no_case_notices_survives(root):
    texts = trial.sources(root)
    found = outcome(planted(texts, "ops", "return np.log(_float(a))", "return np.log1p(_float(a))"), texts)
    assert (found.status, found.cases) == ("survived", len(CASES))


def test_a_case_near_the_limit_is_no_evidence(root):
    texts = trial.sources(root)
    found = outcome(planted(texts, *TANH), texts, shares={"G op tanh": 0.26})
    assert (found.status, found.doubtful) == ("survived", 1)
    assert outcome(planted(texts, *TANH), texts, shares={"G op tanh": 0.25}).status == "killed"


def test_a_mutant_that_loops_is_stopped(root, monkeypatch):
    monkeypatch.setattr(trial, "GRACE", 0.5)
    texts = trial.sources(root)
    found = outcome(planted(texts, "ops", "return np.tanh(_float(a))", "exec('while True: pass')"), texts)
    assert (found.status, found.how) == ("killed", "timeout")


def test_a_mutant_that_blows_up_is_stopped(root):
    texts = trial.sources(root)
    found = outcome(planted(texts, "ops", "return np.tanh(_float(a))", "return np.ones(1 << 38)"), texts)
    assert (found.status, found.crashed) == ("killed", True)


def test_the_unmutated_needle_is_alive_and_its_lines_are_known(root):
    texts = trial.sources(root)
    ((_, judged, always),) = trial.try_baseline(texts, [0], lambda shard: CASES, workers=1)
    assert [j.failure for j in judged] == ["", "", ""]
    tanh, exp = (planted(texts, "ops", f"return np.{name}(_float(a))", "").line for name in ("tanh", "exp"))
    assert [("ops", tanh) in j.lines for j in judged] == [True, False, False]
    assert [("ops", exp) in j.lines for j in judged] == [False, True, False]
    assert always
    assert all(j.shares for j in judged)


def _plan(root, **changes):
    settings = {
        "files": ("ops",),
        "budget": 3,
        "workers": 2,
        "part": (0, 1),
        "ladder": False,
        "root": root,
        "tests": False,
    }
    return campaign.Plan(**{**settings, "draw": lambda seed, shard: CASES, **changes})


def _tanh_keys(root):
    found = mutants_of("ops", (root / "needle/ops.py").read_bytes())
    return {m.after: m.key for m in found if m.function == "Tanh.vjp"}


def test_a_broken_needle_is_refused(root):
    path = root / "needle/ops.py"
    path.write_text(path.read_text("utf-8").replace(TANH[1], TANH[2]), "utf-8")
    with pytest.raises(campaign.NotAlive, match="the unmutated needle fails on"):
        campaign.run(_plan(root))


def _tree(root):
    return {str(p): hashlib.sha256(p.read_bytes()).digest() for p in root.rglob("*") if p.is_file()}


def test_a_run_writes_nothing_into_the_source_tree(root):
    before = _tree(root)
    keys = frozenset(list(_tanh_keys(root).values())[:6])
    found = campaign.run(_plan(root, keys=keys))
    assert _tree(root) == before
    assert set(found.outcomes) == keys
    assert any(o.status == "killed" for o in found.outcomes.values())


def _excuse(root, key, kind="equivalent", reason="a test says so"):
    path = root / campaign.EXCUSED
    path.parent.mkdir(parents=True)
    path.write_text(f'[[group]]\nkind = "{kind}"\nreason = "{reason}"\nmutants = ["{key} text"]\n', "utf-8")


def test_an_excused_mutant_that_is_killed_fails_the_run(root):
    key = _tanh_keys(root)["1 + y * y"]
    assert campaign.run(_plan(root, keys=frozenset([key]))).exit_code == 0
    _excuse(root, key)
    found = campaign.run(_plan(root, keys=frozenset([key])))
    assert [m.key for m in found.resurrected()] == [key]
    assert found.exit_code == 1
    assert found.counted() == []


def test_an_excuse_needs_a_reason(root):
    _excuse(root, "0" * 12, reason=" ")
    with pytest.raises(ValueError, match="with a reason"):
        campaign.excuses(root / campaign.EXCUSED)


def test_unit_tests_judge_what_no_case_trains_with():
    texts = trial.sources(ROOT)
    wrong = planted(texts, "saving", 'v.dtype.kind in "if"', 'v.dtype.kind not in "if"')
    nothing = planted(texts, "saving", "numbers = all(", "numbers  = all(")
    assert wrong.by_tests
    paths = tested.judges_of(wrong)
    assert paths == ("tests/unit/needle/test_saving.py", "tests/unit/needle")
    paths = tested.judges_of(wrong, "what is read; test_saving.py")
    assert paths == ("tests/unit/needle/test_saving.py",)
    found = dict(tested.try_tests(texts, [(None, paths), (wrong, paths), (nothing, paths)], workers=2))
    assert found[None].status == found[nothing].status == "survived"
    assert (found[wrong].status, found[wrong].how) == ("killed", "test")
    assert found[wrong].test.startswith("tests/unit/needle/test_saving.py::test_")


def test_a_mutant_meets_the_tests_that_run_its_line_the_quickest_first(monkeypatch):
    monkeypatch.setattr(tested, "GRACE", 1)
    texts = trial.sources(ROOT)
    files = ["tests/unit/needle/test_schedules.py"]
    tests = tested.watched(texts, files, workers=1)
    assert all(t.lines for t in tests.values())
    assert len({t.lines for t in tests.values()}) > 1
    at_import = planted(texts, "autograd", 'own.get("reads_result", True)', 'own.get("reads_result", False)')
    assert all(t.lines.intersection(("autograd", line) for line in at_import.reach) for t in tests.values())
    fails = planted(texts, "schedules", "math.cos(", "math.sin(")
    lines = {("schedules", line) for line in fails.reach}
    reaching = [name for name, t in tests.items() if t.lines & lines]
    assert 0 < len(reaching) < len(tests)
    items = [types.SimpleNamespace(nodeid=name) for name in [*tests, "a new one"]]
    tested.Reaching(tests, frozenset(lines)).pytest_collection_modifyitems(items)
    left = [i.nodeid for i in items]
    assert left[0] == "a new one"  # of which nothing is known
    assert sorted(left[1:]) == sorted(reaching)
    assert [tests[n].seconds for n in left[1:]] == sorted(tests[n].seconds for n in left[1:])
    slow = planted(texts, "schedules", "math.cos(", "sum(iter(int, 1)) * (")
    ((_, outcome),) = tested.try_tests(
        texts, [(slow, files)], 1, dict.fromkeys(reaching, tested.Watched(frozenset(lines), 0.1))
    )
    assert (outcome.status, outcome.test) == ("killed", "(out of time)")
    monkeypatch.setattr(tested, "WAITING", 1)
    waits = planted(texts, "schedules", "math.cos(", "__import__('time').sleep(99) or math.cos(")
    ((_, outcome),) = tested.try_tests(texts, [(waits, files)], 1)
    assert (outcome.status, outcome.test) == ("killed", "(out of time)")
    monkeypatch.undo()
    for known in (tests, None):
        ((_, outcome),) = tested.try_tests(texts, [(fails, files)], 1, known)
        assert (outcome.status, outcome.how) == ("killed", "test")


def test_what_diff_leaves_alive_meets_the_unit_tests(root, monkeypatch):
    """Nobody draws logarithms here; an excuse that says "equivalent" is refuted by needle's own tests (by one file of them here)."""
    monkeypatch.setattr(tested, "judges_of", lambda m, reason: ("tests/unit/needle/test_dispatch.py",))
    log = next(m.key for m in mutants_of("ops", (root / "needle/ops.py").read_bytes()) if m.function == "Log.vjp")
    _excuse(root, log)
    assert campaign.run(_plan(root, keys=frozenset([log]))).exit_code == 0
    found = campaign.run(_plan(root, keys=frozenset([log]), tests=True))
    assert found.outcomes[log].test.startswith("tests/unit/needle/test_")
    assert [m.key for m in found.resurrected()] == [log]
    assert found.exit_code == 1


def test_a_mutant_that_upsets_the_test_runner_costs_the_others_nothing(root, monkeypatch):
    def upset(*_):
        raise RuntimeError("pytest ended, and no test failed")

    texts = trial.sources(root)
    mutant = mutants_of("ops", texts["ops"])[0]
    monkeypatch.setattr(tested, "_outcome", upset)
    ((_, found),) = tested.try_tests(texts, [(mutant, ["tests/unit/needle/test_dispatch.py"])], 1)
    assert (found.status, found.test) == ("survived", "")
    assert found.oracle_errors == ["RuntimeError: pytest ended, and no test failed"]
    with pytest.raises(RuntimeError, match="could not be run on needle: RuntimeError: pytest ended"):
        list(tested.try_tests(texts, [(None, ["tests/unit/needle/test_dispatch.py"])], 1))


def test_a_needle_that_fails_its_own_tests_is_refused(root):
    path = root / "needle/saving.py"
    text = path.read_text("utf-8")
    path.write_text(text.replace('v.dtype.kind in "if"', 'v.dtype.kind not in "if"'), "utf-8")
    key = mutants_of("saving", path.read_bytes())[0].key
    with pytest.raises(campaign.NotAlive, match="needle as it is fails"):
        campaign.run(_plan(root, files=("saving",), keys=frozenset([key]), tests=True))


def test_a_survivor_that_is_not_excused_fails_the_run(root):
    log = next(m.key for m in mutants_of("ops", (root / "needle/ops.py").read_bytes()) if m.function == "Log.vjp")
    found = campaign.run(_plan(root, keys=frozenset([log])))
    assert found.outcomes[log].status == "unreached"
    assert found.exit_code == 1


def test_ctrl_c_gives_a_partial_report(root):
    def progress(found, text):
        if len(found.outcomes) == 2:
            raise KeyboardInterrupt

    found = campaign.run(_plan(root, keys=frozenset(_tanh_keys(root).values()), workers=1), progress)
    assert found.interrupted
    assert len(found.outcomes) == 2
    content = campaign.to_json(found)
    assert not content["complete"]
    assert report.counts(content["mutants"].values())["mutants"] == 2


def test_a_run_goes_on_where_the_last_one_was_ended(root):
    def ended(found, text):
        if sum(o.status == "killed" for o in found.outcomes.values()) == 2:
            raise KeyboardInterrupt

    keys = frozenset(_tanh_keys(root).values())
    (root / campaign.LATEST).parent.mkdir(parents=True, exist_ok=True)
    first = campaign.run(_plan(root, keys=keys, workers=1), ended)
    killed = {k for k, o in first.outcomes.items() if o.status == "killed"}
    campaign.write(root / campaign.LATEST, campaign.to_json(first))
    seen = []
    second = campaign.run(_plan(root, keys=keys, resume=True), lambda found, text: seen.append(len(found.outcomes)))
    assert seen[0] == len(killed) == 2  # known before the first case is judged
    whole = campaign.run(_plan(root, keys=keys))
    assert {k: o.status for k, o in second.outcomes.items()} == {k: o.status for k, o in whole.outcomes.items()}
    path = root / "needle/ops.py"
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    assert campaign.resumed(second.plan, campaign.read(root / campaign.LATEST)) == {}


def test_results_survive_unrelated_edits():
    source = (ROOT / "needle/ops.py").read_bytes()
    before = {m.key for m in mutants_of("ops", source)}
    edited = b"# a comment\n\n" + source.replace(b'"""Hyperbolic tangent."""', b'"""Another docstring."""')
    assert {m.key for m in mutants_of("ops", edited)} == before
    changed = source.replace(TANH[1].encode(), TANH[2].encode())
    assert len(before - {m.key for m in mutants_of("ops", changed)}) >= 5


SNIPPET = b'''
def f(a: int = 3) -> "Tensor":
    """Docstring 1."""
    if a < 0:
        raise ValueError(f"f: a must be 1 or more, got {a + 1}")
    return a.inputs[0] + 2


class Thing:
    def __repr__(self):
        return "x" + 1
'''


def test_what_is_not_mutated():
    found = mutants_of("ops", SNIPPET)
    assert all(m.function == "f" for m in found)
    assert not any("raise" in m.before or m.before in ("a < 0", "a + 1", "int") for m in found)
    assert {m.after for m in found if m.before == "0"} == {"1"}  # never inputs[-1]
    assert not any("2 + a.inputs[0]" in m.after for m in found)  # commutative
    assert {m.after for m in found if m.operator == "default"} == {"4"}
    assert {m.after for m in found if m.operator == "arithmetic"} == {"a.inputs[0] - 2"}


def test_every_mutant_is_python_and_has_a_key_of_its_own():
    for file in ("autograd", "ops", "nn", "optim"):
        source = (ROOT / f"needle/{file}.py").read_bytes()
        found = mutants_of(file, source)
        assert len({m.key for m in found}) == len(found)
        for m in found[::25]:
            compile(m.apply(source), file, "exec")


def test_the_report_counts_honestly():
    base = {"file": "ops", "kind": "mutant", "operator": "loop", "function": "f", "before": "a", "after": "b"}
    fates = [{"status": "killed", "how": "numeric"}] * 8 + [{"status": "killed", "how": "exception"}] * 10
    fates += [{"status": "killed", "how": "test"}] * 5 + [
        {"status": "survived"},
        {"status": "unreached"},
        {"status": "survived", "excused": "equivalent"},
    ]
    rows = {str(i): {**base, "rule": "G", "quantity": "loss", **fate} for i, fate in enumerate(fates)}
    n = report.counts(rows.values())
    assert n == {"mutants": 26, "excused": 1, "numeric": 8, "crashed": 10, "tested": 5, "survived": 2}
    assert report.shares(n) == (1 - 2 / 25, 1 - 2 / 15)
    excused = {"25": campaign.Excuse("equivalent", "because")}
    page = report.markdown({"mutants": rows, "cases": 3, "seed": 0, "part": [0, 1]}, excused)
    assert "| ops | 26 | 1 | 8 | 10 | 5 | 2 | 92.0% | 86.7% |" in page
    assert "because" in page


def fate(file, function="f", **more):
    row = {"file": file, "kind": "mutant", "operator": "loop", "function": function, "before": "a", "after": "b"}
    return {**row, "status": "killed", "how": "test", **more}


NUMERIC = {"how": "numeric", "rule": "G", "quantity": "loss", "number": 7}


def test_what_diff_leaves_alive_and_a_unit_test_kills_is_told_apart():
    """It is no survivor; what diff kills by itself has a share of its own."""
    alive, seen = {"status": "survived", "how": "", "cases": 9}, "tests/unit/needle/test_nn.py::test_it"
    rows = {"a": fate("ops", **NUMERIC), "b": fate("ops", "g", **alive, test=seen), "c": fate("ops", "h", **alive)}
    n = report.counts(rows.values())
    assert (n["numeric"], n["tested"], n["survived"]) == (1, 1, 1)
    assert report.by_diff_alone(rows.values()) == 1 / 3
    assert report.by_diff_alone([fate("init")]) is None
    page = report.markdown({"mutants": rows, "cases": 9, "seed": 0, "part": [0, 1]}, {})
    assert "## Survivors: 1\n" in page
    assert "## Left alive by diff, and killed by a unit test: 1" in page
    assert "| ops.py g | 1 | test_nn.py::test_it |" in page
    outcomes = [
        campaign.Outcome("killed", "numeric"),
        campaign.Outcome("survived", test=seen),
        campaign.Outcome("survived"),
    ]
    assert campaign.score(outcomes) == (2 / 3, 2 / 3)


def test_only_a_rule_about_rounding_raises_a_false_alarm(root):
    """A probe that changes one of two ways which must give the same bits is found by comparing the two, and rightly."""
    probes = [m for m in mutants_of("ops", trial.sources(root)["ops"]) if m.kind == "probe"][:2]
    found = campaign.Campaign(_plan(root), probes)
    found.outcomes = {
        m.key: campaign.Outcome("killed", "numeric", rule) for m, rule in zip(probes, ("exact", "G"), strict=True)
    }
    assert found.false_alarms() == probes[1:]


def test_a_probe_leaves_the_graph_of_tensors_alone():
    x = needle.Tensor([[1.0, 2.0]], dtype="float32")
    ones = np.ones((2, 1), "float32")
    y = damage.wide(x.dot, ones)
    assert y.requires_grad
    third = np.float32(1) / np.float32(3)
    assert damage.wide(np.sum, np.full(3, third)) == np.float32(3 * np.float64(third))
    thirds = np.full((1, 3), third)
    assert damage.wide(thirds.dot, np.ones(3)).dtype == np.float64  # as it is: to narrow it would be a mistake
    assert damage.wide(thirds.dot, np.ones(3, "float32")) == np.float32(3 * np.float64(third))
    assert damage.wide(np.exp, thirds, thirds)[0, 0] == np.float32(np.exp(np.float64(third)))


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows @ np.ones(2, np.float32),
        operator.methodcaller("dot", np.ones(2, np.float32)),
        np.ones((1, 2), np.float32).dot,
        functools.partial(np.sum, axis=1),
    ],
)
def test_a_function_is_damaged_in_what_it_returns(function):
    rows = np.ones((2, 2), np.float32)
    assert (damage.scaled(function, 4)(rows) == 2.125).all()
    assert (damage.rounded(function, "float16")(rows * np.float32(1 / 3)) == np.float16(2 / 3)).all()
    assert (damage.rare(function, "an exact zero")(rows) == 2).all()
    assert (damage.rare(function, "an exact zero")(0 * rows) == 0).all()
    assert (damage.rare(function, "beyond 64")(100 * rows) == 300).all()


def test_the_report_says_who_has_judged_what():
    """A table may hold mutants of some files alone: none of those that diff judges, or these alone."""

    def page(*rows, cases):
        content = {"mutants": dict(enumerate(rows)), "cases": cases, "seed": 5, "part": [0, 1]}
        return " ".join(report.markdown(content, {}).split())

    diff, tests = (
        "judged by the engine of `nox -s diff` alone, on cases of a diff run of",
        "judged by these tests alone",
    )
    some = page(fate("init"), fate("data"), cases=0)
    assert diff not in some
    assert "cases of the run" not in some
    assert "Half of the kills" not in some
    assert "Sensitivity ladder" not in some
    assert (
        f"2 mutants, of files that no case trains with and of functions that are left to the unit tests (below), are {tests}"
        in some
    )
    assert "No mutant is here of autograd.py, chain.py, ops.py, nn.py, optim.py, schedules.py, saving.py" in some
    both = page(fate("init"), fate("ops", **NUMERIC), fate("autograd", "Tensor.numpy"), cases=1000)
    assert f"1 mutants are {diff} 1,000 (seed 5)" in both
    assert "Half of the kills need no more than the first 7." in both
    assert (
        f"2 mutants, of files that no case trains with and of functions that are left to the unit tests (below), are {tests}"
        in both
    )
    alone = page(*(fate(file, **NUMERIC) for file in claims.FILES), cases=1000)
    assert f"5 mutants are {diff} 1,000" in alone
    assert tests not in alone
    assert "No mutant is here of init.py, data.py, schedules.py, saving.py, dispatch.py, course.py." in alone
    every = page(*(fate(file) for file in claims.ALL_FILES), fate("ops", kind="ladder", rung=4), cases=1000)
    assert "No mutant is here of" not in every
    assert "Sensitivity ladder" in every


def test_a_partial_run_is_merged_into_the_accepted_one(tmp_path):
    old = {"seed": 0, "cases": 9, "part": [0, 3], "complete": True, "mutants": {"a": {"status": "survived"}, "b": {}}}
    new = {"seed": 0, "cases": 5, "part": [0, 1], "complete": False, "mutants": {"a": {"status": "killed"}}}
    whole = cli.merged(old, new)
    assert whole["mutants"] == {"a": {"status": "killed"}, "b": {}}
    assert (whole["cases"], whole["part"], whole["complete"]) == (9, [0, 3], True)
    old["mutants"]["b"]["file"] = "ops"
    assert list(cli.merged(old, new, ["nn"])["mutants"]) == ["a", "b"]
    assert list(cli.merged(old, new, ["ops"])["mutants"]) == ["a"]  # b is a mutant of what is not there any more
    campaign.write(tmp_path / "kept.json", whole)
    assert campaign.read(tmp_path / "kept.json") == whole == json.loads((tmp_path / "kept.json").read_text("utf-8"))


def test_a_key_that_no_mutant_has_is_no_clean_sheet(root, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(campaign, "run", lambda plan, progress: asked.append(plan.keys) or campaign.Campaign(plan))
    real = min(campaign.keys_of(root, "course"))
    for keys in ([real, "0" * 12], ["foo"]):
        assert cli.main(parser().parse_args(["mutants", "--file", "course", "--key", *keys]), root) == 2
        assert f"no mutant of today's source has the key '{keys[-1]}'" in capsys.readouterr().err
    assert not asked
    cli.main(parser().parse_args(["mutants", "--file", "course", "--key", real]), root)
    assert asked == [{real}]


def test_after_an_edit_only_what_is_new_is_judged_and_what_is_gone_leaves_the_table(root, monkeypatch):
    keys = campaign.keys_of(root, "course", "init")
    row = {"file": "course", "kind": "mutant", "operator": "loop", "function": "f", "before": "a", "after": "b"}
    row |= {"status": "killed", "how": "test"}
    new = min(campaign.keys_of(root, "course"))
    table = {"seed": 0, "cases": 0, "part": [0, 1], "tests": True, "note": "", "complete": False}
    table["mutants"] = {**dict.fromkeys(keys - {new}, row), "0" * 12: row}
    excused = max(keys - {new})
    _excuse(root, excused, reason="nobody can tell")
    (root / "reports/latest").mkdir()
    campaign.write(root / campaign.BASELINE, table)
    asked = []

    def run(plan, progress):
        asked.append(plan.keys)
        mutants = [m for m in mutants_of("course", trial.sources(root)["course"]) if m.key in plan.keys]
        found = campaign.Campaign(plan, mutants, excused=campaign.excuses(root / campaign.EXCUSED))
        found.outcomes = {m.key: campaign.Outcome("survived") for m in mutants}
        return found

    monkeypatch.setattr(campaign, "run", run)
    given = ["mutants", "--unjudged", "--accept", "--file", "course", "init"]
    assert cli.main(parser().parse_args(given), root) == 0
    assert asked == [{new}]
    rows = campaign.read(root / campaign.BASELINE)["mutants"]
    assert rows.keys() == keys
    assert rows[new]["status"] == "survived"
    assert {k for k, v in rows.items() if "excused" in v} == {excused}


def test_what_new_tests_kill_is_put_beside_what_diff_had_found(tmp_path):
    kept = {
        "a": {"kind": "mutant", "status": "survived", "cases": 9},
        "b": {"kind": "mutant", "status": "survived", "cases": 9, "test": "gone"},
        "c": {"kind": "mutant", "status": "survived"},
    }
    new = {
        "a": {"status": "survived", "test": "it"},
        "b": {"status": "survived"},
        "c": {"status": "killed", "how": "test", "test": "it"},
        "d": {"status": "survived"},
    }
    found = campaign.with_tests(kept, new)
    assert found["a"] == {**kept["a"], "test": "it"}
    assert found["b"] == {"kind": "mutant", "status": "survived", "cases": 9}
    assert (found["c"], found["d"]) == (new["c"], new["d"])
    campaign.write(tmp_path / "kept.json", {"mutants": kept})
    assert campaign.survivors_of(tmp_path / "kept.json") == {"a", "c"}


def test_what_is_left_to_the_unit_tests_exists():
    def functions(node, prefix=""):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield prefix + child.name
            elif isinstance(child, ast.ClassDef):
                yield from functions(child, f"{prefix}{child.name}.")

    names = {f: set(functions(ast.parse((ROOT / f"needle/{f}.py").read_text("utf-8")))) for f in claims.FILES}
    for file, pattern, reason in claims.UNCLAIMED:
        assert any(fnmatchcase(name, pattern) for name in names[file]), f"no {pattern} in {file}.py any more"
        assert reason
        tested.files_of(claims.named_tests(reason))  # ValueError for one that does not exist


def test_a_run_is_accepted_after_its_excuses_were_written(root, capsys):
    (root / "reports/latest").mkdir(parents=True)
    row = {"file": "ops", "kind": "mutant", "operator": "loop", "function": "f", "before": "a", "after": "b"}
    content = {"seed": 0, "cases": 3, "part": [0, 1], "complete": False}
    content["mutants"] = {"1" * 12: {**row, "status": "survived", "cases": 3}}
    campaign.write(root / campaign.LATEST, content)
    assert cli.accept_latest(root) == 2
    campaign.write(root / campaign.LATEST, {**content, "complete": True})
    (root / "reports/baselines").mkdir()
    assert cli.accept_latest(root) == 1  # it survives
    (root / "reports/baselines/mutants.json").unlink()
    (root / "reports/baselines").rmdir()
    _excuse(root, "1" * 12, reason="nobody can tell")
    assert cli.accept_latest(root) == 0
    assert campaign.read(root / campaign.BASELINE)["mutants"]["1" * 12]["excused"] == "equivalent"
    assert "nobody can tell" in (root / campaign.TABLE).read_text("utf-8")
    content["mutants"]["1" * 12] |= {"status": "killed", "how": "numeric", "rule": "G", "quantity": "loss"}
    campaign.write(root / campaign.LATEST, {**content, "complete": True})
    assert cli.accept_latest(root) == 1
    assert "excused, and the reason is shown to be wrong: 111111111111" in capsys.readouterr().err


def test_the_ladder_names_the_last_rung_that_is_killed(root):
    texts = trial.sources(root)
    found = mutants_of("ops", texts["ops"])
    rung = next(m for m in found if m.kind == "ladder" and m.function == "Tanh.compute")
    climbed = outcome(rung, texts)
    assert climbed.status == "killed"
    assert 16 <= climbed.rung <= 20
    untouched = next(m for m in found if m.kind == "ladder" and m.function == "Log.compute")
    assert outcome(untouched, texts).rung == 0


def test_what_needle_remembers_is_run_again_by_each_that_is_watched():
    """A line of a cached function would be reached by nobody but the first."""
    ones = needle.ops._ones
    ones((7,), np.dtype(np.float32))
    assert ones.cache_info().currsize
    tracer = trial.Tracer()
    tracer.lines.add(("ops", 1))
    tracer.anew()
    assert not ones.cache_info().currsize
    assert not tracer.lines
