"""Which cases lie where no other kind of case comes? Four in a hundred, in turns: each corner with each operation.

Integers or bools *beside* a float, for every operation that takes several operands; integers or bools *alone*; *rows* of 65 to 3,000 numbers
that do not lie side by side, in every float, and many integers; and what is differentiated *again* in another dtype than float32. The operands of
all of them lie in memory in every way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from hypothesis import strategies as st

from oracle.cases import case as c
from oracle.cases.blocks import Draw
from oracle.cases.drawing import BOOLEANS, choice, integers, one_in
from oracle.cases.features import BESIDE, ROWS
from oracle.cases.large import PERIOD, filled
from oracle.cases.strategies import SEEDS, legal, op_cases
from oracle.operations import OPERATIONS

ALONE = tuple(sorted(set(OPERATIONS) - {"cast"}))  # a cast is about dtypes itself
AGAIN = tuple(sorted(set(OPERATIONS) - set(c.NOT_AGAIN)))
ALONG = ("softmax", "logsumexp", "var", "summation")  # any axis

_LAYOUTS = choice((1, "C"), (1, "F"), (1, "strided"), (1, "reversed"), (1, "repeated"), (1, "read-only"))
_ELSEWHERE = choice((3, "F"), (2, "strided"), (2, "reversed"))
_INTEGERS = st.sampled_from(["int64", "int32", "uint8", "bool", "bool"])
_BOOL = st.just("bool")
_NUMBERS = st.sampled_from(["int64", "int32", "uint8"])
_FLOATS = st.sampled_from(["float16", "float32", "float64"])
_LONG = st.sampled_from([65, 100, 257, 1000, 1024, 1025, 1100, 2048, 3000, 3000])
_ALONG = choice((2, 0), (2, 1), (1, 2))
_FEW = st.sampled_from([1, 2, 3])
_MANY = st.sampled_from([32_769, 40_000])
_AGAIN = choice((3, "float64"), (2, "float16"))
_ORDERS: st.SearchStrategy[Literal[2, 3]] = st.sampled_from([3, 3, 2])  # in which 2 is judged too


def _laid_out(draw: Draw, operands: Sequence[c.Operand]) -> tuple[c.Operand, ...]:
    return tuple(msgspec.structs.replace(o, layout=draw(_LAYOUTS)) for o in operands)


def _plain(case: c.OpCase, dtypes: Sequence[Any]) -> dict[str, Any]:
    """The attributes, with numbers that the dtypes can hold."""
    attributes = dict(case.attributes)
    if "c" in attributes:
        attributes["c"] = c.held(attributes["c"], dtypes) or 0.5
    return attributes


def _with_values(operand: c.Operand, change: Any) -> c.Operand:
    return msgspec.structs.replace(operand, values=tuple(float(change(v)) for v in operand.values))


@st.composite
def beside_cases(draw: Draw, name: str, last: bool = False) -> c.OpCase:
    """One operation on a float that has a gradient, and on integers or bools, be it that the ``last`` of three operands is."""
    case: c.OpCase = draw(op_cases([name], order=2).filter(_of_three if last else _several))
    count = len(case.operands)
    first = int(name == "where")  # the condition takes no part
    kept = 0 if name == "whole_power" else draw(integers(first, count - 1 - last))
    whole = count - 1 if last else draw(_places(tuple(i for i in range(first, count) if i != kept)))
    dtypes: list[Any] = [draw(_INTEGERS if draw(BOOLEANS) else _FLOATS) for _ in range(count)]
    dtypes[kept], dtypes[whole] = draw(_FLOATS), draw(_INTEGERS)
    operands = list(_laid_out(draw, case.operands))
    if name == "whole_power":
        operands[0] = _with_values(operands[0], lambda v: legal(v, "nonzero"))
    return msgspec.structs.replace(
        case, order=1, operands=tuple(operands), dtypes=tuple(dtypes), constants=(), attributes=_plain(case, dtypes)
    )


def _several(case: c.OpCase) -> bool:
    """At least two operands, which a stack need not have, with numbers in them."""
    return len(case.operands) > 1 and any(o.values for o in case.operands)


def _of_three(case: c.OpCase) -> bool:
    return len(case.operands) == 3 and _several(case)


@functools.cache
def _places(places: tuple[int, ...]) -> st.SearchStrategy[int]:
    return st.sampled_from(places)


# how large integers are drawn where they may wrap around
_LARGEST = {"int64": 2.0**30, "int32": 60_000.0, "uint8": 255.0, "bool": 1.0}


@st.composite
def alone_cases(draw: Draw, name: str) -> c.OpCase:
    """One operation on integers or bools and nothing else, now and then on such as wrap around."""
    case: c.OpCase = draw(op_cases([name], order=2).filter(lambda case: any(o.values for o in case.operands)))
    kinds = _NUMBERS if name in ("subtract", "negate") else _INTEGERS  # of bools NumPy has neither
    dtypes: list[Any] = [draw(kinds)] * len(case.operands)
    if draw(one_in(3)):
        dtypes = [draw(kinds) for _ in dtypes]
    operands = list(_laid_out(draw, case.operands))
    if name in ("power", "whole_power"):  # NumPy refuses negative powers of integers
        operands[1] = _with_values(operands[1], abs)
    elif name in _WRAPPING and draw(BOOLEANS):
        operands = [
            _with_values(o, lambda v, m=_LARGEST[d]: math.fmod(v * 1000.0, m))
            for o, d in zip(operands, dtypes, strict=True)
        ]
    return msgspec.structs.replace(
        case, order=1, operands=tuple(operands), dtypes=tuple(dtypes), constants=(), attributes=_plain(case, dtypes)
    )


_WRAPPING = ("add", "subtract", "multiply", "matmul", "linear", "conv", "summation", "negate", "absolute")


@st.composite
def again_cases(draw: Draw, name: str) -> c.OpCase:
    """One operation, differentiated twice or three times in float64 or float16. Of numbers near 0, float16 cannot hold the third power of
    the inverse.
    """
    dtype, order = draw(_AGAIN), draw(_ORDERS)
    case: c.OpCase = draw(op_cases([name], order=order).filter(lambda case: any(o.values for o in case.operands)))
    dtypes, operands = (dtype,) * len(case.operands), list(_laid_out(draw, case.operands))
    for i, operand in enumerate(operands if dtype == "float16" else ()):
        if OPERATIONS[name].domain(i) in ("positive", "nonzero"):
            operands[i] = _with_values(operand, lambda v: math.copysign(max(abs(v), 0.5), v))
    return msgspec.structs.replace(case, operands=tuple(operands), dtypes=dtypes, attributes=_plain(case, dtypes))


@st.composite
def rows_cases(draw: Draw, name: str, apart: bool = False) -> c.OpCase:
    """One operation that adds up rows, which are long and lie elsewhere than side by side, along any axis that it takes, or along
    another than the last.
    """
    long, few, rng = draw(_LONG), draw(_FEW), np.random.RandomState(draw(SEEDS))
    dtype, layout = draw(_FLOATS), draw(_ELSEWHERE)
    shape: tuple[int, ...] = (few, long)
    attributes: dict[str, Any] = {}
    if name in ALONG:
        axis = draw(_ALONG) % (2 if apart else 3)
        shape = tuple(long if i == axis else draw(_FEW) for i in range(3))
        layout = "strided" if layout == "F" and not axis else layout
        attributes = {"axis" if name == "softmax" else "axes": axis - 3 if draw(BOOLEANS) else axis}
    elif name == "batch_norm":
        shape, layout = (long, few), "strided" if layout == "F" else layout
    elif name == "softmax_loss":
        attributes = {"labels": tuple(int(v) for v in rng.randint(0, shape[1], shape[0]))}
    if name.endswith("_norm"):
        attributes = {"eps": 1e-5}
    op = OPERATIONS[name]
    shapes = [shape, shape[-1:], shape[-1:]] if name.endswith("_norm") else [shape]
    operands = tuple(filled(s, op.domain(i), rng, layout) for i, s in enumerate(shapes))
    dtypes = () if dtype == "float32" else (dtype,) * len(operands)
    return c.OpCase(op=name, operands=operands, attributes=attributes, cotangent=(1.0, -0.5, 2.0), dtypes=dtypes)


@st.composite
def many_cases(draw: Draw, name: str, bools: bool) -> c.OpCase:
    """More than 32,768 integers, or bools."""
    size, rng, dtype = draw(_MANY), np.random.RandomState(draw(SEEDS)), draw(_BOOL if bools else _NUMBERS)
    shape: tuple[int, ...] = (size,) if draw(BOOLEANS) else (size // 2 + 1, 2)
    values = rng.randint(0 if dtype in ("bool", "uint8") else -9, 2 if bools else 10, PERIOD)
    operand = c.Operand(shape, tuple(map(float, values.tolist())), draw(_LAYOUTS), cycled=True)
    attributes = {} if name == "relu" or draw(BOOLEANS) else {"axes": 0}
    return c.OpCase(op=name, operands=(operand,), attributes=attributes, dtypes=(dtype,))


# corner -> its cases of an operation, and the operations
_KINDS: dict[str, tuple[Callable[[str], st.SearchStrategy[c.OpCase]], tuple[str, ...]]] = {
    "beside": (beside_cases, BESIDE * 2),
    "bias": (functools.partial(beside_cases, last=True), ("linear", "batch_norm", "layer_norm")),
    "rows": (rows_cases, ROWS),
    "apart": (functools.partial(rows_cases, apart=True), ALONG),
    "bools": (functools.partial(many_cases, bools=True), ("relu", "summation")),
    "integers": (functools.partial(many_cases, bools=False), ("relu", "maximum")),
    "alone": (alone_cases, ALONE),
    "again": (again_cases, AGAIN),
}


def _in_turn() -> Iterator[tuple[str, str]]:
    """Each corner spread evenly over the round."""
    placed = [
        ((i + 0.5) / len(names), kind, name) for kind, (_, names) in _KINDS.items() for i, name in enumerate(names)
    ]
    return ((kind, name) for _, kind, name in sorted(placed))


CORNERS = tuple(_in_turn())


@functools.cache
def corner_cases(kind: str, name: str) -> st.SearchStrategy[c.OpCase]:
    """Cases of one corner and one operation."""
    return _KINDS[kind][0](name)
