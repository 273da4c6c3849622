"""The table of pairs and what judges it, without the libraries: torch itself stands for one, and faults are planted in it."""

import ast
import dataclasses
import itertools
import re

import numpy as np
import pytest

from oracle import check
from oracle.exits import ExitCode
from oracle.frameworks import judging, libraries, programs, run
from oracle.frameworks.libraries import LIBRARIES
from oracle.frameworks.pairs import AGREES, CONVENTION, DIFFERS, EDGES, Chapter
from oracle.frameworks.table import CHAPTERS, PAIRS

SEED = 7


def one(claim, ours, torch, *why, **more):
    """A row of a chapter of its own; torch's float32 stands for the library."""
    chapter = Chapter("a chapter", **more)
    getattr(chapter, claim)("torch", ours, torch, *why)
    return chapter.pairs[0]


@pytest.fixture
def _no_libraries(monkeypatch):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    libraries.missing.cache_clear()
    yield
    libraries.missing.cache_clear()


# -- the table -----------------------------------------------------------------------------------------------------------


def test_there_are_enough_rows_and_no_two_are_the_same():
    assert len(PAIRS) >= 400
    assert {p.library for p in PAIRS} == set(LIBRARIES)
    assert {c.title for c in CHAPTERS} == {p.chapter for p in PAIRS}
    keys = [p.key for p in PAIRS]
    assert len(set(keys)) == len(keys), [k for k in keys if keys.count(k) > 1]
    assert {p.claim for p in PAIRS} == {AGREES, CONVENTION, DIFFERS}


def test_expressions_are_python_in_the_names_of_the_inputs():
    for pair in PAIRS:
        for text in (pair.ours, pair.torch):
            names = ("p",) if pair.steps and text is pair.torch else () if pair.steps else pair.names
            used = {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
            assert set(names) <= used, pair.key


def test_torchs_side_of_every_row_gives_numbers():
    """On one kind of inputs each; what the libraries give is for the session."""
    rng = np.random.default_rng(0)
    for i, pair in enumerate(p for p in PAIRS if not p.steps):
        kinds = pair.kinds or ("normal",)
        given = judging.drawn(pair, kinds[i % len(kinds)], rng) if pair.kinds else next(judging.edges(pair))
        tensors = [judging.torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in given]
        made = judging.theirs(pair)(*tensors)
        assert isinstance(made, judging.torch.Tensor), pair.key


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (lambda c: c.differs("torch", "x", "x", ""), "a difference has a reason"),
        (lambda c: c.agrees("torch", "x", "x", x=4), "x is a shape or an array, but got 4"),
        (lambda c: (c.agrees("torch", "x", "x"), c.agrees("torch", "x", "x")), "stands in the table twice"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(row, words):
    with pytest.raises((ValueError, TypeError), match=words):
        row(Chapter("a chapter"))


# -- one row ---------------------------------------------------------------------------------------------------------------


def test_a_row_that_agrees():
    outcome = judging.judged(one("agrees", "torch.exp(torch.log_softmax(x, -1))", "F.softmax(x, -1)"), SEED)
    assert (outcome.state, outcome.verdict, outcome.as_claimed) == (AGREES, AGREES, True)
    assert 0 < outcome.share < check.LIMIT / 2
    assert outcome.cases == 6


def test_an_error_at_one_edge_is_found_and_made_small():
    pair = one(
        "differs",
        "torch.expm1(x) * (1 + 1e-3 * (x == 2.5))",
        "torch.expm1(x)",
        "planted",
        elementwise=True,
        edges=EDGES,
    )
    outcome = judging.judged(pair, SEED)
    programs.run(pair, outcome.shown)
    assert outcome.verdict == DIFFERS
    assert judging.EDGE in outcome.where
    assert outcome.shown.inputs["x"].tolist() == [2.5]
    assert outcome.shown.problem == ""
    assert re.search(r"PyTorch itself *11\.1936", outcome.shown.printed), outcome.shown.printed
    assert "x0 = np.array([2.5], np.float32)" in outcome.shown.program
    assert not programs._needed("from torch import nn", "jax.nn.relu(x)")


def test_edges_are_judged_one_at_a_time():
    """In one tensor, a hundredth of the noise of the largest would allow anything to the others."""
    outcome = judging.judged(
        one("differs", "1 / x + 0.001 * (x == 1)", "1 / x", "planted", elementwise=True, edges=(1e-20, 1.0), kinds=()),
        SEED,
    )
    assert outcome.shown.inputs["x"].tolist() == [1.0]


def test_a_wrong_gradient_is_shown_by_a_gradient():
    pair = one("differs", "x.abs()", "torch.where(x > 0, x, -x)", "planted", elementwise=True, edges=(-1.0, 0.0, 2.0))
    outcome = judging.judged(pair, SEED)
    programs.run(pair, outcome.shown)
    assert (outcome.shown.name, outcome.shown.inputs["x"].tolist()) == ("gradient of input 0", [0.0])
    assert "torch.autograd.grad" in outcome.shown.program
    assert outcome.shown.problem == ""


def test_rows_and_columns_are_left_out_as_long_as_it_differs():
    pair = one("convention", "x.var(-1, correction=0)", "x.var(-1)", "planted", x=("n", 5))
    outcome = judging.judged(pair, SEED)
    x = outcome.shown.inputs["x"]
    assert x.shape == (1, 5)
    assert set(np.unique(x)) <= {0.0, 1.0}
    programs.run(pair, outcome.shown)
    assert outcome.shown.problem == ""


def test_right_values_are_those_of_mpmath():
    pair = one(
        "differs",
        "torch.tanh(x) + (x == 0.5)",
        "torch.tanh(x)",
        "planted",
        elementwise=True,
        edges=(0.5,),
        kinds=(),
        right="mp.tanh(x)",
    )
    outcome = judging.judged(pair, SEED)
    programs.run(pair, outcome.shown)
    assert "mp.dps = 40" in outcome.shown.program
    assert outcome.shown.problem == ""
    assert outcome.shown.right == pytest.approx(0.46211715726000979, rel=1e-15)
    wrong = one(
        "differs",
        "torch.tanh(x) + (x == 0.5)",
        "torch.tanh(x)",
        "planted",
        elementwise=True,
        edges=(0.5,),
        kinds=(),
        right="mp.sinh(x)",
    )
    programs.run(wrong, outcome.shown)
    assert outcome.shown.problem.startswith("the right value was 0.462117157 before")


def test_a_program_that_does_not_show_it_is_told_apart():
    pair = one(
        "differs", "torch.tanh(x) + (x == 0.5)", "torch.tanh(x)", "planted", elementwise=True, edges=(0.5,), kinds=()
    )
    shown = judging.judged(pair, SEED).shown
    programs.run(one("agrees", "torch.tanh(x)", "torch.tanh(x)", elementwise=True), shown)
    assert re.match(r"0\.46211\d+ is within .* of 0\.46211", shown.problem)
    programs.run(one("agrees", "1 / 0 + x", "torch.tanh(x)", elementwise=True), shown)
    assert shown.problem == "the program ends with ZeroDivisionError: division by zero"


def test_a_program_has_all_of_a_large_array():
    x = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    shown = judging.Shown("normal", "output", (0, 0), 1.0, 0.0, 0.0, 1.0, 0.0, {"x": x}, None)
    text = programs.written(one("agrees", "x * 1", "x * 1"), shown)
    there = {}
    exec(text, there)
    assert np.array_equal(there["x0"], x)
    assert np.array_equal(there["ours"], x)


def test_what_a_library_raises_makes_no_verdict():
    outcome = judging.judged(one("agrees", "x.no_such_thing()", "x * 1"), SEED)
    assert outcome.state == judging.NOT_RUN
    assert outcome.why_not.startswith("AttributeError")


def test_the_same_seed_is_the_same_run():
    pair = one("convention", "x * 1.001", "x * 1", "planted", x=("n", "m"))
    first, again = (judging.judged(pair, SEED).shown for _ in range(2))
    assert programs.written(pair, first) == programs.written(pair, again)
    assert (first.ours, first.kind) == (again.ours, again.kind)


TORCH_STEPS = (
    "p = [nn.Parameter(torch.from_numpy(w0.copy()))]\nrule = {call}\nfor g in grads:\n"
    "    p[0].grad = torch.from_numpy(g)\n    rule.step()\nours = p[0].detach().numpy()"
)


@pytest.mark.parametrize(
    ("ours", "claim", "steps"),
    [
        ("torch.optim.Adam(p, 0.01)", "agrees", None),
        ("torch.optim.Adam(p, 0.01, eps=1e-3)", "convention", 1),
        ("torch.optim.Adam(p, 0.01, betas=(0.8, 0.999))", "convention", 2),
    ],
)
def test_an_optimizer_is_held_to_torchs_step_by_step(ours, claim, steps, monkeypatch):
    monkeypatch.setitem(
        LIBRARIES,
        "torch",
        dataclasses.replace(LIBRARIES["torch"], steps=TORCH_STEPS, imports=("from torch import nn",)),
    )
    libraries.imported.cache_clear()
    why = ("planted",) if steps else ()
    pair = one(claim, ours, "torch.optim.Adam(p, 0.01)", *why, grads=[[0.0]], steps=5, kinds=("normal", "zeros"))
    outcome = judging.judged(pair, SEED)
    assert outcome.as_claimed, outcome
    if steps:
        programs.run(pair, outcome.shown)
        assert outcome.shown.problem == ""
        assert outcome.shown.inputs["grads"].shape == (steps, 1)
    libraries.imported.cache_clear()


# -- the command -----------------------------------------------------------------------------------------------------------


ROWS = (
    one("agrees", "torch.tanh(x)", "torch.tanh(x)"),
    one("convention", "x.var(-1, correction=0)", "x.var(-1)", "divides by n", x=("n", 4)),
    one(
        "differs",
        "torch.tanh(x) + (x == 0.5) * 1e-3",
        "torch.tanh(x)",
        "planted",
        elementwise=True,
        edges=(0.5,),
        kinds=(),
    ),
)


@pytest.fixture
def ran(monkeypatch, tmp_path, capsys):
    def go(rows, **more):
        monkeypatch.setattr(run, "PAIRS", rows)
        monkeypatch.setattr(run, "meant", lambda path: tmp_path / path)
        code = run.frameworks(seed=SEED, accept=False, **more)
        texts = [(tmp_path / "reports/latest" / f"frameworks.{end}").read_text("utf-8") for end in ("md", "html")]
        return code, capsys.readouterr().out, texts

    return go


def test_the_page_says_what_was_found(ran):
    code, said, (markdown, html) = ran(ROWS)
    assert code == ExitCode.AGREE
    assert "3 pairs: 1 agree, 1 differ by convention, 1 differ;" in said
    for text in (markdown, html):
        assert run.TITLE in text
        assert "divides by n" in text
        assert "planted" in text
        assert "x0 = np.array([0.5], np.float32)" in text
        assert "0.4631171" in text
    assert "| PyTorch itself | " in markdown


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (one("agrees", "x * 1.001", "x * 1"), ExitCode.PART, "differs, but is said to: agrees"),
        (one("differs", "x * 1", "x * 1", "nothing"), ExitCode.PART, "agrees, but is said to: differs"),
        (one("agrees", "x.nothing()", "x * 1"), ExitCode.NO_VERDICT, "1 not run"),
    ],
)  # fmt: skip
def test_what_is_not_as_the_table_says_is_said_and_fails(ran, row, code, words):
    got, said, texts = ran([row])
    assert got == code
    assert words in said
    assert all(words in text for text in texts)


def test_a_difference_without_a_program_that_shows_it_fails(ran, monkeypatch):
    monkeypatch.setattr(programs, "problem", lambda pair, shown, there: "planted problem")
    code, said, _ = ran(ROWS)
    assert code == ExitCode.HARNESS
    assert "planted problem" in said


def test_ctrl_c_leaves_a_report_that_says_so(ran, monkeypatch):
    calls = itertools.count()

    def interrupted(pair, seed):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return judged(pair, seed)

    judged = run.judged
    monkeypatch.setattr(run, "judged", interrupted)
    code, said, texts = ran(ROWS)
    assert code == ExitCode.INTERRUPTED
    assert "interrupted after 2 of 3 pairs" in said
    assert all("interrupted after 2 of 3 pairs" in text for text in texts)


@pytest.mark.usefixtures("_no_libraries")
def test_without_a_library_its_rows_say_why(ran):
    rows = [p for p in PAIRS if p.library == "jax"][:2]
    code, said, (markdown, _) = ran(rows)
    assert code == ExitCode.NO_VERDICT
    assert "2 not run" in said
    assert "jax is not installed" in markdown


def test_no_such_row(monkeypatch, capsys):
    assert run.frameworks(seed=SEED, accept=False, names=["no such row"]) == ExitCode.USAGE
    assert "no such row; libraries are jax," in capsys.readouterr().out
