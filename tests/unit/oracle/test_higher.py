"""Single operations, differentiated twice and three times."""

import msgspec
import numpy as np
import pytest
import torch

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.cases import strategies
from oracle.cases.shrink import candidates
from oracle.operations import OPERATIONS
from oracle.operations.tape import REPLICAS
from oracle.rules.again import wrong_again
from oracle.runs.draws import OP_NAMES, draw, independent
from oracle.systems import higher, recorded
from oracle.systems.noise import Largest
from oracle.trust.faults import FAULTS

CASES = [case for i in range(4) for case in draw("op", len(OP_NAMES), 11, i) if case.order > 1]


def operation(name, *shapes, order=2, **attributes):
    rng = np.random.RandomState(1)
    operands = tuple(c.Operand(s, tuple(np.round(1 + rng.rand(int(np.prod(s))), 3).tolist())) for s in shapes)
    return c.OpCase(op=name, operands=operands, attributes=attributes, cotangent=(1.0, -2.0, 0.5), order=order)


def nodes_of(case):
    operands = [needle.Tensor(o.array) for o in case.operands]
    with np.errstate(all="ignore"):
        return nodes_below(case, operands)


def nodes_below(case, operands):
    return recorded.record(OPERATIONS[case.op].needle(needle, *operands, **case.attributes))


def test_a_right_needle_agrees_and_torch_does_too():
    for case in CASES:
        verdict = judged(case, needle)
        assert verdict.divergence is None, (c.describe(case), verdict.divergence)
        assert not verdict.oracle_errors, (c.describe(case), verdict.oracle_errors)


def test_the_truth_is_torchs_derivative_and_its_replicas_are_noisy_each_in_its_own_way():
    case = operation("exp", (3,), order=3)
    found = higher.truth(case)
    x, g = case.operands[0].array.astype(np.float64), case.cotangent_array.astype(np.float64)
    d = case.direction(1, "operand 0", (3,)).astype(np.float64)
    by = found["second gradient"]
    assert by["operand 0"].shape == (REPLICAS, 3)
    np.testing.assert_allclose(by["operand 0"][0], g * d * np.exp(x), rtol=1e-14)
    np.testing.assert_allclose(by["cotangent"][0], d * np.exp(x), rtol=1e-14)
    e, h = (case.direction(2, name, (3,)).astype(np.float64) for name in ("operand 0", "cotangent"))
    third = found["third gradient"]["operand 0"]
    np.testing.assert_allclose(third[0], (e * g + h) * d * np.exp(x), rtol=1e-13)
    off = np.abs(third[1:] / third[0] - 1)
    assert (off.max(axis=1) > 1e-9).all(), "every replica but the first has noise"
    assert off.max() < 1e-5
    assert len({row.tobytes() for row in third}) == REPLICAS


def test_what_does_not_flow_needs_no_gradient():
    case = operation("add", (3,), (3,), order=3)
    assert "third gradient" not in higher.truth(case)
    assert judged(case, needle).divergence is None


@pytest.mark.parametrize(
    ("fault", "case", "what"),
    [
        ("tanh-second-detached", operation("tanh", (3,)), "Tanh second backward"),
        ("tanh-second-detached", operation("tanh", (3,), order=3), "Tanh second backward"),
        ("matmul-second-off", operation("matmul", (2, 3), (3, 2)), "MatMul second backward"),
        ("transpose-second-cut", operation("transpose", (2, 3)), "Transpose second backward"),
        (
            "layernorm-third-off",
            operation("layer_norm", (2, 3), (3,), (3,), order=3, eps=1e-3),
            "layer_norm third backward",
        ),
        ("powerscalar-second-off", operation("power_scalar", (3,), c=3.0), "PowerScalar second backward"),
    ],
)
def test_a_fault_of_a_higher_order_is_found_and_the_op_is_named(fault, case, what):
    assert judged(case, needle).divergence is None
    with FAULTS[fault].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert found.quantity == ("third gradient" if "third" in what else "second gradient")
    assert found.suspect.what == what


def test_an_op_alone_is_suspected_only_if_it_is_wrong():
    nodes = [node for case in CASES for node in nodes_of(case)]
    assert len(nodes) > 60
    assert not any(map(wrong_again, nodes))
    for fault, case in [
        ("exp-second-detached", operation("exp", (3,))),
        ("reshape-second-cut", operation("reshape", (2, 3), shape=(3, 2))),
        ("ewisediv-second-off", operation("divide", (2, 3), (3,))),
    ]:
        with FAULTS[fault].patch.applied():
            assert [wrong_again(node) for node in nodes_of(case)] == [True]


def test_at_a_kink_that_is_alike_on_both_sides_no_op_is_suspected():
    """Where low is high the gradient of clip passes there alone."""
    case = c.OpCase("clip", (c.Operand((2,), (-2.0, 1.0)),), {"low": -2.0, "high": -2.0}, cotangent=(1.0, 2.0), order=2)
    (node,) = nodes_of(case)
    assert not wrong_again(node)


def test_a_failing_case_gets_smaller_in_its_order_too():
    assert {x.order for x in candidates(operation("tanh", (3,), order=3))} == {1, 2, 3}


def test_torchs_norms_have_no_third_derivative():
    """The contract: to its double backward the saved statistics are constants; in elementary operations it is right."""
    for name in ("batch_norm", "layer_norm"):
        case = operation(name, (4, 3), (3,), (3,), order=3, eps=1e-3)
        right = higher.truth(case)["third gradient"]["operand 0"][0]
        theirs = higher._in_torch(case, torch.float64, None, {})["third gradient"]["operand 0"][0]
        peer = higher.peer(case)["third gradient"]["operand 0"]
        assert np.abs(theirs - right).max() > 0.01 * np.abs(right).max()
        assert np.abs(peer - right).max() < 1e-4 * np.abs(right).max()


def test_whole_powers_of_negative_numbers_are_judged():
    """Noise at the exponent would make a fraction of it, and a negative number to that power is none: nothing was judged."""
    bases = c.Operand((4,), (-2.0, 3.0, 0.0, -0.5))
    case = c.OpCase(op="whole_power", operands=(bases, c.Operand((4,), (3.0, 2.0, 2.0, 1.0))), constants=(1,), order=3)
    right = higher.truth(case)
    assert all(np.isfinite(values).all() for of in right.values() for values in of.values())
    verdict = judged(case, needle)
    assert (verdict.divergence, verdict.out_of_domain, verdict.oracle_errors) == (None, 0, [])
    with FAULTS["ewisepow-second-detached"].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert found.quantity == "second gradient"
    drawn = independent(strategies.op_cases(["whole_power"], order=2), 16, 0)
    assert all(case.constants == (1,) for case in drawn)


HUGE_IN_NORMS = [
    operation(name, (3, 4), (4,), (4,), order=order, eps=1.0)
    for name in ("layer_norm", "batch_norm")
    for order in (1, 2, 3)
]


@pytest.mark.parametrize("value", [1.5e21, -2.5e38, 1e15, 3e14])
@pytest.mark.parametrize("case", HUGE_IN_NORMS, ids=lambda case: f"{case.op} {case.order}")
def test_numbers_whose_squares_float32_cannot_hold_are_not_judged(case, value):
    """Each program in float32 has inf on its way, and what it makes of it is neither needle's fault nor torch's."""
    x = case.operands[0]
    huge = c.Operand(x.shape, (value, *x.values[1:]))
    verdict = judged(msgspec.structs.replace(case, operands=(huge, *case.operands[1:])), needle)
    assert verdict.divergence is None
    assert not verdict.oracle_errors
    assert bool(verdict.out_of_domain) == (abs(value) > 3e14)


@pytest.mark.parametrize("kind", [c.SecondOrderCase, c.TrainCase])
@pytest.mark.parametrize("scale", [1e20, 1e3])
@pytest.mark.parametrize("model", [(c.LayerNorm(), c.Linear(3)), (c.Linear(4), c.LayerNorm(), c.Linear(3))])
def test_data_whose_squares_float32_cannot_hold_are_not_judged(kind, scale, model):
    more = {"optimizer": c.SGD()} if kind is c.TrainCase else {}
    data = c.Data(rows=4, features=3, scale=scale)
    verdict = judged(kind(model=model, data=data, loss=c.SoftmaxLoss(), seed=1, **more), needle)
    assert verdict.divergence is None
    assert not verdict.oracle_errors
    assert bool(verdict.out_of_domain) == (scale == 1e20)


def test_the_root_of_a_number_that_float32_rounds_to_nothing_is_not_judged():
    values = (0.5, 1.1e-38, 2.0)
    verdict = judged(c.OpCase("power_scalar", (c.Operand((3,), values),), {"c": 0.5}, cotangent=(1.0,)), needle)
    assert verdict.divergence is None
    assert not verdict.oracle_errors


def test_zeros_without_memory_are_looked_past():
    """torch makes them where a convolution that is differentiated twice passes nothing on: exit code 4 of `diff --seed 7`."""
    nothing = torch._efficientzerotensor((2, 3), dtype=torch.float64)
    with Largest() as met:
        torch.add(torch.full((2, 3), 7.0, dtype=torch.float64), nothing)
    assert met.size == 7
