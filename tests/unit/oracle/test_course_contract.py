"""Another needle is judged by the course's contract: correct ones have no findings, and nothing in them is changed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import needle
from oracle.cases import case as c
from oracle.cases import fitting, inputs
from oracle.cases.battery import battery
from oracle.rules.alone import known_ops
from oracle.rules.judge import judge
from oracle.systems.foreign import Offer
from oracle.systems.ours.contract import BY_DESIGN, Course, contract_of

ROOT = Path(__file__).parents[3]
CORRECT = ("plain", "arrays", "lazy", "named", "functions", "slots")
WITH_CLASSES = [name for name in CORRECT if name != "functions"]  # of ops


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
    lacking = fitting.LEFT_OPEN | {fitting.BROADCASTING}
    if contract_of(other).array_gradients:
        lacking |= {fitting.HIGHER, "backward second order"}
    if contract_of(other).shared():
        lacking |= {fitting.SECOND}
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


@pytest.mark.parametrize("other", WITH_CLASSES, indirect=True)
def test_ops_are_known_by_what_they_do(other):
    known = {of.name: kind.__name__ for kind, of in known_ops(other).items()}
    assert {"add", "multiply", "matmul", "summation", "reshape", "broadcast_to", "transpose", "exp"} <= set(known)
    assert known["matmul"] == ("Product" if "named" in other.__name__ else "MatMul")


@pytest.mark.parametrize("other", WITH_CLASSES, indirect=True)
def test_a_class_behind_several_functions_means_none_of_them(other, monkeypatch):
    scaled = type(other.mul_scalar(other.Tensor(np.ones(2, np.float32)), 2.0).op)
    monkeypatch.setattr(other, "negate", lambda x: other.mul_scalar(x, -1.0))
    monkeypatch.setattr(other.Tensor, "__truediv__", other.mul_scalar)
    fresh = known_ops.__wrapped__(other)
    assert scaled not in fresh, "a product or a quotient?"
    monkeypatch.undo()
    monkeypatch.setattr(other, "negate", lambda x: other.mul_scalar(x, -1.0))
    assert known_ops.__wrapped__(other)[scaled].name == "mul_scalar"


@pytest.mark.parametrize("other", ["lazy"], indirect=True)
def test_what_a_needle_raises_late_is_no_contradiction_of_the_oracle(other, monkeypatch):
    """Looked at more closely, a step may compute what it did not compute before, and raise where nobody asks needle for anything."""

    def gradient(op, out_grad, node):  # shapes compared from the left
        old = node.inputs[0].shape
        axes = tuple(i for i, n in enumerate(tuple(old) + (1,) * (len(op.shape) - len(old))) if n == 1)
        return out_grad.sum(axes).reshape(old)

    monkeypatch.setattr(other.ops.BroadcastTo, "gradient", gradient)
    model = (c.LayerNorm(), c.Linear(129), c.LayerNorm())
    case = c.TrainCase(model, c.Data(4, 1024), c.WeightedSum(), c.SGD(lr=0.001, momentum=0.99), seed=5)
    verdict = judge(case, other, peer_too=False)
    assert verdict.divergence.failure.operator == "Reshape"
    search = verdict.search
    verdict.look()
    assert len(verdict.oracle_errors) == 1, (
        "the harness knows of no other needle here: it takes this for its own mistake"
    )
    monkeypatch.setattr("oracle.systems.candidate.chosen", lambda: Path(other.__file__).parents[1])
    monkeypatch.setattr("oracle.systems.candidate.home", lambda: str(Path(other.__file__).parent))
    verdict.search, verdict.oracle_errors = search, []
    verdict.look()
    assert verdict.oracle_errors == []


def test_what_differs_by_design_has_a_place(other):
    differs = {design.matter: place for design, place in contract_of(other).differs()}
    assert "retain_grad" in differs
    assert ("implicit broadcasting" in differs) == (other.__name__ not in ("needle_arrays", "needle_slots"))
    assert ("form of gradients" in differs) == ("slots" in other.__name__)
    assert ("gradients that carry a graph" in differs) == ("slots" not in other.__name__)
    assert all(place.startswith("needle/") for place in differs.values())


def test_state_is_found_under_any_name(other):
    places = Course(other).places("Adam")
    assert set(places) == {"first moment", "second moment"}
    expected = {
        "lazy": [("first", None), ("second", None)],
        "functions": [("", "m"), ("", "v")],
        "slots": [("state", "m"), ("state", "v")],
    }
    of = other.__name__.removeprefix("needle_")
    if of in expected:
        assert list(places.values()) == expected[of]
    written = {"functions": "p.m", "slots": "optimizer.state[id(p)]['m']", "arrays": "optimizer.m[3]"}
    if of in written:
        assert Course(other).written("Adam", "first moment", "p", 3) == written[of]


def dominated():
    """One row and two passes, in each of which the class of the label is far above the other one: a loss of 0."""
    for seed in range(1000):
        case = c.TrainCase(
            (c.Linear(2),), c.Data(1, 3, scale=1000.0), c.SoftmaxLoss(), c.SGD(lr=1e-6), seed, backward="accumulate"
        )
        state, given = inputs.initial_state(case), inputs.batches(case)
        z = (given.x[0] @ state["0.weight"] + state["0.bias"])[:, 0]
        above = [row[label] - row[1 - label] for row, label in zip(z, given.labels[0, :, 0], strict=True)]
        if min(above) > 200 and np.abs(z[1]).max() > 1.5 * np.abs(z[0]).max():
            return case
    raise AssertionError("no seed gives such a case")


DOMINATED = (dominated(), c.OpCase("softmax_loss", (c.Operand((1, 2), (1000.0, -500.0)),), {"labels": (0,)}))


@pytest.mark.parametrize("case", DOMINATED, ids=["training", "operation"])
@pytest.mark.parametrize("share", [-1.02, -0.98, 0.98, 1.02])
def test_a_loss_may_carry_the_rounding_of_its_logits_and_no_more(other, case, share, monkeypatch):
    """Four units of float32's rounding, 2^-24, of the largest logit; ours is held to the rounding of the loss."""
    for ndl in (other, needle):
        right = ndl.nn.SoftmaxLoss.forward

        def off(loss, logits, labels, right=right):
            return right(loss, logits, labels) + share * 4 * 2.0**-24 * float(np.abs(logits.numpy()).max())

        assert judge(case, ndl, peer_too=False).divergence is None
        monkeypatch.setattr(ndl.nn.SoftmaxLoss, "forward", off)
        found = judge(case, ndl, peer_too=False).divergence
        assert (found is not None) == (abs(share) > 1 or ndl is needle), found
        if found is not None:
            assert (found.rule, found.index) == ("G", ())
            assert found.quantity in ("loss", "activation")


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


def test_no_needle_of_the_course_is_asked_for_a_unit_matrix_of_a_hundred_thousand_rows():
    k = 2 * fitting.MOST_CLASSES + 5
    operand = c.Operand((2, k), tuple(float(i) for i in range(2 * k)))
    case = c.OpCase("softmax_loss", (operand,), attributes={"labels": (1, fitting.MOST_CLASSES + 4)})
    assert fitting.WIDE in fitting.LEFT_OPEN
    made = fitting.fitted(case, {fitting.WIDE})
    assert made.operands[0].shape == (2, fitting.MOST_CLASSES)
    assert (made.operands[0].values[0], made.operands[0].values[-1]) == (0, k + fitting.MOST_CLASSES - 1)
    assert made.attributes["labels"] == (1, 4)
    assert fitting.fitted(case, set()) is case
    narrow = c.OpCase("softmax_loss", (c.Operand((1, 2), (0.0, 1.0)),), attributes={"labels": (1,)})
    assert fitting.fitted(narrow, {fitting.WIDE}) is narrow


def test_operands_of_equal_shape_have_the_same_numbers():
    operands = (c.Operand((2, 2), (1.0, 2.0, 3.0, 4.0)), c.Operand((2,), (5.0, 6.0)))
    made = fitting.fitted(c.OpCase("add", operands), {fitting.BROADCASTING})
    assert np.array_equal(made.operands[1].array, [[5, 6], [5, 6]])
