"""Integers beside floats and alone, rows that lie apart, other layouts, and second derivatives in other dtypes."""

import numpy as np
import pytest

import needle
from oracle.blame import judged, script
from oracle.cases import case as c
from oracle.cases import coverage
from oracle.cases.corners import CORNERS
from oracle.cases.drawing import strategy
from oracle.cases.shrink import candidates
from oracle.operations import OPERATIONS
from oracle.operations.integers import IN_NUMPY, in_numpy
from oracle.rules import judge as rules
from oracle.runs.draws import SHARD, SHARD_SIZE, draw, fitting_cases, independent
from oracle.trust.faults import FAULTS

CASES = [case for i in range(-(-len(CORNERS) // 4)) for case in draw("corner", 4, 11 + i, i)]


def operand(*shape, layout="C", scale=1.0):
    rng = np.random.RandomState(2)
    values = np.round(rng.standard_normal(int(np.prod(shape))) * scale, 2)
    return c.Operand(shape, tuple(values.tolist()), layout)


def operation(name, *operands, dtypes, order=1, **attributes):
    return c.OpCase(
        op=name, operands=operands, attributes=attributes, cotangent=(1.0, -2.0, 0.5), dtypes=dtypes, order=order
    )


def test_a_default_run_has_each_corner_with_each_operation():
    assert len(CORNERS) <= SHARD["corner"] * 4000 // SHARD_SIZE
    several = {name for name, op in OPERATIONS.items() if len(draw_op(op)[0]) > 1} | {"stack", "concatenate"}
    for kind, names in {
        "beside": several,
        "alone": OPERATIONS.keys() - {"cast"},
        "again": OPERATIONS.keys() - set(c.NOT_AGAIN),
    }.items():
        assert {name for of, name in CORNERS if of == kind} == names, kind


def draw_op(op):
    (drawn,) = independent(strategy(op.drawn), 1, 0)
    return drawn


def test_a_right_needle_agrees_in_every_corner():
    for case in CASES:
        verdict = rules.judge(case, needle)
        assert verdict.divergence is None, (c.describe(case), verdict.divergence)
        assert verdict.oracle_errors == [], c.describe(case)
        assert c.decode(c.encode(case)) == case
        assert max(verdict.tally.largest.values(), default=0.0) < 0.5


def test_a_needle_without_dtypes_gets_training_runs_in_their_place():
    assert not any(isinstance(case, c.OpCase) for case in fitting_cases("corner", 4, 3, frozenset({"op exp"}), 0))


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "repeated", "read-only"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_an_operand_lies_as_it_should_in_every_dtype(layout, dtype):
    case = operation("add", operand(3, 4, layout=layout), operand(4), dtypes=(dtype, "float32"))
    a, plain = case.array(0), operation("add", operand(3, 4), operand(4), dtypes=(dtype, "float32")).array(0)
    assert str(a.dtype) == dtype
    assert a.tolist() == (plain[:1].repeat(3, 0) if layout == "repeated" else plain).tolist()
    size = a.itemsize
    strides = {
        "F": (size, 3 * size),
        "strided": (8 * size, 2 * size),
        "reversed": (4 * size, -size),
        "repeated": (0, size),
    }
    assert a.strides == strides.get(layout, plain.strides)
    assert a.flags.writeable == (layout not in ("repeated", "read-only"))


@pytest.mark.parametrize(
    ("fault", "case", "rule"),
    [
        ("linear-integer-bias-widens", operation("linear", operand(2, 3), operand(3, 2), operand(2), dtypes=("float32", "float32", "bool")), "dtype"),
        ("joined-integers-widen", operation("concatenate", operand(2), operand(3), dtypes=("uint8", "float16"), axis=0), "dtype"),
        ("power-beside-integers-gradient", operation("whole_power", operand(3, scale=3), operand(3), dtypes=("float64", "int32")), "G"),
        ("norm-integer-bias-left-out", operation("layer_norm", operand(2, 3), operand(3), operand(3), dtypes=("float32", "float32", "int64"), eps=1e-5), "G"),
        ("exp-of-integers-double", operation("exp", operand(3), dtypes=("uint8",)), "dtype"),
        ("product-of-integers-double", operation("matmul", operand(2, 3), operand(3, 2), dtypes=("int32", "uint8")), "dtype"),
        ("sum-of-bools-bool", operation("summation", operand(3), dtypes=("bool",)), "dtype"),
        ("relu-many-bools", operation("relu", c.Operand((32_769,), (1.0, 0.0), cycled=True), dtypes=("bool",)), "dtype"),
        ("relu-many-integers", operation("relu", c.Operand((32_769,), (9.0, -1.0), cycled=True), dtypes=("int32",)), "exact"),
        ("long-half-rows-apart", operation("logsumexp", operand(2000, 2, scale=0.1), dtypes=("float16",), axes=0), "G"),
        ("long-rows-apart", operation("softmax", operand(65, 2), dtypes=("float64",), axis=0), "G"),
        ("backwards-in-other-dtypes", operation("exp", operand(3, layout="reversed"), dtypes=("float64",)), "G"),
        ("strided-in-other-dtypes", operation("absolute", operand(3, layout="strided"), dtypes=("int64",)), "exact"),
        ("read-only-refused", operation("exp", operand(3, layout="read-only"), dtypes=("float16",)), "exception"),
        ("repeated-rows-end", operation("exp", operand(3, layout="repeated"), dtypes=("float16",)), "G"),
        ("ewisemul-double-again-by-single", operation("multiply", operand(3), operand(3), dtypes=("float64",) * 2, order=2), "G"),
        ("half-again-of-few-digits", operation("exp", operand(3), dtypes=("float16",), order=3), "G"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_corner_is_found(fault, case, rule):
    assert judged(case, needle).divergence is None
    with FAULTS[fault].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert found.rule == rule
    text = script.script(case, found, needle)
    assert not script.fails(text), "needle is right again"
    with FAULTS[fault].patch.applied():
        assert script.fails(text)
    assert len(list(candidates(case))) > 3


def test_integers_wrap_around_as_in_numpy():
    case = operation(
        "multiply", c.Operand((2,), (50_000.0, 3.0)), c.Operand((2,), (50_000.0, -2.0)), dtypes=("int32",) * 2
    )
    made = in_numpy(case.op, [case.array(0), case.array(1)], {})
    assert made.tolist() == [50_000**2 - 2**32, -6]
    assert judged(case, needle).divergence is None
    with FAULTS["exp-of-integers-double"].patch.applied():
        assert judged(case, needle).divergence is None, "an integer is none of its business"


def test_what_numpy_makes_of_integers_is_what_the_definition_makes_of_them():
    """On small numbers, that neither wrap around nor are bools."""
    for case in CASES:
        if not case.alone or case.op not in IN_NUMPY or "bool" in case.dtypes:
            continue
        arrays = [case.array(i) for i in range(len(case.operands))]
        right = in_numpy(case.op, arrays, case.attributes)
        exact = rules.precision._truth(case)[0][0, 0]
        same = right == exact
        assert (same | (np.abs(exact) > np.iinfo(right.dtype).max) | ((exact < 0) & (right.dtype.kind == "u"))).all(), (
            case
        )


def test_a_corner_shrinks_to_what_shows_it():
    """To smaller sizes, plain layouts, float32, a first derivative."""
    case = operation(
        "multiply", operand(3, layout="F"), operand(3, layout="read-only"), dtypes=("float64",) * 2, order=3
    )
    smaller = list(candidates(case))
    assert {x.order for x in smaller} == {1, 2, 3}
    assert any(x.dtypes == ("float32",) * 2 or not x.dtypes for x in smaller)
    assert any({o.layout for o in x.operands} == {"C", "F"} for x in smaller)


def test_labels_say_what_lies_where():
    apart = operation("logsumexp", operand(70, 2), dtypes=("float64",), axes=0)
    assert {"rows logsumexp", "rows float64"} <= coverage.covered(apart)
    side_by_side = operation("logsumexp", operand(70, 2, layout="F"), dtypes=("float64",), axes=0)
    assert "rows logsumexp" not in coverage.covered(side_by_side)
    assert {"alone bools", "lying reversed integers"} <= coverage.covered(
        operation("add", operand(3, layout="reversed"), operand(3), dtypes=("bool",) * 2)
    )
    assert "beside where" not in coverage.covered(
        operation("where", operand(2), operand(2), operand(2), dtypes=("bool", "float32", "float64"))
    )
