"""Rule OP: silent on correct code, and each of its checks catches a fault planted for it."""

import numpy as np
import pytest

import needle
from needle import ops
from oracle.blame import culprit, judged
from oracle.cases import case as c
from oracle.cases.strategies import FAR, op_cases
from oracle.operations import OPERATIONS
from oracle.rules import tape
from oracle.rules.tape import Findings
from oracle.runs.draws import draw, draw_from
from oracle.systems import ours
from oracle.systems.lockstep import Lockstep
from oracle.systems.recorded import record
from oracle.trust.patches import compute, contribution, replace, vjp, wrap


def findings(build, *shapes, seed=0, scale=1.0):
    """Rule OP on one backward pass through what ``build`` makes of normal operands."""
    rng = np.random.RandomState(seed)
    xs = [needle.Tensor((rng.standard_normal(s) * scale).astype(np.float32)) for s in shapes]
    out = build(*xs)
    g = rng.standard_normal(out.shape).astype(np.float32)
    nodes = record(out)
    out.backward(needle.Tensor(g, requires_grad=False))
    found = Findings()
    found.judge(nodes, g)
    return found


def first(build, *shapes):
    bad = findings(build, *shapes).bad
    assert bad, "nothing found"
    return bad[0]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_op_is_judged_on_every_case(name, monkeypatch):
    """No node is passed over, for what its definition does to a Bounded is known; and no bound is idle."""
    bounds = []
    right = tape.derived

    def spied(*args):
        value, bound, vjp = right(*args)
        bounds.append((value, bound))
        return value, bound, vjp

    monkeypatch.setattr(tape, "derived", spied)
    found, looked = Findings(), 0
    away = FAR if OPERATIONS[name].values == "far" else 0.0
    for case in draw_from(op_cases([name]), 200 if name == "conv" else 60, 0):  # a hundred numbers, and all ordinary
        numbers = [v for o in case.operands for v in o.values]
        bounds.clear()
        with np.errstate(all="ignore"):
            assert ours.run_op(case, needle, OPERATIONS[name].needle, found, graph=True).failure is None
        assert found.bad == [], c.describe(case)
        assert found.unknown == 0, c.describe(case)
        if all(isinstance(v, float) and 0.1 < abs(v - away) < 5 for v in numbers):
            for value, bound in bounds:
                for v, e in zip(*(x if isinstance(x, tuple) else (x,) for x in (value, bound)), strict=True):
                    is_number = ~np.isnan(v)  # the logarithm of a negative base is none, and has no bound
                    size = np.abs(v).max(initial=0, where=is_number)
                    assert (e[is_number] <= 1e-3 * max(1, size)).all(), c.describe(case)
                    looked += np.count_nonzero(is_number)
    assert looked > 0
    assert found.nodes > 60
    assert found.largest <= 1


@pytest.mark.parametrize(
    "index",
    [
        (1, slice(None), 2),
        (slice(2, 0, -1), slice(None, None, 2)),
        ([0, 2, 0], slice(None), [1, 1, 1]),
        (np.array([[0, 1], [1, 1]]),),
        (Ellipsis, 1),
        (slice(None), None, [2, 0]),
        (np.arange(24).reshape(3, 4, 2) % 3 == 0,),
    ],
    ids=str,
)
def test_every_index_is_judged(index):
    """An array of numbers may name a place twice, and two with a slice between them move to the front."""
    found = findings(lambda x: x[index] * 3, (3, 4, 3) if not isinstance(index[0], np.ndarray) else (3, 4, 2))
    assert (found.bad, found.unknown) == ([], 0)
    with contribution("GetItem", lambda g: g * np.float32(1 + 1e-5)).applied():
        assert first(lambda x: x[index] * 3, (3, 4, 3) if not isinstance(index[0], np.ndarray) else (3, 4, 2))


def test_correct_code_gives_no_finding_on_several_hundred_nodes():
    nodes = tensors = 0
    for case in draw("train", 90, 20):
        found = Findings()
        with np.errstate(all="ignore"):
            next(Lockstep(case, needle).steps(found))
        assert found.bad == [], (case.digest, found.bad[0].message)
        assert found.unknown == 0
        assert found.largest <= 1
        nodes += found.nodes
        tensors += found.tensors
    assert nodes > 300
    assert tensors > 1000


@pytest.mark.parametrize("seed", range(20))
def test_norms_and_softmax_on_difficult_data_give_no_finding(seed):
    rng = np.random.RandomState(seed)
    found = Findings()
    for _ in range(15):
        n, d = rng.randint(2, 9), rng.randint(1, 9)
        x = rng.standard_normal((n, d)) * rng.choice([0, 1e-6, 1, 1e4]) + rng.choice([0, 100, 1e5])
        if rng.rand() < 0.4:
            x[1:] = x[:1]
        x = needle.Tensor(x.astype(np.float32))
        w, b = (needle.Tensor(rng.standard_normal(d).astype(np.float32)) for _ in range(2))
        y = [
            lambda x=x, w=w, b=b: ops.batch_norm(x, w, b, 1e-5),
            lambda x=x, w=w, b=b: ops.layer_norm(x, w, b, 1e-12),
            lambda x=x: ops.logsumexp(x, 1),
            lambda x=x: ops.logsoftmax(x),
        ][rng.randint(4)]()
        nodes = record(y)
        g = rng.standard_normal(y.shape).astype(np.float32)
        y.backward(needle.Tensor(g))
        found.judge(nodes, g)
    assert found.bad == []
    assert found.unknown == 0


def test_a_wrong_value_is_found():
    with compute("Tanh", lambda y, a: y * np.float32(1 + 1e-5)).applied():
        found = first(lambda x: needle.tanh(x) * 2, (3, 4))
    assert (found.kind, found.direction, found.fault) == ("Tanh", "forward", "value")


def test_a_wrong_gradient_is_found_with_its_operand():
    with contribution("EWiseMul", lambda c: c * np.float32(1 + 1e-5), 1).applied():
        found = first(lambda a, b: a * b, (3, 4), (3, 4))
    assert (found.kind, found.direction, found.operand) == ("EWiseMul", "backward", 1)


def test_an_op_is_judged_by_what_its_block_says_alone():
    """Softplus is named in its block, and nowhere else in the oracle: rule G, rule OP and the suspect know it by that."""
    model = (c.Linear(3), c.ACTIVATIONS["Softplus"](), c.Linear(2))
    case = c.TrainCase(
        model=model, data=c.Data(rows=4, features=3), loss=c.SoftmaxLoss(), optimizer=c.SGD(), seed=1, steps=2
    )
    verdict = judged(case, needle, validate=True)
    assert (verdict.divergence, verdict.oracle_errors) == (None, [])
    with contribution("Softplus", lambda g: g * np.float32(1 + 2e-6)).applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert culprit(case, found) == "Softplus backward"


def test_a_wrong_shape_and_a_wrong_dtype_are_found():
    with replace("ops.Exp.compute", lambda self, a: np.exp(a).astype(np.float64)).applied():
        assert first(needle.exp, (2,)).fault == "dtype"
    with replace("ops.Summation.compute", lambda self, a: np.asarray(a.sum(keepdims=True))).applied():
        assert first(lambda x: x.sum(), (2, 2)).fault == "shape"


def test_a_lost_gradient_is_found():
    lost = wrap("ops.Linear.vjp", lambda old: lambda self, *args: (*old(self, *args)[:2], None))
    with lost.applied():
        found = first(ops.linear, (2, 3), (3, 2), (1, 2))
    assert (found.kind, found.fault, found.operand) == ("Linear", "missing", 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("add-overwrites", ("only one of 2 contributions counts: that of Tanh",)),
        ("add-keeps-first", ("only one of 2 contributions counts: that of Exp",)),
        ("add-doubles-first", ("of 2 contributions, that of Exp counts twice",)),
        ("add-subtracts", ("contributions are subtracted from each other",)),
        ("add-largest", ("the largest contribution wins",)),
        ("add-float16", ()),
    ],
)
def test_a_wrong_addition_is_told_from_a_wrong_rule(name, words):
    from oracle.trust.faults import FAULTS

    with FAULTS[name].patch.applied():
        found = first(lambda x: needle.tanh(x) * needle.exp(x), (3, 2))
    assert found.direction == "accumulation"
    assert tuple(e.words for e in found.fits) == words
    with vjp("Exp", lambda right, g, y, a: (g,)).applied():
        found = first(lambda x: needle.tanh(x) * needle.exp(x), (3, 2))
    assert (found.kind, found.direction) == ("Exp", "backward")


def test_an_array_that_several_tensors_share_is_told():
    """x gets the array of y, and something is added to it in place: what arrives at y alone is twice as much, by chance."""
    from oracle.trust.faults import FAULTS

    with FAULTS["add-in-place"].patch.applied():
        found = first(lambda x, y: needle.tanh((x + needle.exp(y)) + x), (3, 2), (3, 2))
    assert "it shares its array with another tensor, to which something is added in place" in [
        e.key for e in found.fits
    ]


def test_a_wrong_reduction_is_told_from_a_wrong_op():
    from oracle.trust.faults import FAULTS

    with FAULTS["broadcast-mean"].patch.applied():
        assert first(lambda a, b: a + b, (3, 4), (1, 4)).broadcast
    with contribution("EWiseAdd", np.negative, 1).applied():
        assert not first(lambda a, b: a + b, (3, 4), (1, 4)).broadcast


def test_backward_that_ignores_its_seed_is_found():
    from oracle.trust.faults import FAULTS

    with FAULTS["out-grad-ignored"].patch.applied():
        assert first(needle.exp, (3,)).direction == "seed"


def test_a_node_that_no_layer_shows_is_judged_too():
    # within Ops only the last value is observed; what cancels there is visible to this rule alone
    steps = (c.OpStep("exp", (0,)), c.OpStep("mul_scalar", (1,), {"c": 0.0}), c.OpStep("add", (0, 2)))
    case = c.TrainCase(
        model=(c.Linear(2), c.Ops(steps)),
        data=c.Data(rows=3, features=2),
        loss=c.SoftmaxLoss(),
        optimizer=c.SGD(),
        seed=1,
    )
    with compute("Exp", lambda y, a: y * np.float32(1.01)).applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert (found.rule, found.quantity) == ("OP", "operator")
    assert "Exp forward" in found.place
    assert found.suspect is not None
    assert found.suspect.what == "Exp forward"


def test_a_slope_that_underflows_may_be_lost_before_it_is_scaled_up():
    """sigmoid(-100) has three significant bits; a large adjoint makes an ordinary number of its slope."""
    x = needle.Tensor(np.float32([-100.0, -101.0]))
    nodes = record(out := ops.sigmoid(x) * 1e9)
    out.backward()
    found = Findings()
    found.judge(nodes, np.float32([1.0, 1.0]))
    assert (found.bad, found.nodes) == ([], 2)


def test_an_exponential_that_underflows_may_be_lost_before_it_is_scaled_up():
    """The same in a softmax, within one node (the case 630dc4ba): e⁻⁸⁷ has six bits less when it meets 1e4."""
    x = needle.Tensor(np.float32([[0.0, -87.4, 3.0], [-88.0, 1.0, 2.0]]))
    for y in (ops.logsoftmax(x) * 1e4, ops.logsumexp(x, (1,)) * 1e4, ops.exp(x - 3) * 1e4):
        nodes = record(y)
        g = np.full(y.shape, 3e4, np.float32)
        y.backward(needle.Tensor(g))
        found = Findings()
        found.judge(nodes, g)
        assert (found.bad, found.unknown) == ([], 0)


def test_what_is_not_on_the_tape_of_another_needle_is_passed_over():
    class Strange(ops.TensorOp):
        def compute(self, a):
            return a + 1

        def vjp(self, g, y, needs, a):
            return (g,)

    found = findings(lambda x: Strange()(x) * 2, (2,))
    assert found.unknown == 1
    assert found.bad == []
    assert record(object()) == []


def test_judging_leaves_no_trace():
    case = c.TrainCase(
        model=(c.Linear(2), c.BatchNorm()), data=c.Data(rows=4, features=3), loss=c.SoftmaxLoss(),
        optimizer=c.SGD(lr=0.1, momentum=0.9), seed=3, steps=2,
    )  # fmt: skip
    from oracle.cases import inputs
    from oracle.systems.ours import NeedleRun, step
    from oracle.systems.trace import State

    def run(watched):
        ours = NeedleRun(case, needle, inputs.slots(case), inputs.batches(case))
        ours.load(State(inputs.initial_state(case)))
        return [step(ours, 0, Findings() if watched else None), step(ours, 1)]

    for plain, watched in zip(run(False), run(True), strict=True):
        assert plain.values.keys() == watched.values.keys()
        for quantity, values in plain.values.items():
            for name, value in values.items():
                assert np.array_equal(value, watched.values[quantity][name]), (quantity, name)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_gradient_for_a_constant_operand_or_for_none_but_that_is_found(monkeypatch, constant):
    case = c.OpCase(op="multiply", operands=(c.Operand((1,), (2.0,)), c.Operand((1,), (3.0,))), constants=(constant,))
    assert judged(case, needle, validate=True).divergence is None
    right = ops.EWiseMul.vjp

    def swapped(self, g, y, needs, a, b):
        return right(self, g, y, needs[::-1], a, b)

    monkeypatch.setattr(ops.EWiseMul, "vjp", swapped)
    found = judged(case, needle).divergence
    assert found is not None
    assert (found.quantity, found.rule) in {("gradient", "missing"), ("exception in backward", "exception")}


def test_an_op_that_forgets_its_result_is_a_finding_and_no_error_of_the_oracle(monkeypatch):
    right = ops.SoftmaxCrossEntropy.compute
    monkeypatch.setattr(ops.SoftmaxCrossEntropy, "compute", lambda self, *xs: right(self, *xs) and None)
    case = c.OpCase("softmax_loss", (c.Operand((1, 2), (1.0, 2.0)),), attributes={"labels": (0,)})
    found = judged(case, needle).divergence
    assert found is not None
    assert culprit(case, found) == "SoftmaxCrossEntropy forward"
