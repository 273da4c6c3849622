"""A run: deterministic, honest about what it did, and of use when something fails."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from found import agreed

import needle
from oracle import apart
from oracle.__main__ import main
from oracle.blame import report
from oracle.cases import case as c
from oracle.runs import runner
from oracle.runs.draws import SHARD_SIZE, draw
from oracle.runs.result import Result
from oracle.runs.shard import joined, judge_apart, run_shard

ROOT = Path(__file__).parents[3]


def oracle(*args, cwd, **env):
    """``python -m oracle`` as a user runs it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", **env}
    return subprocess.run(
        [sys.executable, "-m", "oracle", *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_verdicts_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "WAVES", (1,))  # what the first shard has reached steers the second

    def run(workers):
        return runner.run(runner.Plan(seed=11, cases=150, workers=workers, digits=False, folder=tmp_path))

    one, two = run(1), run(2)
    agreed(one.exit_code, tmp_path)
    agreed(two.exit_code, tmp_path)
    assert one.result.digest == two.result.digest
    assert one.result.tally.tensors == two.result.tally.tensors > 10_000
    assert one.result.coverage == two.result.coverage
    assert sum(one.result.cases.values()) == 2 * SHARD_SIZE


def test_a_run_of_any_length_fits_into_memory():
    """What a case has computed is freed with it: left to the collector, it was 40 MB in a hundred cases."""
    cases = draw("train", 20, 5) + draw("op", 20, 5) + draw("second", 5, 5)
    result = Result()
    for case in cases[::4]:  # whatever is made once
        result.judge(case)
    gc.collect()
    gc.disable()
    try:
        for case in cases:
            result.judge(case, validate=True)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(thing).__name__ for thing in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {"Var", "Tape", "NeedleRun", "TorchRun", "Observation", "ndarray"} & set(left)
    assert len(left) < 50 * len(cases)


def test_cases_do_not_depend_on_what_is_imported(tmp_path):
    """Hypothesis would draw constants from the source of modules, needle's among them."""
    (tmp_path / "numbers_of_mine.py").write_text(
        f"NUMBERS = {[0.1 + i / 7 for i in range(200)]} + {list(range(101, 65000, 331))}"
    )
    draw = (
        "from oracle.runs.draws import draw; cases = draw('op', 78, 3) + draw('train', 16, 3);"
        "print(*(case.digest for case in cases))"
    )

    def drawn(first):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        command = [sys.executable, "-c", f"{first}; {draw}"]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    plain = drawn("import numpy")
    assert len(plain) == 94
    assert drawn("import numbers_of_mine") == plain


def test_a_seed_names_its_cases():
    first, other = run_shard(1, 0), run_shard(2, 0)
    # drawn anew: only the shard before is kept
    halves = joined([run_shard(1, 0, part=(part, 2)) for part in (0, 1)])
    for what in ("digests", "cases", "tally", "coverage", "shares"):
        assert getattr(halves, what) == getattr(first, what), "in parts it is the same shard"
    assert first.digests != other.digests
    assert first.digests != run_shard(1, 1).digests
    assert first.digests != run_shard(1, 0, reached=first.coverage).digests, "what is known steers"


def test_both_parts_of_a_shard_are_drawn_once(monkeypatch):
    asked = []
    cases = [c.OpCase(op="tanh", operands=(c.Operand((n,), (0.5,) * n),)) for n in (1, 2)]
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *about: asked.append(about) or cases)
    seed, known = 1 << 40, {"op tanh": 1}  # a shard that no other test asks for
    about = [(0, known, (0, 2)), (0, known, (1, 2)), (0, {"op tanh": 2}, (0, 1)), (1, known, (0, 1))]
    judged = [run_shard(seed, index, reached=reached, part=part) for index, reached, part in about]
    assert asked == [(seed, index, reached, frozenset()) for index, reached, _ in about[1:]]
    assert [sum(result.cases.values()) for result in judged] == [1, 1, 2, 2]


def wrong_tanh(self, g, y, needs, a):
    return (g * (1 - y * y) * np.float32(1.01),)


def test_a_fault_is_found_folded_shrunk_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(needle.ops.Tanh, "vjp", wrong_tanh)
    outcome = runner.run(runner.Plan(seed=1, cases=250, workers=2, digits=False, folder=tmp_path))
    assert outcome.exit_code == 1
    assert sum(f.count for f in outcome.failures) > len(outcome.failures), "failures of one kind are one entry"
    for failed in outcome.failures:
        path = tmp_path / f"{failed.case.digest}.json"
        assert c.read(path) == failed.case
        assert report.block(failed.case, failed.divergence, outcome.replay(failed)) in path.with_suffix(
            ".md"
        ).read_text("utf-8")
        assert "needle and torch part at step" in report.block(failed.case, failed.divergence, outcome.replay(failed))
    digest = outcome.failures[0].case.digest
    assert main(["replay", digest, "--from", str(tmp_path)]) == 1
    assert f"nox -s replay -- {digest} --from {tmp_path}" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["replay", digest, "--from", str(tmp_path)]) == 0
    assert "needle and torch agree" in capsys.readouterr().out


def test_a_shard_ends_with_as_many_failing_cases_as_are_enough_and_the_first_one_with_as_many_in_each_half(
    tmp_path, monkeypatch
):
    """Halves do not know of each other: so what a run counts depends on no worker's speed, and not on how many there are."""
    old = needle.ops.Linear.vjp
    monkeypatch.setattr(needle.ops.Linear, "vjp", lambda *given: [None if r is None else -r for r in old(*given)])
    whole = run_shard(1, 0, enough=2)
    halves = [run_shard(1, 0, enough=2, part=(part, 2)) for part in (0, 1)]
    assert [found.failing for found in (whole, *halves)] == [2, 2, 2]
    assert halves[0].cases == whole.cases
    assert SHARD_SIZE > sum(joined(halves).cases.values()) > sum(whole.cases.values())
    monkeypatch.setattr(runner, "ENOUGH", 2)
    monkeypatch.setattr(runner, "SHOWN", 0)
    monkeypatch.setattr(runner, "WAVES", (1, 7))

    def run(workers):
        return runner.run(runner.Plan(seed=1, cases=100, workers=workers, digits=False, folder=tmp_path)).result

    one, two = run(1), run(2)
    assert one.failing == runner.PARTS * 2
    assert one.digest == two.digest == joined(halves).digest


def test_an_error_of_the_oracle_is_not_held_against_needle(monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("oracle.runs.judgement.judged", broken)
    result = run_shard(1, 0)
    assert not result.failed
    assert len(result.harness_errors) == SHARD_SIZE
    assert "ZeroDivisionError: planted" in result.harness_errors[0]
    outcome = runner.Run(runner.Plan(seed=1, cases=1), result)
    assert outcome.exit_code == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["diff", "--cases", "0"], "a positive whole number is needed, got '0'"),
        (["diff", "--cases", "many"], "a positive whole number is needed, got 'many'"),
        (["diff", "--seed", "-3"], "a whole number from 0 on is needed, got '-3'"),
        (["diff", "--minutes", "nan"], "a positive number is needed, got 'nan'"),
        (["diff", "--cases", "5", "--minutes", "1"], "--minutes: not allowed with argument --cases"),
        (["diff", "--profile", "quick"], "invalid choice: 'quick'"),
        (["dif"], "invalid choice: 'dif'"),
        (["replay", "absent"], "no case 'absent' in"),
        (["replay", "absent.json"], "absent.json: No such file"),
    ],
)
def test_wrong_usage_is_told_without_a_traceback(args, message, tmp_path):
    done = oracle(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_replay_of_broken_files(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"format": 1, "kind": "train", "sede": 1}')
    folder = tmp_path / "cases"
    folder.mkdir()
    for stem in ("abc1", "abc2"):
        (folder / f"{stem}.json").write_text("{}")
    for args, message in [
        (["a.json"], "a.json: not JSON"),
        (["b.json"], "b.json: Object"),
        (["abc", "--from", "cases"], "'abc' is short for several cases: abc1, abc2"),
    ]:
        done = oracle("replay", *args, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_help_needs_no_torch(tmp_path):
    code = "import sys; from oracle.__main__ import parser; parser(); print('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_ctrl_c_leaves_a_correct_partial_summary(tmp_path, monkeypatch):
    shards = iter([run_shard(1, 0), run_shard(1, 1)])

    def outcome(future):
        try:
            return next(shards)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(runner, "_outcome", outcome)
    monkeypatch.setattr(runner, "PARTS", 1)
    run = runner.run(runner.Plan(seed=1, cases=2000, workers=1, digits=False, folder=tmp_path))
    assert run.interrupted
    assert run.exit_code == 130
    assert run.shards == 2
    assert sum(run.result.cases.values()) == 2 * SHARD_SIZE


def test_json_has_no_bare_infinities(tmp_path):
    report.dump(tmp_path / "x.json", {"a": float("inf"), "b": [np.float64("nan"), np.int64(3)], "c": (1, 2)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"a": "inf", "b": ["nan", 3], "c": [1, 2]}


def test_a_needle_that_hangs_fails_and_the_run_goes_on(monkeypatch):
    def hang(self, g, y, needs, a):
        while True:
            pass

    monkeypatch.setattr(needle.ops.Tanh, "vjp", hang)
    case = c.TrainCase(
        model=(c.Linear(2), c.Tanh()),
        data=c.Data(rows=2, features=2),
        loss=c.WeightedSum(),
        optimizer=c.SGD(),
        seed=0,
    )
    monkeypatch.setattr(apart, "CASE_SECONDS", 1.0)
    result = judge_apart([case])
    assert result.oracle_errors == result.harness_errors == []
    failure = result.failed[0].divergence.failure
    assert "does not come back within 1 s" in failure.message
    assert failure.where.startswith("needle/"), "the innermost line inside needle"
    assert result.failed[0].divergence.quantity == "exception in backward"


def test_a_worker_that_dies_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "run_shard", _die)
    outcome = runner.run(runner.Plan(seed=1, cases=50, workers=1, digits=False, folder=tmp_path))
    assert outcome.exit_code == 4
    assert "a worker process died" in outcome.result.harness_errors[0]


def _die(*args):
    os._exit(9)


def test_numpy_asks_for_no_huge_pages_where_cases_are_judged():
    code = (
        "from numpy._core import multiarray; import oracle.rules.judge; print(multiarray._set_madvise_hugepage(True))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False", (
        "what held before the call"
    )
