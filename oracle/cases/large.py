"""Which cases are large? A few in a hundred, so that each switch that needle makes at a size is crossed, and on both sides.

A single operation is drawn small and then *stretched*: one of its sizes becomes 65 to 3,000, or so large that an operand has up to
100,000 elements, wherever that size occurs. A training run gets wide layers, many rows, or a parameter as large as a switch
of the optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from oracle.cases import case as c
from oracle.cases.blocks import Draw, Shape
from oracle.cases.drawing import BOOLEANS, choice, one_in
from oracle.cases.strategies import SEEDS, adam, legal, op_cases, sgd
from oracle.operations import OPERATIONS, largest

MOST_NUMBERS = 130_000  # of an operand, or of what an operation makes: such a case takes some tenths of a second
PERIOD = 251  # values of a long operand: a prime, so that no block of it looks like the next

# -- single operations ------------------------------------------------------------------------------------------------

_AXES = st.sampled_from([65, 100, 257, 1000, 1024, 1025, 1100, 2048, 3000])
_TENS = st.sampled_from([33, 65, 100, 257])
_BEYOND = st.sampled_from([1025, 1100, 1100, 2048, 3000])
_ELEMENTS = st.sampled_from([5_000, 20_000, 32_768, 32_769, 50_000, 100_000])
_WHICH = choice((3, "axis"), (2, "elements"))
_LAYOUTS = choice((5, "C"), (2, "F"), (1, "strided"), (1, "reversed"))


@st.composite
def long_op_cases(draw: Draw, name: str, beyond: bool = False) -> c.OpCase:
    """One operation, one of its operands long, or with an axis ``beyond`` 1,024; as it was where none of its sizes can grow,
    nor those of two more.
    """
    for _ in range(3):
        base: c.OpCase = draw(op_cases([name]).filter(lambda case: any(o.shape for o in case.operands)))
        if "axes" in base.attributes and draw(BOOLEANS):
            base = _over_the_last(base)
        seed, layout = draw(SEEDS), draw(_LAYOUTS)
        axis = name != "relu" and (beyond or draw(_WHICH) == "axis")
        target = draw((_BEYOND if beyond else _AXES) if axis else _ELEMENTS)
        made = next(stretched(base, target, axis, np.random.RandomState(seed), layout), None)
        if made is not None:
            return made
    return base


@st.composite
def long_half_cases(draw: Draw, name: str) -> c.OpCase:
    """An operation that adds up, on some tens or hundreds of numbers in float16: in few, where they are added up does not show."""
    base = draw(op_cases([name], order=2).filter(lambda case: any(o.shape for o in case.operands)))
    if "axes" in base.attributes and draw(BOOLEANS):
        base = _over_the_last(base)
    rng = np.random.RandomState(draw(SEEDS))
    made = next(stretched(base, draw(_TENS), True, rng, draw(_LAYOUTS)), base)
    dtypes: tuple[Any, ...] = ("float16",) * len(base.operands)
    return msgspec.structs.replace(made, order=1, dtypes=dtypes)


def _over_the_last(case: c.OpCase) -> c.OpCase:
    """What works along axes, along the last one alone, as it mostly does."""
    last, axes = len(case.operands[0].shape) - 1, case.attributes["axes"]
    given: Any = None if axes is None else last if isinstance(axes, int) else (last,)
    try:
        return msgspec.structs.replace(case, attributes={**case.attributes, "axes": given})
    except c.CaseError:
        return case  # it takes a pair of axes


def stretched(case: c.OpCase, target: int, axis: bool, rng: np.random.RandomState, layout: Any) -> Iterator[c.OpCase]:
    """The case with a long size, in one way after the other."""
    shapes = [tuple(n or 3 for n in o.shape) for o in case.operands]
    attributes = {k: _grown(k, v, 0, 3) for k, v in case.attributes.items()}
    everywhere: list[Any] = sorted({n for shape in shapes for n in shape})
    alone: list[Any] = [(i, j) for i, shape in enumerate(shapes) for j in range(len(shape))]
    rng.shuffle(everywhere)
    rng.shuffle(alone)
    named = attributes.get("axes")
    if isinstance(named, tuple) and len(named) == 1:
        named = named[0]
    if isinstance(named, int):  # the axis along which it works
        alone.insert(0, (0, named % len(shapes[0])))
        everywhere.sort(key=lambda n: n != shapes[0][named])
    for place in (*everywhere, *alone):
        old = place if isinstance(place, int) else shapes[place[0]][place[1]]
        whole = max(math.prod(shape) for shape in shapes if old in shape)
        new = target if axis else target // (whole // old)
        wide = [
            tuple(new if place in (n, (i, j)) else n for j, n in enumerate(shape)) for i, shape in enumerate(shapes)
        ]
        grown = {k: _grown(k, v, old, new) for k, v in attributes.items()}
        if new <= old or (case.op == "split" and wide[0][grown["axis"]] == new):
            continue  # thousands of tensors tell no more than three
        if max(largest(wide, grown), *map(math.prod, wide)) > MOST_NUMBERS:
            continue
        op = OPERATIONS[case.op]
        operands = tuple(filled(shape, op.domain(i), rng, layout) for i, shape in enumerate(wide))
        try:
            yield msgspec.structs.replace(case, operands=operands, attributes=grown)
        except c.CaseError:
            continue


def _grown(name: str, value: Any, old: int, new: int) -> Any:
    if name == "shape":
        return tuple(new if n == old else n for n in value)
    if name == "labels" and len(value) == old:
        return tuple(value[i % old] for i in range(new))
    return value


def filled(shape: Shape, domain: str, rng: np.random.RandomState, layout: Any) -> c.Operand:
    """An operand of any size: a few numbers, over and over."""
    size = math.prod(shape)
    given = min(size, PERIOD)
    values = np.round(rng.standard_normal(given), 3).astype(np.float32).astype(np.float64).tolist()
    return c.Operand(shape, tuple(legal(v, domain) for v in values), layout, cycled=given < size)


# -- training runs ----------------------------------------------------------------------------------------------------

_KINDS = choice((3, "wide"), (3, "rows"), (2, "parameter"))
_WIDE = st.sampled_from([65, 100, 129, 257, 300, 1024])
_MANY = st.sampled_from([65, 100, 129, 300, 1024, 1025, 1100])
_FEW = st.sampled_from([1, 2, 3, 4])
_SQUARES = st.sampled_from([(143, 143), (144, 143), (200, 204), (205, 200), (362, 362), (370, 360), (370, 360)])
_LOSSES = choice((4, c.SoftmaxLoss()), (1, c.WeightedSum()), (1, c.MeanSquare()), (1, c.SoftmaxLoss("int32")))
_BETWEEN: st.SearchStrategy[tuple[c.Layer, ...]] = st.sampled_from(
    [(), (c.ReLU(),), (c.LayerNorm(),), (c.BatchNorm(),), (c.Tanh(), c.LayerNorm()), (c.BatchNorm(), c.ReLU())]
)
_STEPS = choice((2, 1), (2, 2), (1, 3))
_CLIPS = choice((3, None), (1, c.Clip()), (1, c.Clip(5.0)))


@st.composite
def large_train_cases(draw: Draw) -> c.TrainCase:
    """Training runs with sizes beyond 64: features, outputs and labels, rows, or a parameter."""
    kind = draw(_KINDS)
    between = draw(_BETWEEN)
    if kind == "wide":
        rows, features = draw(_FEW) + 1, draw(_WIDE) if draw(BOOLEANS) else draw(_FEW)
        out = draw(_WIDE) if features <= 64 or draw(BOOLEANS) else draw(_FEW)
        model = (*(between if features > 64 else ()), c.Linear(out, bias=not draw(one_in(4))), *between)
    elif kind == "rows":
        rows, features, out = draw(_MANY), draw(_FEW), draw(_FEW)
        model = (*(between if draw(BOOLEANS) else ()), c.Linear(out), *between)
    else:
        rows, (features, out) = 2, draw(_SQUARES)
        model = (c.Linear(out), *(() if draw(BOOLEANS) else (c.Linear(3),)))
    steps = draw(_STEPS) if kind != "parameter" else 2
    return c.TrainCase(
        model=model,
        data=c.Data(rows=rows, features=features),
        loss=draw(_LOSSES),
        optimizer=adam(draw) if draw(one_in(3)) else sgd(draw),
        seed=draw(SEEDS),
        steps=steps,
        clip=draw(_CLIPS),
        input_grad=draw(one_in(3)),
        keep_init=draw(one_in(3)),
    )
