"""Operations with tuples of tensors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from oracle.operations.drawn import NUMBERS, Draw, Drawn, an_axis
from oracle.operations.elementwise import add_scalar, multiply
from oracle.operations.operation import meaning, operation, unusual
from oracle.operations.tape import LEAD, Array, Tape, Var, axes_of, moved


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
    """One to four of the same shape, and an axis; often as many as all sizes are, so that a wrong axis has the right shape."""
    if d.maybe():
        n = d.whole(2, 3)
        rank = d.whole(1, 3)
        return [(n,) * rank] * n, {"axis": an_axis(d, rank + 1)}
    shape = d.shape()
    return [shape] * d.whole(1, 4), {"axis": an_axis(d, len(shape) + 1)}


@operation(
    needle=lambda n, *xs, axis: n.stack(xs, **unusual(axis=(axis, 0))),
    torch=lambda t, *xs, axis: t.stack(xs, axis),
    drawn=stacked,
    covers=("Stack", "MakeTensorTuple"),
)
def stack(t: Tape, *xs: Var, axis: int) -> Var:
    """Equal shapes joined along a new axis."""
    (place,) = axes_of(axis, len(xs[0].shape) + 1)
    lead = np.broadcast_shapes(*(x.value.shape[:LEAD] for x in xs))
    value = np.stack([np.broadcast_to(x.value, lead + x.shape) for x in xs], axis=place)
    return t.emit(value, xs, lambda g: [np.take(g, i, axis=place) for i in range(len(xs))])


def joined(d: Draw) -> Drawn:
    """One to four shapes that differ along an axis alone, or not at all."""
    shape = d.shape(min_rank=1)
    if d.maybe():
        return [shape] * d.whole(2, 3), {"axis": an_axis(d, len(shape))}
    axis = an_axis(d, len(shape))
    at = axis % len(shape)
    return [(*shape[:at], d.size() if i else shape[at], *shape[at + 1 :]) for i in range(d.whole(1, 4))], {"axis": axis}


@operation(
    needle=lambda n, *xs, axis: n.concatenate(xs, **unusual(axis=(axis, 0))),
    torch=lambda t, *xs, axis: t.cat(xs, axis),
    drawn=joined,
    node="Concatenate",
    attributes=lambda op, *xs: {"axis": op.axis},
)
def concatenate(t: Tape, *xs: Var, axis: int) -> Var:
    """Shapes that differ along an axis alone, one behind the other along it."""
    (place,) = axes_of(axis, len(xs[0].shape))
    lead = np.broadcast_shapes(*(x.value.shape[:LEAD] for x in xs))
    value = np.concatenate([np.broadcast_to(x.value, lead + x.shape) for x in xs], axis=place)
    stops = list(itertools.accumulate(x.value.shape[place] for x in xs))

    def vjp(g: Array) -> list[Array]:
        starts = [0, *stops[:-1]]
        return [g[(slice(None),) * place + (slice(a, b),)] for a, b in zip(starts, stops, strict=True)]

    return t.emit(value, xs, vjp)


@meaning("Stack")
def stack_of_a_tuple(t: Tape, op: Any, xs: tuple[Var, ...]) -> Var:
    """A node's operand is a tuple."""
    return stack(t, *xs, axis=op.axis)


def splittable(d: Draw) -> Drawn:
    """A shape, an axis, and which of the parts, from the end too; often all sizes are equal, so that a wrong axis has the right shape."""
    shape = tuple(max(n, 1) for n in d.shape(min_rank=1))
    if d.maybe():
        shape = (d.whole(2, 3),) * d.whole(2, 3)
    axis = an_axis(d, len(shape))
    return [shape], {"axis": axis, "pick": d.whole(-shape[axis], shape[axis] - 1)}


@operation(
    needle=lambda n, x, axis, pick: n.split(x, axis)[pick],
    torch=lambda t, x, axis, pick: t.select(x, axis, pick),
    drawn=splittable,
    covers=("Split", "TupleGetItem"),
)
def split(t: Tape, x: Var, *, axis: int, pick: int) -> Var:
    """The ``pick``-th slice along an axis, which is dropped (one element of the tuple that Split makes)."""
    (place,) = axes_of(axis, len(x.shape))

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
