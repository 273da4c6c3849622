"""The page of a diff run says what the run says, whatever stands in it, and costs no verdict."""

import io
import json
import os
import typing

import pytest
from rich.console import Console

from needle import ops
from oracle import commands
from oracle.cases import case as c
from oracle.rules.verdict import Divergence, Suspect
from oracle.runs import closer, diff, history, page
from oracle.runs.drawn import MOST, drawing
from oracle.runs.draws import shard_cases
from oracle.runs.result import Failed, Result
from oracle.runs.runner import Plan, Run
from oracle.systems.trace import ENDED

DATA = c.Data(rows=2, features=2)
CASE = c.TrainCase(
    model=(c.Linear(2), c.Tanh()), data=DATA, loss=c.MSELoss(), optimizer=c.SGD(lr=0.1), seed=0, steps=3,
    lr_changes=(c.LrChange(2, 0.2),), gap=c.Gap(1),
)  # fmt: skip
OP = c.OpCase(op="exp", operands=(c.Operand((2,), (1.0, 2.0)),))


def divergence(**changes):
    usual = {
        "step": 0,
        "quantity": "adjoint",
        "name": "1",
        "rule": "G",
        "message": "differs",
        "ours": 2.0,
        "truth": 1.0,
    }
    return Divergence(**usual | {"dtype": "float32", "error": 1.0, "allowed": 1e-3} | changes)


def run_of(folder, *failures):
    run = Run(Plan(seed=1, cases=100, workers=1, folder=folder))
    run.failures = [Failed(case, part) for case, part in failures]
    return run


def html(run, beside=(), runs=None, **changes):
    summary = {**diff.to_json(run), **changes}
    return page.html(summary, beside, runs or [history.entry(summary, "2026-01-01 09:00 UTC", "0123abc")])


# -- a closer look


def test_the_steps_of_a_failing_case_show_losses_and_how_far_it_is_off(monkeypatch):
    good = closer.closer(CASE)
    assert (good.steps, good.upto) == ([0, 1, 2], [1, 2, 3])
    assert good.ours == pytest.approx(good.peer, rel=1e-5)
    assert max(good.shares) < 1
    assert good.shares == sorted(good.shares), "the largest up to a step never becomes less"
    right = ops.Tanh.vjp
    monkeypatch.setattr(ops.Tanh, "vjp", lambda self, g, *args: right(self, 1.001 * g, *args))
    assert min(closer.closer(CASE).shares) > 10


def test_the_first_steps_of_a_case_are_those_of_the_whole():
    first = closer.first_steps(CASE, 1)
    assert (first.steps, first.lr_changes, first.gap) == (1, (), None)
    assert closer.closer(first).ours == closer.closer(CASE).ours[:1]


def test_what_ends_the_process_is_looked_at_no_closer(monkeypatch):
    assert closer.closer(OP) is None
    assert closer.closer(CASE, ENDED) is None
    monkeypatch.setattr(ops.Tanh, "compute", lambda self, a: os._exit(0))
    assert closer.closer(CASE) is None


# -- the case drawn


def test_a_case_is_drawn_with_containers_nested_and_the_innermost_layer_marked():
    model = (c.Residual((c.Linear(2), c.Branch((c.Tanh(),), ()))),)
    case = c.TrainCase(model=model, data=DATA, loss=c.MSELoss(), optimizer=c.Adam(), seed=0, clip=c.Clip(2.0))
    drawn = drawing(case, _path_of(case, c.Tanh))
    (residual,) = drawn.model
    ((_, body),) = residual.bodies
    branch = body[1]
    assert [box.name for box in body] == ["Linear", "Branch"]
    assert [len(inner) for _, inner in branch.bodies] == [1, 0]
    assert [b.guilty for b in (residual, body[0], branch, branch.bodies[0][1][0])] == [False, False, False, True]
    assert [box.name for box in drawn.below] == ["MSELoss", "Clip", "Adam"]
    assert drawn.above[0].at == "2 x 2"
    parameter = drawing(case, f"{_path_of(case, c.Linear)}.weight").model[0].bodies[0][1][0]
    assert parameter.guilty


def _path_of(case, kind):
    return next(path for path, layer in c.walk(case.model) if type(layer) is kind)


def test_a_large_model_is_drawn_in_part():
    model = (c.Linear(2), *[c.Tanh() for _ in range(900)])
    drawn = drawing(c.TrainCase(model=model, data=DATA, loss=c.MSELoss(), optimizer=c.SGD(), seed=0))
    assert (len(drawn.model), drawn.left_out) == (MOST, 901 - MOST)


def test_an_operation_is_drawn_with_its_operands():
    drawn = drawing(OP)
    assert [(box.name, box.about) for box in drawn.above] == [("2", "1.0, 2.0")]
    assert (drawn.model[0].name, drawn.below[0].name) == ("exp", "2")


def test_every_kind_of_case_can_be_drawn():
    cases = list(shard_cases(0, 0))
    kinds = {type(case).__name__: drawing(case, "0.weight") for case in cases}
    assert set(kinds) >= {kind.__name__ for kind in typing.get_args(c.Case)}
    assert "action 0" in {box.at for box in kinds["ProgramCase"].below}


# -- the suspect's source


def test_the_source_around_the_suspect_comes_from_the_needle_under_test(tmp_path):
    (tmp_path / "needle/deep").mkdir(parents=True)
    (tmp_path / "needle/ops.py").write_text("".join(f"line {n}\n" for n in range(1, 40)))
    (tmp_path / "needle/deep/nn.py").write_text("inner\n")
    (tmp_path.parent / "secret.py").write_text("secret\n")
    found = page.source_lines({"suspect": {"line": "needle/ops.py:20"}}, [tmp_path])
    assert [(n, text) for n, text, at in found if at] == [(20, "line 20")]
    assert (found[0][0], found[-1][0]) == (20 - page.BEFORE, 20 + page.BEHIND)
    raised = {"suspect": {"line": ""}, "failure": {"where": "deep/nn.py:1 in compute"}}
    assert page.source_lines(raised, [tmp_path]) == [(1, "inner", True)]
    for place in ("", "needle/ops.py", "needle/none.py:3", "needle/ops.py:99", "../secret.py:1", "../../secret.py:1"):
        assert page.source_lines({"suspect": {"line": place}}, [tmp_path]) is None, place


# -- the history


def test_another_needle_has_a_history_of_its_own(tmp_path):
    summary = diff.to_json(run_of(tmp_path))
    runs = [history.entry(summary, "2026-01-01 09:00 UTC", "", needle) for needle in ("", "/a", "/b", "/a", "")]
    assert history.of("", runs) == [runs[0], runs[4]]
    assert history.of("/a", runs) == [runs[1], runs[3]]


def test_the_history_keeps_the_last_runs_and_passes_over_what_is_none(tmp_path):
    run = {"when": "now", "commit": "", "divergences": 0, "largest_share": {"G loss": 0.5}}
    odd = json.dumps({**run, "largest_share": 3})
    (tmp_path / history.NAME).write_text(odd + '\n{"when": 1}\nnot json\n[]\n' + json.dumps(run) + "\n")
    assert history.read(tmp_path) == [run]
    for number in range(history.MOST + 5):
        history.add(tmp_path, {**run, "seed": number})
    kept = history.read(tmp_path)
    assert [r["seed"] for r in kept] == list(range(5, history.MOST + 5))
    assert len((tmp_path / history.NAME).read_text().splitlines()) == history.MOST


def test_runs_before_are_on_the_page(tmp_path):
    run = run_of(tmp_path)
    run.result.judge(CASE)
    before = {"when": "yesterday", "commit": "beef", "divergences": 3, "largest_share": {"G loss": 0.77, "L x": "odd"}}
    this = history.entry(diff.to_json(run), "today", "0123abc")
    shown = html(run, runs=[before, this])
    assert "the run before: yesterday, commit beef, 3 divergences" in shown
    assert 'aria-label="G loss: 77%, ' in shown
    assert "today, commit 0123abc" in shown


# -- the page


def test_the_page_says_what_the_run_says(tmp_path):
    part = divergence(suspect=Suspect("Tanh backward", "layer 1", words="<script>alert(1)</script>"))
    run = run_of(tmp_path, (CASE, part))
    shown = html(run, [page.Beside(drawing(CASE, "1"))])
    assert "1 divergence in 0 cases" in shown
    assert "Tanh backward; layer 1; &lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert '<td>needle</td><td class="fails">2</td>' in shown
    assert "off by 1, allowed is 0.001, 1,000 times that" in shown
    assert run.again.split(" -- ")[1] in shown
    assert CASE.digest in shown


@pytest.mark.parametrize(
    ("changes", "words", "state"),
    [
        ({"exit_code": 0, "exit_codes": [0]}, "0 divergences in 0 cases", "good"),
        ({"exit_code": 3, "exit_codes": [3], "oracle_errors": ["<odd>"]}, "&lt;odd&gt;", "open"),
        ({"exit_code": 5, "exit_codes": [5]}, "nothing could be judged", "open"),
        ({"exit_code": 130, "exit_codes": [130], "interrupted": True}, "did not come to its end", "open"),
    ],
)
def test_the_verdict_is_that_of_the_exit_code(tmp_path, changes, words, state):
    shown = html(run_of(tmp_path), **changes)
    assert words in shown
    assert f'class="verdict {state}"' in shown


def test_the_page_has_a_bounded_size(tmp_path):
    """A needle may put anything into its messages, and fail in any number of ways."""
    text = "<&'\"" * 20_000
    part = divergence(message=text, ours=text, rule="exception", suspect=Suspect(text, text, text, text))
    run = run_of(tmp_path, *[(CASE, part)] * 400)
    run.result.oracle_errors = [text] * 1000
    run.notes = [text] * 1000
    shown = html(run, [page.Beside(drawing(CASE, "1"))] * page.SHOWN)
    assert len(shown) < 2_000_000
    assert f"{400 - page.SHOWN - page.LISTED} of them are in summary.json alone" in shown


def test_operations_are_counted_where_they_stand_alone_and_layers_in_models():
    result, other = Result(), Result()
    result.judge(OP)
    result.judge(CASE)
    other.judge(OP)
    alone = dict(result.shares["op exp"])
    assert alone["cases"] == 1
    assert 0 < alone["G"] < 1
    assert result.shares["layer Tanh"]["cases"] == 1
    assert "op tanh" not in result.shares
    other.shares["op exp"]["G"] = 0.99
    result.add(other)
    assert (result.shares["op exp"]["cases"], result.shares["op exp"]["G"]) == (2, 0.99)


# -- writing it


def written(run, capsys):
    console = Console(file=io.StringIO(), width=200)
    page.write(run, diff.to_json(run), console)
    return console.file.getvalue(), capsys.readouterr().err


def test_a_run_writes_its_page_and_its_line_in_the_history(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "commit", lambda folder: f"of {folder.name}")
    run = run_of(tmp_path, (CASE, divergence()))
    said, errors = written(run, capsys)
    assert commands.shown(tmp_path / "diff.html") in said
    assert errors == ""
    shown = (tmp_path / "diff.html").read_text("utf-8")
    assert shown.count("<figure") == 2
    assert f"commit of {commands.ROOT.name}" in shown
    assert len(history.read(tmp_path)) == 1
    run.interrupted = True
    written(run, capsys)
    assert len(history.read(tmp_path)) == 1
    assert "<figure" not in (tmp_path / "diff.html").read_text("utf-8")


def test_a_page_that_cannot_be_written_costs_no_verdict(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    said, errors = written(run_of(tmp_path / "file"), capsys)
    assert (said, "not written: " in errors) == ("", True)

    def broken(*_):
        raise TypeError("odd")

    monkeypatch.setattr(page, "html", broken)
    said, errors = written(run_of(tmp_path), capsys)
    assert said == ""
    assert "diff.html: TypeError: odd (test_diff_page.py:" in errors
    assert "please report it" in errors
