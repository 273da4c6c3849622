"""Hypothesis strategies that produce Cases, biased toward what kills: see `train_cases`.

Structure, hyperparameters and a few special values are drawn, so that they shrink; bulk data comes from an integer
seed in the case. The first alternative of every choice is the simplest one: it is what shrinking ends at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from hypothesis import strategies as st

from oracle.cases import case as c
from oracle.cases.blocks import Draw, Shape, drawn_block
from oracle.cases.drawing import BOOLEANS, HypothesisDraw, choice, integers, one_in, strategy
from oracle.operations import OPERATIONS

_T = TypeVar("_T")

# A strategy is made once, here and not while drawing: making one costs more than drawing from it.

WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 8, 2, 4, 8, 16, 17, 33, 64])
ROWS = st.sampled_from([1, 2, 3, 4, 5, 8, 2, 4, 8, 16, 7, 33, 64])
SEEDS = st.integers(0, 2**16)


# -- models -----------------------------------------------------------------------------------------------------------

_SMALL_WIDTHS = st.sampled_from([1, 2, 3, 4, 5])


# Layers stand in this order among those to draw from, new ones behind: a seed gives the cases that it gave.
_FIRST = ("Linear", "ReLU", *c.ACTIVATIONS, "BatchNorm", "LayerNorm", "Dropout", "Ops", "Identity", "Flatten", "Unused",
          "Residual", "Branch", "Sequential", "Eval")  # fmt: skip
_KINDS = tuple(c.LAYERS[name] for name in dict.fromkeys((*_FIRST, *c.LAYERS)))


@functools.cache
def _kinds(possible: tuple[type[c.Layer], ...]) -> st.SearchStrategy[type[c.Layer]]:
    return choice(*((kind.chance, kind) for kind in possible))


@functools.cache
def _ties(same: tuple[int, ...]) -> st.SearchStrategy[int | None]:
    return st.sampled_from([None, *same])


class _Models:
    """Draws layers left to right, keeping width and the shapes of the Linears so far."""

    def __init__(self, draw: Draw, rows: int, square: bool, small: bool) -> None:
        self.draw, self.rows, self.square = draw, rows, square
        self.drawer = HypothesisDraw(draw)
        self.widths = _SMALL_WIDTHS if small else WIDTHS
        self.linears: list[Shape] = []
        self.budget = 8

    def width(self) -> int:
        """Batch == features hides nothing from a wrong-axis bug only where it is rare; here it is common."""
        return self.rows if self.square and self.draw(BOOLEANS) else int(self.draw(self.widths))

    def linear(self, width: int, out: int | None = None) -> c.Linear:
        out = self.width() if out is None else out
        same = [i for i, shape in enumerate(self.linears) if shape == (width, out)]
        tie = self.draw(_ties(tuple(same))) if same else None
        self.linears.append((width, out))
        bias = not self.draw(one_in(4))
        frozen = tie is None and self.draw(one_in(10))
        return c.Linear(out, bias=bias, frozen=frozen, tie=tie)

    def body(self, width: int, depth: int, most: int, training: bool = True) -> tuple[tuple[c.Layer, ...], int]:
        layers: list[c.Layer] = []
        for _ in range(self.draw(integers(0 if depth else 1, most))):
            if self.budget <= 0:
                break
            self.budget -= 1
            site = _Site(self, width, depth, training)
            kind = self.draw(_kinds(tuple(kind for kind in _KINDS if kind.possible(site))))
            layer, width = kind.drawn(self.drawer, site)
            layers.append(layer)
        return tuple(layers), width


class _Site:
    """The `oracle.cases.layers.Site` of a layer."""

    def __init__(self, models: _Models, width: int, depth: int, training: bool) -> None:
        self.rows, self.width, self.training, self.nested = models.rows, width, training, depth < 2
        self._models, self._depth = models, depth

    def next_width(self) -> int:
        return self._models.width()

    def linear(self, width: int, out: int | None = None) -> c.Linear:
        return self._models.linear(width, out)

    def body(self, most: int, training: bool = True) -> tuple[tuple[c.Layer, ...], int]:
        return self._models.body(self.width, self._depth + 1, most, training and self.training)

    def program(self) -> c.Ops:
        return drawn_block(self._models.draw, self.rows, self.width)


_OFFSETS = choice((8, 0.0), (1, 1.0), (3, 100.0), (1, -1000.0))
_SCALES = choice((6, 1.0), (1, 0.0), (1, 0.01), (2, 30.0))
_ATOMS = choice((3, 0), (2, 1), (1, 2), (1, 3))
_PLACES = st.integers(0, 4095)  # modulo the size
_SPECIAL = st.sampled_from([0.0, 1.0, -1.0, 100.0, -100.0, 1e-3, 1e4])


def _data(draw: Draw, rows: int, features: int) -> c.Data:
    return c.Data(
        rows=rows,
        features=features,
        scale=draw(_SCALES),
        offset=draw(_OFFSETS),
        atoms=tuple(c.Atom(draw(_PLACES) % (rows * features), draw(_SPECIAL)) for _ in range(draw(_ATOMS))),
        repeated_rows=draw(one_in(12)),
        constant_column=draw(one_in(8)),
        rounded=draw(one_in(6)),
        same_batch=draw(one_in(4)),
    )


_LRS = st.sampled_from([0.1, 0.01, None, 1.0, 0.3, 1e-3, 0.0123456789, 0.70710678, 1e-4])
_BETAS = st.sampled_from([0.9, 0.0, 0.5, 0.99, 0.999, 0.3])
_DECAYS = st.sampled_from([0.1, 0.01, 0.5, 1e-4, 1.0])
# decay outside the momentum shows only where both are positive
_WHICH_BETA = choice((2, "none"), (1, "zero"), (7, "some"))
_WHICH_DECAY = choice((2, "none"), (1, "zero"), (5, "some"))


def sgd(draw: Draw) -> c.SGD:
    """SGD, most often with momentum and decay together."""
    beta, decay = draw(_WHICH_BETA), draw(_WHICH_DECAY)
    return c.SGD(
        lr=draw(_LRS),
        momentum={"none": None, "zero": 0.0}.get(beta) if beta != "some" else draw(_BETAS),
        weight_decay={"none": None, "zero": 0.0}.get(decay) if decay != "some" else draw(_DECAYS),
    )


_BETA1 = st.sampled_from([None, 0.9, 0.5, 0.0])
_BETA2 = st.sampled_from([None, 0.999, 0.9, 0.5])
_ADAM_EPS = st.sampled_from([None, 1e-8, 1e-3])
_ADAM_DECAYS = st.sampled_from([None, 0.0, 0.01, 0.5])


def adam(draw: Draw) -> c.Adam:
    """Adam."""
    return c.Adam(
        lr=draw(_LRS),
        beta1=draw(_BETA1),
        beta2=draw(_BETA2),
        eps=draw(_ADAM_EPS),
        weight_decay=draw(_ADAM_DECAYS),
    )


_THEMES = choice((6, "plain"), (2, "norm first"), (2, "saturated"))
_SATURATIONS = st.sampled_from([100.0, 1000.0, 10_000.0])
_LOSSES = choice(
    (6, c.SoftmaxLoss()),
    (1, c.SoftmaxLoss("uint8")),
    (1, c.SoftmaxLoss("int32")),
    (1, c.SoftmaxLoss("list")),
    (2, c.WeightedSum()),
    (2, c.MeanSquare()),
    (1, c.Cotangent()),
    (1, c.MSELoss()),
)
_AFFORDED = (
    12_000  # numbers in all steps, beyond which a model has two: the third one tells less than another model does
)
_STEPS = choice((4, 1), (5, 2), (8, 3), (3, 4), (2, 6), (1, 13))
_LATER_LRS = st.sampled_from([0.05, 1e-3, 0.5])
_CLIPS = choice((6, "none"), (1, "default"), (3, "some"))
_MAX_NORMS = st.sampled_from([1.0, 0.01, 5.0, 100.0])
_BACKWARDS = choice((8, "once"), (1, "twice"), (1, "accumulate"))
_WEIGHT_SCALES = choice((6, 1.0), (1, 0.1), (1, 4.0), (1, 0.0))


@st.composite
def train_cases(draw: Draw) -> c.TrainCase:
    """Training runs, biased toward what finds faults.

    Batch == features in at least 35 % of them; a norm layer first, on data far from zero; saturation; exact zeros and
    ties; momentum together with decay; fan-out; nested evaluation mode; clipping on both sides of max_norm; size 1.
    """
    rows = int(draw(ROWS))
    features = rows if (square := draw(BOOLEANS)) else int(draw(WIDTHS))
    models = _Models(draw, rows, square, small=False)
    layers: list[c.Layer] = []
    theme = draw(_THEMES)
    if theme == "norm first":
        layers.append(c.BatchNorm() if rows > 1 and draw(BOOLEANS) else c.LayerNorm())
    body, _ = models.body(features, 0, 7)
    layers.extend(body)
    if not c.trains(layers):
        layers.append(c.Linear(models.width()))
    if theme == "saturated":
        layers.append(c.Ops((c.OpStep("mul_scalar", (0,), {"c": draw(_SATURATIONS)}),)))
    model = tuple(layers)
    most = _AFFORDED // int(c.checked(model, rows, features).numbers)
    steps = min(draw(_STEPS), max(2, most))
    lr_changes: tuple[c.LrChange, ...] = ()
    if steps > 1 and draw(one_in(4)):
        lr_changes = (c.LrChange(draw(integers(1, steps - 1)), draw(_LATER_LRS)),)
    clip = draw(_CLIPS)
    gap = None
    if steps > 1 and clip == "none" and draw(one_in(4)):
        gap = c.Gap(
            draw(integers(1, max(1, steps - 2))), draw(integers(0, 7))
        )  # seldom the last one: what follows counts
    return c.TrainCase(
        model=model,
        data=_data(draw, rows, features),
        loss=draw(_LOSSES),
        optimizer=adam(draw) if draw(one_in(8)) else sgd(draw),
        seed=draw(SEEDS),
        steps=steps,
        clip=None if clip == "none" else c.Clip(None if clip == "default" else draw(_MAX_NORMS)),
        lr_changes=lr_changes,
        gap=gap,
        backward=draw(_BACKWARDS),
        input_grad=draw(one_in(3)),
        keep_init=draw(one_in(3)),
        weight_scale=draw(_WEIGHT_SCALES),
    )


_FEW_ROWS = st.sampled_from([1, 2, 3, 4, 6])
_FEW_FEATURES = st.sampled_from([1, 2, 3, 4])
_SECOND_LOSSES = choice(
    (2, c.SoftmaxLoss()), (1, c.MeanSquare()), (1, c.WeightedSum()), (1, c.Cotangent()), (1, c.MSELoss())
)
_SECOND_SCALES = st.sampled_from([1.0, 0.5])
_SECOND_OFFSETS = choice((5, 0.0), (1, 100.0))


@st.composite
def second_order_cases(draw: Draw) -> c.SecondOrderCase:
    """Small models, differentiated twice."""
    rows = int(draw(_FEW_ROWS))
    features = int(draw(_FEW_FEATURES))
    models = _Models(draw, rows, False, small=True)
    models.budget = 4
    body, width = models.body(features, 1, 3)
    head = models.linear(width)
    return c.SecondOrderCase(
        model=(*body, c.Linear(head.out, bias=head.bias)),
        data=c.Data(rows=rows, features=features, offset=draw(_SECOND_OFFSETS), rounded=draw(one_in(6))),
        loss=draw(_SECOND_LOSSES),
        seed=draw(SEEDS),
        weight_scale=draw(_SECOND_SCALES),
        keep_init=draw(BOOLEANS),
    )


# -- single operations ------------------------------------------------------------------------------------------------

_REAL = [0.0, 1.0, -1.0, 2.0, 0.5, -0.5, -2.0, 3.0, 0.1, -0.0, 10.0, -10.0, 100.0, -100.0, 1e3, -1e3, 1e-3, 1e-20]
FAR = 30.0  # what is far from 0, is so by this
_LARGEST = 256  # elements of an explicit operand


def legal(value: float, domain: str) -> float:
    """The value, moved into the domain of an operation."""
    if domain == "positive":
        return abs(value) + 0.01 if value == value else value
    if domain == "nonzero" and abs(value) < 1e-3:
        return math.copysign(0.25, value)
    if domain == "whole":
        return float(round(max(-3.0, min(3.0, value))))
    if domain == "far":
        return value + FAR
    return value


_LAYOUTS = choice((5, "C"), (1, "F"), (1, "strided"), (1, "reversed"))
_FINE = st.floats(-4, 4, width=16)
_TAME_VALUES = st.sampled_from(_REAL[:9]) | _FINE
_EXTREME_VALUES = st.sampled_from(_REAL) | _FINE
_ANY_REAL = st.sampled_from(_REAL)
_SPREADS = st.sampled_from([1.0, 30.0])
_DECIMALS = choice((2, 3), (1, 0))  # whole numbers: zeros and ties


def _operand(
    draw: Draw,
    shape: Shape,
    domain: str,
    special: Sequence[str | float],
    extreme: bool,
    hard: st.SearchStrategy[float] | None = None,
) -> c.Operand:
    size = math.prod(shape)
    layout = draw(_LAYOUTS)
    if size <= 4:
        plain = _EXTREME_VALUES if extreme else _TAME_VALUES
        values = [legal(float(draw(plain)), domain) for _ in range(size)]
    else:
        rng = np.random.RandomState(draw(SEEDS))
        values = np.round(rng.standard_normal(size) * (draw(_SPREADS) if extreme else 1.0), draw(_DECIMALS)).tolist()
        values = [legal(v, domain) for v in values] if domain != "real" else values
        for _ in range(draw(integers(0, 2)) if extreme else 0):
            values[draw(integers(0, size - 1))] = legal(float(draw(_ANY_REAL)), domain)
    if extreme and hard is not None and size:
        values[draw(integers(0, size - 1))] = float(draw(hard))
    out: list[Any] = np.array(values, np.float32).astype(np.float64).tolist()
    if special and size:
        first = draw(integers(0, size - 1))
        # one of them alone, for it may hide the others, or all that are no numbers and find a place
        together = [value for value in special if isinstance(value, str)]
        for i, value in enumerate([draw(st.sampled_from(special))] if draw(BOOLEANS) else together[:size]):
            out[(first + i) % size] = value
    return c.Operand(shape, tuple(out), layout)


_COTANGENT = st.lists(
    st.sampled_from([1.0, -1.0, 0.5, 2.0, -0.3, 0.0, 7.0, 300.0, -200.0]), min_size=1, max_size=5
).filter(any)


_TAME_COTANGENT = st.lists(st.sampled_from([1.0, -1.0, 0.5, 2.0, -0.3]), min_size=1, max_size=5)


@functools.cache
def _drawn(name: str) -> st.SearchStrategy[Any]:
    """Shapes and attributes of an op; a long dimension is worth its while only once in a case."""
    return strategy(OPERATIONS[name].drawn).filter(
        lambda drawn: all(math.prod(shape) <= _LARGEST for shape in drawn[0])
    )


@functools.cache
def _some(values: tuple[_T, ...]) -> st.SearchStrategy[_T] | None:
    return st.sampled_from(values) if values else None


@st.composite
def op_cases(
    draw: Draw, names: Sequence[str] | None = None, order: Literal[1, 2, 3] = 1, special: bool | None = None
) -> c.OpCase:
    """One operation over its whole domain: broadcasting, zero-size, memory layouts, extreme values, nan and inf.

    Where ``special`` is not given, nan and inf are among the operands now and then. What is differentiated more than once is made
    of ordinary values.
    """
    known = tuple(sorted(OPERATIONS) if names is None else names)
    name = known[0] if len(known) == 1 else draw(_names(known))
    op = OPERATIONS[name]
    shapes, attributes = draw(_drawn(name))
    if special is None:
        special = bool(order == 1 and draw(one_in(2 if op.factors else 3)))
    extreme = order == 1 and not op.ordinary and draw(BOOLEANS) and not (special and op.factors)
    hard = _some(op.hard)
    holding: Sequence[int] = ()
    if special:  # one of them, or all: inf − inf, 0 · inf, the larger of nan and inf
        holding = range(len(shapes)) if draw(BOOLEANS) else (draw(integers(0, len(shapes) - 1)),)
    operands = tuple(
        _operand(draw, s, op.domain(i), op.specials(i, attributes) if i in holding else (), extreme, hard)
        for i, s in enumerate(shapes)
    )
    return c.OpCase(
        op=name,
        operands=operands,
        attributes=attributes,
        cotangent=tuple(draw(_COTANGENT if order == 1 else _TAME_COTANGENT)),
        constants=op.plain if order > 1 and op.plain else draw(_constants(len(shapes))),
        numpy_scalars=bool("c" in attributes and draw(BOOLEANS)),
        order=order,
    ).cleared


@functools.cache
def _constants(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Numbers of the operands that are constants: mostly none, never all."""
    return choice((2, ()), *((1, (i,)) for i in range(count if count > 1 else 0)))


@functools.cache
def _names(known: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from(known)


TURNS = 12


@functools.cache
def every_op(names: tuple[str, ...], turn: int) -> st.SearchStrategy[tuple[c.OpCase, ...]]:
    """One case of every other of these ops, so that none has to wait for its turn: in twelve turns each is differentiated once on nan
    and infinities, twice on any other numbers (products, of which much is infinite, on both), and three times, three times over, on
    ordinary ones. What is differentiated three times, is judged once and twice on the way.
    """
    places = [(name, (turn + i) % TURNS) for i, name in enumerate(names)]
    return st.tuples(*(_in_turn(name, place) for name, place in places if place % 2 == 0))


def _in_turn(name: str, place: int) -> st.SearchStrategy[c.OpCase]:
    if place % 4:
        return op_cases([name], order=3)
    if place != 8:
        return op_cases([name], special=None if OPERATIONS[name].factors else False)
    return op_cases([name], special=True).filter(lambda case: case.no_number)


_FLOATS: tuple[c.Dtype, ...] = ("float16", "float32", "float64")
_INTEGERS: tuple[c.Dtype, ...] = ("int64", "int32", "uint8", "bool", "bool")
WITH_INTEGERS = ("add", "subtract", "multiply", "divide", "matmul")
_SAME = choice((3, "float16"), (3, "float64"))
_WHICH_DTYPES = choice((3, "same"), (2, "mixed"), (2, "integer"))


def _has_numbers(case: c.OpCase) -> bool:
    """Without any, nothing is rounded."""
    return any(o.values for o in case.operands)


@st.composite
def dtype_cases(draw: Draw, name: str, kind: str = "") -> c.OpCase:
    """One operation on operands of another dtype than float32, of several dtypes, or on one of integers or bools."""
    case = draw(op_cases([name], order=2).filter(_has_numbers))  # ordinary values
    count, kind = len(case.operands), kind or draw(_WHICH_DTYPES)
    dtypes: list[Any] = [draw(_SAME)] * count
    if kind == "mixed":
        dtypes = [draw(st.sampled_from(_FLOATS)) for _ in range(count)]
        dtypes = dtypes if set(dtypes) != {"float32"} else ["float64", *dtypes[1:]]  # which would be no other one
    elif kind == "integer" and name in WITH_INTEGERS:
        dtypes = [draw(st.sampled_from(_FLOATS)), draw(st.sampled_from(_INTEGERS))]
        dtypes = dtypes[::-1] if draw(BOOLEANS) else dtypes
    constants = case.constants if kind == "same" else ()
    attributes = dict(case.attributes)
    if "c" in attributes:
        attributes["c"] = c.held(attributes["c"], dtypes) or 0.5
    found: c.OpCase = msgspec.structs.replace(
        case, order=1, dtypes=tuple(dtypes), constants=constants, attributes=attributes
    )
    return found
