"""Another needle is judged by the course's contract: correct ones have no findings, and nothing in them is changed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from oracle.cases import case as c
from oracle.cases import fitting
from oracle.cases.battery import battery
from oracle.rules.alone import known_ops
from oracle.rules.judge import judge
from oracle.systems.foreign import Offer
from oracle.systems.ours.contract import BY_DESIGN, Course, contract_of

ROOT = Path(__file__).parents[3]
CORRECT = ("plain", "arrays", "lazy", "named")


@pytest.fixture(params=CORRECT)
def other(request):
    """A needle of tests/needles, under a name of its own, so that ours stays the one that is called needle."""
    name = f"needle_{request.param}"
    folder = ROOT / "tests" / "needles" / request.param / "needle"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        del sys.modules[known]


def classes_of(package):
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == package.__name__]
    found = {thing for module in modules for thing in vars(module).values() if isinstance(thing, type)}
    return {kind: dict(vars(kind)) for kind in found if kind.__module__.startswith(package.__name__)}


def test_nothing_is_found_and_nothing_is_changed(other):
    before = classes_of(other)
    lacking = Offer(left_open=fitting.LEFT_OPEN | {fitting.BROADCASTING}).lacking
    judged = 0
    for case in battery(lacking)[::9]:
        divergence = judge(case, other, peer_too=False).divergence
        failure = divergence.failure if divergence is not None else None
        if failure is not None and failure.absent:
            continue  # not offered
        assert divergence is None, f"{c.describe(case)}: {divergence}"
        judged += 1
    assert judged > 12
    assert classes_of(other) == before


def test_ops_are_known_by_what_they_do(other):
    known = {of.name: kind.__name__ for kind, of in known_ops(other).items()}
    assert {"add", "multiply", "matmul", "summation", "reshape", "broadcast_to", "transpose", "exp"} <= set(known)
    assert known["matmul"] == ("Product" if "named" in other.__name__ else "MatMul")


def test_what_differs_by_design_has_a_place(other):
    differs = {design.matter: place for design, place in contract_of(other).differs()}
    assert "retain_grad" in differs
    assert ("implicit broadcasting" in differs) == ("arrays" not in other.__name__)
    assert all(place.startswith("needle/") for place in differs.values())


def test_state_is_found_under_any_name(other):
    names = Course(other).names("Adam")
    assert set(names) == {"first moment", "second moment"}
    if "lazy" in other.__name__:
        assert names == {"first moment": "first", "second moment": "second"}


def test_the_contract_is_written_down():
    text = (ROOT / "oracle" / "README.md").read_text("utf-8")
    for design in BY_DESIGN:
        assert f"| {design.matter} | {design.ours} | {design.course} | {design.done} |" in text


def test_what_is_required_and_absent():
    offer = Offer(
        {"op tanh": "no", "layer BatchNorm": "no"}, required=("tanh", "BatchNorm1d", "Linear", "no such thing")
    )
    assert offer.absent == ["tanh", "BatchNorm1d", "no such thing"]


@pytest.mark.parametrize("lacking", [{"op tanh"}, {"loss SoftmaxLoss"}, {"layer BatchNorm"}, {fitting.BROADCASTING}])
def test_cases_are_made_to_fit(lacking):
    made = [fitting.fitted(case, lacking) for case in battery(())]
    assert sum(case is not None for case in made) > 150
    assert all(fitting.needs(case).isdisjoint(lacking) for case in made if case is not None)


def test_operands_of_equal_shape_have_the_same_numbers():
    operands = (c.Operand((2, 2), (1.0, 2.0, 3.0, 4.0)), c.Operand((2,), (5.0, 6.0)))
    made = fitting.fitted(c.OpCase("add", operands), {fitting.BROADCASTING})
    assert np.array_equal(made.operands[1].array, [[5, 6], [5, 6]])
