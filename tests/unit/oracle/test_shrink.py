"""Shrinking ends at small cases, keeps failing, and is deterministic."""

import pytest

from oracle.cases import case as c
from oracle.cases.shrink import candidates, shrink
from oracle.cases.strategies import op_cases
from oracle.runs.draws import draw, draw_from


def kinds(case):
    return {type(layer).__name__ for _, layer in c.walk(case.model)}


def big_cases(wanted):
    return [k for k in draw("train", 300, 1) if wanted in kinds(k) and len(kinds(k)) > 3 and k.steps > 2][:5]


@pytest.mark.parametrize("wanted", ["BatchNorm", "Dropout", "LayerNorm", "Residual", "Branch", "Ops", "ReLU", "Eval"])
def test_a_case_that_fails_for_one_layer_shrinks_to_little_more(wanted):
    found = big_cases(wanted)
    assert found
    for case in found:
        small = shrink(case, lambda k: wanted in kinds(k), budget=600)
        assert wanted in kinds(small)
        assert small.steps == 1
        assert len(list(c.walk(small.model))) <= 2, c.describe(small)
        assert small.data.rows <= 2
        assert not small.data.atoms


def test_steps_and_options_that_matter_stay():
    def fails(k):
        return k.steps >= 3 and k.clip is not None and bool(k.optimizer.momentum)

    case = next(k for k in draw("train", 300, 2) if isinstance(k.optimizer, c.SGD) and fails(k))
    small = shrink(case, fails)
    assert small.steps == 3
    assert small.clip is not None
    assert small.optimizer == c.SGD(lr=0.1, momentum=0.9)


def test_shrinking_is_deterministic_and_bounded():
    case = big_cases("BatchNorm")[0]
    calls = []

    def fails(k):
        calls.append(k.digest)
        return "BatchNorm" in kinds(k)

    first = shrink(case, fails, budget=20)
    assert len(calls) <= 20
    again = shrink(case, lambda k: "BatchNorm" in kinds(k), budget=20)
    assert first == again


def test_a_passing_case_has_nothing_smaller():
    case = big_cases("BatchNorm")[0]
    assert shrink(case, lambda k: False) == case


def test_every_candidate_is_a_valid_case():
    drawn = [
        *draw("train", 30, 3),
        *draw("op", 30, 3),
        *draw("second", 30, 3),
        *draw("program", 30, 3),
        *draw("corner", 30, 3),
    ]
    for case in drawn:
        for candidate in candidates(case):
            assert c.decode(c.encode(candidate)) == candidate


def _many_of(op):
    return [k for k in draw_from(op_cases([op]), 200, 4) if k.op == op]


def test_an_operation_shrinks_to_one_element():
    cases = _many_of("multiply")
    case = next(k for k in cases if min(len(o.values) for o in k.operands) > 1)
    small = shrink(case, lambda k: k.op == "multiply" and all(o.values for o in k.operands))
    assert [len(o.values) for o in small.operands] == [1, 1]
    assert small.cotangent == (1.0,)
