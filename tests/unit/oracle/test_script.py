"""The standalone script: it fails while needle does, agrees once needle is fixed, and needs neither oracle nor Hypothesis."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

import needle
from oracle.blame import headline, judged, report, script
from oracle.cases import case as c
from oracle.cases.features import EDITS
from oracle.cases.strategies import op_cases
from oracle.commands import Asked
from oracle.rules.verdict import Divergence
from oracle.runs.draws import draw, draw_from
from oracle.systems.ours import again_unwatched
from oracle.trust.faults import FAULTS
from oracle.trust.patches import around, compute, replace, wrap

ROOT = Path(__file__).parents[3]
SGD = c.SGD(lr=0.25, momentum=0.5, weight_decay=0.5)


def train(*model, steps=1, optimizer=SGD, rows=4, loss=None, **more):
    data = c.Data(rows=rows, features=3)
    return c.TrainCase(
        model=model, data=data, loss=loss or c.SoftmaxLoss(), optimizer=optimizer, seed=1, steps=steps, **more
    )


def alone(folder, text):
    """Runs a script where only numpy, torch and the needle of a folder can be imported."""
    (folder / "failing.py").write_text(text, encoding="utf-8")
    for name in ("oracle", "hypothesis", "msgspec", "jinja2", "rich"):
        (folder / f"{name}.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "failing.py", "--needle", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


CASES = {
    "train": train(c.Linear(3), c.Residual((c.Tanh(), c.BatchNorm())), c.Dropout(0.5), steps=2),
    "second": c.SecondOrderCase(
        model=(c.Linear(2), c.Tanh(), c.Linear(2)), data=c.Data(rows=3, features=2), loss=c.SoftmaxLoss(), seed=1
    ),
    "op": c.OpCase(op="tanh", operands=(c.Operand((2, 2), (0.5, 1.0, -1.0, 0.25), layout="F"),)),
}


@pytest.mark.parametrize("order", [2, 3])
def test_alone_it_differentiates_an_operation_again(order, tmp_path):
    case = c.OpCase(op="tanh", operands=(c.Operand((3,), (0.5, 1.0, -1.0)),), cotangent=(2.0, -1.0), order=order)
    right, cut = "(g * (1 - y * y),)", "(g * (1 - y * _fixed(g, _value(y))),)"  # half of its own derivative
    source = (ROOT / "needle" / "ops.py").read_text(encoding="utf-8")
    assert source.count(right) == 1

    def constant(self, g, y, needs, a):
        return (g * (1 - y * needle.ops._fixed(g, needle.ops._value(y))),)

    with wrap("ops.Tanh.vjp", lambda old: constant).applied():
        found = judged(case, needle).divergence
        assert found is not None
        assert found.quantity == "second gradient"
        assert found.suspect.what == "Tanh second backward"
        report.write(case, found, Asked(folder=tmp_path))
    text = (tmp_path / f"{case.digest}.py").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "needle", tmp_path / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    run = alone(tmp_path, text)
    assert run.returncode == 0, run.stdout + run.stderr
    (tmp_path / "needle" / "ops.py").write_text(source.replace(right, cut), encoding="utf-8")
    run = alone(tmp_path, text)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"truth    {headline.number(found.truth)}   (float64)" in run.stdout


@pytest.mark.parametrize("kind", CASES)
def test_alone_it_shows_the_numbers_of_the_block_and_its_exit_code_says_whether_they_part(kind, tmp_path):
    case = CASES[kind]
    fault = wrap("ops.Tanh.vjp", lambda old: lambda self, g, y, needs, a: (g * (1 - y),))
    with fault.applied():
        found = judged(case, needle).divergence
        assert found is not None
        report.write(case, found, Asked(folder=tmp_path))
    text = (tmp_path / f"{case.digest}.py").read_text(encoding="utf-8")
    broken, fixed = tmp_path / "broken", tmp_path / "fixed"
    for folder in (broken, fixed):
        shutil.copytree(ROOT / "needle", folder / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    source = (broken / "needle" / "ops.py").read_text(encoding="utf-8")
    assert source.count("(g * (1 - y * y),)") == 1
    (broken / "needle" / "ops.py").write_text(source.replace("1 - y * y", "1 - y"), encoding="utf-8")
    run = alone(broken, text)
    assert run.returncode == 1, run.stderr
    assert f"needle   {headline.number(found.ours)}   (float32)" in run.stdout
    assert f"torch    {headline.number(found.peer)}   (float32)" in run.stdout
    assert f"error    {found.error:.2g}" in run.stdout
    if kind == "train":  # the other kinds are shown to agree without the fault below, in this process
        run = alone(fixed, text)
        assert run.returncode == 0, run.stdout + run.stderr
    else:
        assert not script.fails(text)


def every_third_step(old):
    def step(self):
        self.ticks = getattr(self, "ticks", 0) + 1
        old(self)
        if self.ticks == 3:
            for p in self.params:
                p.cached_data = p.cached_data * np.float32(1.5)

    return step


def raising(self, a):
    raise ValueError("planted")


def scaled_without_graph(old, plan, x):
    y = old(plan, x)
    return y if needle.autograd._is_recording() else y.make_const(y.cached_data * np.float32(1.01))


def unwatched(case, at=0):
    """The case with the first seed for which the pass at a step is taken again without anybody who watches."""
    again = (structs.replace(case, seed=seed) for seed in range(100))
    return next(case for case in again if again_unwatched(case, at))


OPS = c.Ops((c.OpStep("exp", (0,)), c.OpStep("mul_scalar", (1,), {"c": 0.0}), c.OpStep("add", (0, 2))))
BRANCH = c.Branch((c.Linear(2), c.Sigmoid()), (c.LayerNorm(), c.Linear(2)), "multiply")
EVERYTHING = train(
    c.Linear(3), c.Flatten(), c.Identity(), c.Unused(2), c.Eval((c.BatchNorm(), c.Dropout())), c.Linear(3, tie=0),
    c.Linear(3, frozen=True, bias=False), BRANCH, c.Sequential((c.ReLU(),)), steps=2, loss=c.MeanSquare(),
    backward="accumulate", input_grad=True, clip=c.Clip(), optimizer=c.Adam(), lr_changes=(c.LrChange(1, 0.5),),
)  # fmt: skip
PLAIN = train(c.Linear(3), c.Tanh(), c.Linear(2), steps=4)
LARGE = c.TrainCase(
    model=(c.Linear(40), c.Tanh(), c.Linear(2)),
    data=c.Data(rows=30, features=20),
    loss=c.Cotangent(),
    optimizer=SGD,
    seed=1,
)
LR = train(c.Linear(2), steps=3, lr_changes=(c.LrChange(1, 0.125),))
PLANTED = {
    "velocity": (FAULTS["sgd-undampened-first-step"].patch, PLAIN),
    "velocity later": (FAULTS["sgd-velocity-by-gradient"].patch, PLAIN),
    "stale rate": (FAULTS["sgd-lr-captured"].patch, LR),
    "gap": (FAULTS["sgd-skipped-decays"].patch, train(c.Linear(2), steps=3, gap=c.Gap(1, 1))),
    "gap, Adam": (FAULTS["adam-t-of-all"].patch, train(c.Linear(2), steps=3, gap=c.Gap(1), optimizer=c.Adam())),
    "hidden counter": (wrap("optim.SGD.step", every_third_step), PLAIN),
    "gradient after step": (FAULTS["sgd-decay-in-gradient"].patch, PLAIN),
    "kept": (FAULTS["sgd-parameter-in-place"].patch, PLAIN),
    "labels handed in": (FAULTS["loss-shifts-labels"].patch, PLAIN),
    "input handed in": (FAULTS["batchnorm-centres-input"].patch, train(c.BatchNorm(), c.Linear(2))),
    "cotangent handed in": (FAULTS["backward-clears-cotangent"].patch, LARGE),
    "input handed in to an evaluation": (
        FAULTS["batchnorm-centres-evaluated"].patch,
        train(c.BatchNorm(), c.Linear(2)),
    ),
    "clip norm": (FAULTS["clip-l1"].patch, train(c.Linear(2), clip=c.Clip(0.5))),
    "clipped": (FAULTS["clip-never"].patch, train(c.Linear(2), clip=c.Clip(0.01))),
    "adam": (FAULTS["adam-t-stuck"].patch, EVERYTHING),
    "everything": (compute("Sigmoid", lambda y, a: y * np.float32(1.1)), EVERYTHING),
    "evaluation": (
        replace("nn.Module.eval", lambda self: self),
        train(c.Linear(3), c.BatchNorm(), c.Dropout(0.5), c.Linear(2)),
    ),
    "operator": (compute("Exp", lambda y, a: y * np.float32(1.01)), train(c.Linear(2), OPS)),
    "exception": (replace("ops.Tanh.compute", raising), PLAIN),
    "parameters": (wrap("nn.Module.parameters", lambda old: lambda self: old(self)[::-1]), PLAIN),
    "initial": (wrap("init.kaiming_uniform", lambda old: lambda *a, **k: old(*a, **k) * 1.01), PLAIN),
    "buffer": (
        wrap("nn.BatchNorm1d._follow", lambda old: lambda self, mean, var: old(self, mean, var * 2)),
        train(c.Linear(3), c.BatchNorm(), c.Linear(2)),
    ),
    "dtype": (replace("ops.Tanh.compute", lambda self, a: np.tanh(a).astype(np.float64)), PLAIN),
    "large": (compute("Tanh", lambda y, a: y * np.float32(1.01)), LARGE),
    "unwatched": (FAULTS["chain-forgets-result"].patch, train(c.Linear(3), c.ReLU(), c.Linear(2), steps=4)),
    "unwatched twice": (
        around("chain._nodes", lambda old, records, x, numbers: old([*records, records[1]], x, numbers)),
        train(c.Linear(3), c.Tanh(), steps=4, loss=c.Cotangent(), backward="twice", input_grad=True),
    ),
    "unwatched evaluation": (
        around("chain.run", scaled_without_graph),
        unwatched(train(c.Linear(3), c.Tanh(), steps=4), at=3),
    ),
    "unwatched second order": (
        around("chain._nodes", lambda old, records, x, numbers: old([*records, records[1]], x, numbers)),
        unwatched(c.SecondOrderCase((c.Linear(2), c.Tanh(), c.Linear(3)), c.Data(3, 2), c.WeightedSum(), seed=0)),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_it_fails_with_the_fault_and_agrees_without(name):
    patch, case = PLANTED[name]
    with patch.applied():
        found = judged(case, needle).divergence
        assert found is not None
        text = script.checked(case, found)
        assert script.fails(text), found.message
    assert not script.fails(text), found.message


def test_what_needle_says_of_a_dtype_is_no_exception_in_a_script(monkeypatch, capsys):
    patch, case = PLANTED["dtype"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(needle.ops, "_warned", False)
    with patch.applied(), warnings.catch_warnings(), np.errstate():
        text = script.script(case, judged(case, needle).divergence, needle)
        needle.ops._warned = False
        space = {"__name__": "script"}
        exec(compile(text, "script", "exec"), space)
        assert space["main"]() == 1
    assert "needle   shape (4, 3), float64\n" in capsys.readouterr().out


def test_scripts_of_right_cases_agree():
    # every kind of layer, loss and optimizer that the generator draws can be written down
    for case in draw("train", 8, 31):
        found = Divergence(
            case.steps - 1, "activation", "0", "G", "planted", (0, 0), 0.0, 0.0, 0.0, "float32", 1.0, 1e9
        )
        text = script.script(case, found, needle)
        compile(text, "script", "exec")
        assert not script.fails(text), case.digest


def test_scripts_of_right_operations_agree():
    # what a side of a block calls is written down with it: every kind of index, and every block with helpers
    base = c.OpCase(op="negate", operands=(c.Operand((3, 2), (1.0, -2.0, 0.5, 3.0, 0.25, -1.0)),))
    kinds = "index", "argument negative", "argument -1", "argument a new"
    cases = [edit(base) for label, edit in EDITS[c.OpCase].items() if label.startswith(kinds)]
    names = ("picked", "var", "where", "clip", "concatenate")
    orders = [op_cases([name], order=order) for name in names for order in (1, 2, 3)]
    drawn = [case for strategy in orders for case in draw_from(strategy, 4, 7)]
    assert {(case.op, case.order) for case in drawn} == {(name, order) for name in names for order in (1, 2, 3)}
    cases += [case for case in drawn if 0 not in case.result_shape]
    assert len({case.op for case in cases}) >= 12
    for case in cases:
        first = (0,) * len(case.result_shape)
        found = Divergence(0, "activation", case.op, "G", "planted", first, 0.0, 0.0, 0.0, "float32", 1.0, 1e9)
        assert not script.fails(script.script(case, found, needle)), c.describe(case)


def test_a_script_that_cannot_be_written_does_not_lose_the_case(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(script, "checked", refuse)
    with PLANTED["velocity"][0].applied():
        found = judged(PLAIN, needle).divergence
    path = report.write(PLAIN, found, Asked(folder=tmp_path))
    assert path.exists()
    assert "no standalone script: RuntimeError: planted" in path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def planted_scripts():
    """Texts of a script of each kind."""
    fault = compute("Tanh", lambda y, a: y * np.float32(1.25))
    cases = {**CASES, "twice": train(c.Linear(3), c.Tanh(), c.Linear(2), backward="twice", loss=c.MeanSquare())}
    with fault.applied():
        return {kind: script.checked(case, judged(case, needle).divergence) for kind, case in cases.items()}


def run_at(path, *words, **env):
    command = [sys.executable, "-W", "error", path.name, *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, env=environment, timeout=120)


def test_a_script_never_falls_back_on_another_needle(planted_scripts, tmp_path):
    text = planted_scripts["op"]
    assert f"FOLDER = {str(ROOT)!r}" in text
    path = tmp_path / "failing.py"
    path.write_text(text, encoding="utf-8")
    done = run_at(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"  of       {ROOT}\n" in done.stdout, "the one that it was written for, wherever it is run"
    path.write_text(text.replace(f"FOLDER = {str(ROOT)!r}", "FOLDER = '/nowhere'"), encoding="utf-8")
    for words, message in (
        ((), "no package needle in /nowhere"),
        (("--needle", tmp_path / "absent"), f"no package needle in {tmp_path / 'absent'}"),
        (("--nedle", "x"), "usage: "),
    ):
        done = run_at(path, *words, PYTHONPATH=str(ROOT))
        assert done.returncode == 2, done.stdout + done.stderr
        assert message in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("kind", CASES)
def test_the_lines_that_matter_come_first(kind, planted_scripts):
    lines = planted_scripts[kind].splitlines()
    code = lines.index("from __future__ import annotations")
    assert any(line.startswith("    needle   ") for line in lines[:code]), "the numbers"
    first = "def in_needle(operands):" if kind == "op" else "def needle_model():"
    assert lines.index(first) < code + 8


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A needle of the course, which has neither retain_grad nor no_grad nor keywords for backward; and one with the fault."""
    found = []
    for name in ("right", "wrong"):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(ROOT / "tests" / "needles" / "plain" / "needle", folder / "needle")
        found.append(folder)
    path = found[1] / "needle" / "ops.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("        return array_api.tanh(a)\n") == 1
    assert not any(name in text for name in ("retain_grad", "no_grad"))
    path.write_text(text.replace("array_api.tanh(a)\n", "1.25 * array_api.tanh(a)\n"), encoding="utf-8")
    return found


@pytest.mark.parametrize("kind", [*CASES, "twice"])
def test_on_a_needle_of_the_course_it_shows_the_numbers(kind, course, planted_scripts, tmp_path):
    right, wrong = course
    path = tmp_path / "failing.py"
    path.write_text(planted_scripts[kind], encoding="utf-8")
    done = run_at(path, "--needle", wrong)
    assert (done.returncode, done.stderr) == (1, "")
    numbers = dict(line.split()[:2] for line in done.stdout.splitlines() if line.startswith(("  needle", "  truth")))
    assert abs(float(numbers["needle"]) - float(numbers["truth"])) > 0.01, done.stdout
    if kind == "train":
        done = run_at(path, "--needle", right)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_script_ends_whatever_hangs(planted_scripts, tmp_path):
    text = planted_scripts["op"]
    assert text.count("\nPATIENCE = 30") == text.count('\n    tell(b"h")\n') == 1
    path = tmp_path / "failing.py"
    text = text.replace("\nPATIENCE = 30", "\nPATIENCE = 3")
    path.write_text(
        text.replace('    tell(b"h")\n', '    tell(b"h")\n    while True:\n        pass\n'), encoding="utf-8"
    )
    done = run_at(path)
    assert (done.returncode, done.stderr) == (4, "")
    assert "not done within 3 s" in done.stdout


@pytest.mark.parametrize("loss", c.Loss.__args__, ids=lambda loss: loss.__name__)
def test_a_script_of_every_loss_agrees_in_both_orders(loss):
    """With a Conv, whose weight torch holds in another layout."""
    about = {"data": c.Data(rows=3, features=2), "loss": loss(), "seed": 1}
    model = (c.Linear(6), c.Conv(2, 1, 2, 2), c.Linear(2))
    train = c.TrainCase(model=model, optimizer=c.SGD(momentum=0.9), steps=2, **about)
    assert not script.fails(script.script(train, Divergence(1, "parameter", "1.weight", "T", ""), needle))
    second = c.SecondOrderCase(model=model, **about)
    assert not script.fails(script.script(second, Divergence(0, "second", "1.weight", "G", ""), needle))
