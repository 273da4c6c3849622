"""Operations that take a part, or put one into zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn, Shape
from oracle.operations.operation import operation
from oracle.operations.tape import LEAD, Array, Tape, Var


def slices(index: Sequence[Any]) -> tuple[Any, ...]:
    """An index as NumPy takes it: a case writes (start, stop, step) for a slice."""
    return tuple(slice(*part) if isinstance(part, tuple) else part for part in index)


def index_of(op: Any) -> tuple[Any, ...]:
    """The index that a node's op holds; a tuple in it is NumPy's list."""
    parts = op.index if isinstance(op.index, tuple) else (op.index,)
    return tuple(list(part) if isinstance(part, tuple) else part for part in parts)


def put(t: Tape, v: Array, shape: Shape, index: Sequence[Any]) -> Array:
    """v at an index of zeros of this shape; what names a place twice is added up there."""
    if not slices_alone(index):
        flat = t.scattered(v, (math.prod(shape),), (positions(shape, index),))
        return t.moved(flat, lambda a: a.reshape(a.shape[:LEAD] + shape))

    def there(a: Array) -> Array:
        out = np.zeros(a.shape[:LEAD] + shape)
        out[(slice(None),) * LEAD + slices(index)] = a
        return out

    return t.moved(v, there)


def taken(t: Tape, v: Array, index: Sequence[Any]) -> Array:
    """v at an index."""
    if slices_alone(index):
        return t.moved(v, lambda a: a[(slice(None),) * LEAD + slices(index)])
    places = positions(v.shape[LEAD:], index)
    return t.moved(v, lambda a: a.reshape((*a.shape[:LEAD], -1))[:, :, places])


def slices_alone(index: Sequence[Any]) -> bool:
    return all(isinstance(part, slice | tuple) for part in index)


def positions(shape: Shape, index: Sequence[Any]) -> Array:
    """Where the elements at an index of NumPy's are, counted row by row."""
    counted = np.arange(math.prod(shape)).reshape(shape)
    return np.asarray(counted[slices(index)])


def indexed(d: Draw) -> Drawn:
    """A shape, and slices of its first axes."""
    shape = d.shape(min_rank=1)
    index = []
    for n in shape[: d.whole(1, len(shape))]:
        start, stop = (d.whole(-n, n) if d.maybe() else None for _ in range(2))
        index.append((start, stop, d.of((None, 1, 2))))
    return [shape], {"index": tuple(index)}


@operation(
    needle=lambda n, x, index: x[slices(index)],
    torch=lambda t, x, index: x[slices(index)],
    drawn=indexed,
    node="GetItem",
    attributes=lambda op, x: {"index": index_of(op)},
)
def getitem(t: Tape, x: Var, *, index: Sequence[Any]) -> Var:
    """Slicing, one (start, stop, step) per leading axis; a node's index may be any that NumPy takes."""
    return t.emit(taken(t, x.value, index), (x,), lambda g: (put(t, g, x.shape, index),))


def placed(d: Draw) -> Drawn:
    """A shape, and an index that takes a slice of that shape out of a larger one."""
    shape = d.shape(min_rank=1)
    wide, index = [], []
    for n in shape:
        start, step = d.whole(0, 2), d.whole(1, 2)
        stop = start + n * step
        wide.append(stop + d.whole(0, 2))
        index.append((start, stop, step))
    return [shape], {"shape": tuple(wide), "index": tuple(index)}


def torch_put(t: Any, x: Any, shape: Shape, index: Any) -> Any:
    """Zeros, and x at a slice."""
    out = x.new_zeros(shape)
    out[slices(index)] = x
    return out


@operation(
    needle=lambda n, x, shape, index: n.ops.put_item(x, shape, slices(index)),
    torch=torch_put,
    drawn=placed,
    node="PutItem",
    attributes=lambda op, x: {"shape": op.shape, "index": index_of(op)},
)
def put_item(t: Tape, x: Var, *, shape: Shape, index: Sequence[Any]) -> Var:
    """Zeros of ``shape`` with x at an index, as for `getitem`; x has the shape of what is there, and is not broadcast."""
    there = taken(t, np.broadcast_to(0.0, (1, 1, *shape)), index).shape[LEAD:]
    if there != x.shape:
        raise ValueError(f"the operand has the shape {x.shape}, and its place {there}")
    return t.emit(put(t, x.value, tuple(shape), index), (x,), lambda g: (taken(t, g, index),))
