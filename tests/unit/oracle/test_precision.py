"""Single operations in other dtypes than float32."""

import numpy as np
import pytest

import needle
from oracle.blame import judged, script
from oracle.cases import case as c
from oracle.cases.shrink import candidates
from oracle.runs.draws import IN_DTYPES, draw
from oracle.trust.faults import FAULTS
from oracle.trust.patches import compute

CASES = draw("dtype", 2 * len(IN_DTYPES), 21)


def operation(name, *shapes, dtypes, **attributes):
    rng = np.random.RandomState(1)
    operands = tuple(c.Operand(s, tuple(np.round(1 + rng.rand(int(np.prod(s))), 3).tolist())) for s in shapes)
    return c.OpCase(op=name, operands=operands, attributes=attributes, cotangent=(1.0, -2.0, 0.5), dtypes=dtypes)


def test_a_right_needle_agrees_in_every_dtype():
    assert {case.op for case in CASES} == set(IN_DTYPES)
    for case in CASES:
        verdict = judged(case, needle)
        assert verdict.divergence is None, (c.describe(case), verdict.divergence)
        assert c.decode(c.encode(case)) == case


@pytest.mark.parametrize(
    ("fault", "case", "what"),
    [
        ("tanh-double-by-single", operation("tanh", (3,), dtypes=("float64",)), "Tanh forward"),
        (
            "ewisemul-double-gradient-by-single",
            operation("multiply", (3,), (3,), dtypes=("float64",) * 2),
            "EWiseMul backward",
        ),
        ("sum-half-in-half", operation("summation", (7, 30), dtypes=("float16",)), "Summation forward"),
        ("matmul-half-in-half", operation("matmul", (2, 60), (60, 3), dtypes=("float16",) * 2), "MatMul forward"),
        ("half-becomes-single", operation("tanh", (3,), dtypes=("float16",)), "Tanh forward"),
        ("integer-widens", operation("add", (3,), (3,), dtypes=("float32", "int64")), "add forward"),
        ("bool-as-sign", operation("multiply", (3,), (3,), dtypes=("float32", "bool")), "EWiseMul forward"),
    ],
)
def test_a_wrong_dtype_is_found_and_so_is_what_was_computed_in_one(fault, case, what):
    assert judged(case, needle).divergence is None
    with FAULTS[fault].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert found.suspect.what == what
    text = script.script(case, found, needle)
    assert not script.fails(text), "needle is right again"
    with FAULTS[fault].patch.applied():
        assert script.fails(text)
    smaller = list(candidates(case))
    assert any(x.dtypes == () for x in smaller)


def test_a_wrong_shape_is_found_in_every_dtype():
    """Nothing behind it can be looked at, which is no failure of the harness."""
    case = operation("multiply", (3,), (3,), dtypes=("bool", "float16"))
    with compute("EWiseMul", lambda y, a, b: y[None]).applied():
        found = judged(case, needle).divergence
    assert (found.quantity, found.rule) == ("activation", "shape")
    assert found.suspect.what == "EWiseMul forward, shape"


def test_what_a_case_cannot_say():
    one = (c.Operand((2,), (1.0, 2.0)),)
    for bad, text in [
        ({"dtypes": ("float64", "float64")}, "2 for 1 operands"),
        (
            {"op": "add", "operands": one * 2, "dtypes": ("int64", "float32"), "constants": (1,)},
            "no operand that has a gradient",
        ),
        ({"dtypes": ("int64",), "order": 2}, "nothing to differentiate"),
        (
            {"op": "add", "operands": one * 2, "dtypes": ("float64", "float32"), "order": 2},
            "more than once in one dtype",
        ),
        ({"op": "cast", "dtypes": ("float64",), "order": 2}, "more than once in one dtype, or not at all"),
    ]:
        with pytest.raises(c.CaseError, match=text):
            c.OpCase(**({"op": "exp", "operands": one} | bad))


def test_operands_are_rounded_to_their_dtype_and_integers_go_away_from_zero():
    operand = c.Operand((4,), (0.1, -0.1, 1.5, -2.0))
    given = {
        d: c.OpCase(op="add", operands=(operand, operand), dtypes=("float64", d)) for d in ("int32", "uint8", "bool")
    }
    assert given["int32"].array(1).tolist() == [1, -1, 2, -2]
    assert given["uint8"].array(1).tolist() == [1, 1, 2, 2]
    assert given["bool"].array(1).tolist() == [True] * 4
    assert given["bool"].dtype == "float64"
