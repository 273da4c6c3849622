"""Operations with tuples of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle.operations.drawn import NUMBERS, Draw, Drawn
from oracle.operations.elementwise import add_scalar, multiply
from oracle.operations.operation import meaning, operation, unusual
from oracle.operations.tape import LEAD, Array, Tape, Var, moved


@meaning("MakeTensorTuple")
def make_tensor_tuple(t: Tape, op: Any, *xs: Var) -> tuple[Var, ...]:
    """The operands themselves."""
    return xs


@meaning("TupleGetItem")
def tuple_get_item(t: Tape, op: Any, xs: tuple[Var, ...]) -> Var:
    """One of them."""
    element: Var = xs[op.index]
    return element


def stacked(d: Draw) -> Drawn:
    """One to four of the same shape, and an axis."""
    shape = d.shape()
    return [shape] * d.whole(1, 4), {"axis": d.whole(0, len(shape))}


@operation(
    needle=lambda n, *xs, axis: n.stack(xs, **unusual(axis=(axis, 0))),
    torch=lambda t, *xs, axis: t.stack(xs, axis),
    drawn=stacked,
    covers=("Stack", "MakeTensorTuple"),
)
def stack(t: Tape, *xs: Var, axis: int) -> Var:
    """Equal shapes joined along a new axis."""
    place = LEAD + axis
    lead = np.broadcast_shapes(*(x.value.shape[:LEAD] for x in xs))
    value = np.stack([np.broadcast_to(x.value, lead + x.shape) for x in xs], axis=place)
    return t.emit(value, xs, lambda g: [np.take(g, i, axis=place) for i in range(len(xs))])


@meaning("Stack")
def stack_of_a_tuple(t: Tape, op: Any, xs: tuple[Var, ...]) -> Var:
    """A node's operand is a tuple."""
    return stack(t, *xs, axis=op.axis)


def splittable(d: Draw) -> Drawn:
    """A shape, an axis, and which of the parts."""
    shape = tuple(max(n, 1) for n in d.shape(min_rank=1))
    axis = d.whole(0, len(shape) - 1)
    return [shape], {"axis": axis, "pick": d.whole(0, shape[axis] - 1)}


@operation(
    needle=lambda n, x, axis, pick: n.split(x, axis)[pick],
    torch=lambda t, x, axis, pick: t.select(x, axis, pick),
    drawn=splittable,
    covers=("Split", "TupleGetItem"),
)
def split(t: Tape, x: Var, *, axis: int, pick: int) -> Var:
    """The ``pick``-th slice along an axis, which is dropped (one element of the tuple that Split makes)."""
    place = LEAD + axis

    def back(g: Array) -> Array:
        out = np.zeros(g.shape[:LEAD] + x.shape)
        out[(slice(None),) * place + (pick,)] = g
        return out

    return moved(t, x, lambda v: np.take(v, pick, axis=place), back)


@meaning("Split")
def split_into_all(t: Tape, op: Any, x: Var) -> tuple[Var, ...]:
    """A node has all the parts."""
    return tuple(split(t, x, axis=op.axis, pick=i) for i in range(x.shape[op.axis]))


def two_scalars(d: Draw) -> Drawn:
    """Any shape, and two numbers."""
    return [d.shape()], {"c": d.number(NUMBERS), "c1": d.number(NUMBERS)}


def needle_fused_add_scalars(n: Any, x: Any, c: float, c1: float) -> Any:
    """The product of both elements."""
    pair = n.fused_add_scalars(x, c, c1)
    return pair[0] * pair[1]


@operation(
    needle=needle_fused_add_scalars,
    torch=lambda t, x, c, c1: (x + c) * (x + c1),
    drawn=two_scalars,
    covers=("FusedAddScalars", "TupleGetItem"),
)
def fused_add_scalars(t: Tape, x: Var, *, c: float, c1: float) -> Var:
    """(x + c) · (x + c1): both elements of the tuple that FusedAddScalars makes."""
    return multiply(t, add_scalar(t, x, c=c), add_scalar(t, x, c=c1))


@meaning("FusedAddScalars")
def both_sums(t: Tape, op: Any, x: Var) -> tuple[Var, ...]:
    """A node has both elements."""
    return tuple(add_scalar(t, x, c=float(c)) for c in (op.c0, op.c1))
