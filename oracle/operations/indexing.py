"""Operations that take a part, or put one into zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn, Shape
from oracle.operations.operation import operation
from oracle.operations.tape import LEAD, Array, Tape, Var, require


def slices(index: Sequence[Any]) -> tuple[Any, ...]:
    """An index as NumPy takes it.

    A case writes (start, stop, step) for a slice, None for a new axis, {"array": (2, 0, 2)} for an array of places,
    {"mask": (1, 0, 1)} for one of bools, {"number": (2,)} for a place and {"ellipsis": ()} for the axes between.
    """
    return tuple(map(part_of, index))


def part_of(part: Any) -> Any:
    """A part of an index as NumPy takes it; ValueError for what is none."""
    if isinstance(part, tuple):
        return slice(*part)
    if not isinstance(part, dict):
        return part
    ((kind, values),) = part.items()
    if kind not in ("array", "mask", "number", "ellipsis") or (kind == "number" and len(values) != 1):
        raise ValueError(f"{part} is no part of an index: an array, a mask, a number and an ellipsis are")
    if kind in ("array", "mask"):
        return np.array(values, bool if kind == "mask" else np.intp)
    return values[0] if kind == "number" else Ellipsis


def spelled(index: Sequence[Any]) -> tuple[Any, ...]:
    """An index as users write it: what names places, as an array, a list or a tuple, which are the same to NumPy."""
    written: list[Any] = []
    for part in index:
        values = part.get("array") if isinstance(part, dict) else None
        if values is None:
            written.append(part_of(part))
        else:  # which of them says the case, and nothing has to be drawn for it
            written.append((part_of(part), list(values), tuple(values))[sum(values) % 3])
    return tuple(written)


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
    """Where the elements at an index of NumPy's are, counted row by row. NumPy lets an empty mask pass on an axis of 1."""
    masks = [len(part["mask"]) for part in index if isinstance(part, dict) and "mask" in part]
    require(all(masks), "a mask must have at least one bool")
    counted = np.arange(math.prod(shape)).reshape(shape)
    return np.asarray(counted[slices(index)])


def indexed(d: Draw) -> Drawn:
    """A shape, and an index of its first axes: slices, or whatever else NumPy takes."""
    shape = d.shape(min_rank=1)
    if d.maybe() and shape[0] < 5:
        shape = (shape[0],) * len(shape)  # what is taken along a wrong axis then has the right shape
    plain = d.maybe()
    # Beside an array, NumPy takes a number for one, and puts the axes elsewhere; torch does not. Both together are not drawn.
    others = d.of((("array", "array", "mask"), ("number",)))
    arrays = d.whole(1, 4)  # as long as one another, or they would not broadcast
    index: list[Any] = []
    axes = list(shape[: d.whole(1, len(shape))])
    for n in axes:
        kind = "slice" if plain else d.of(("slice", *others, *others, "new axis"))
        if kind == "array" and n:
            index.append({"array": tuple(d.whole(-n, n - 1) for _ in range(arrays))})
            continue
        if kind == "mask" and 0 < n < 8 and not any(isinstance(part, dict) for part in index):
            index.append({"mask": tuple(int(d.maybe()) for _ in range(n))})
            arrays = sum(index[-1]["mask"])
            continue
        if kind == "number" and n:
            index.append({"number": (d.whole(-n, n - 1),)})
            continue
        if kind == "new axis":
            index.append(None)
        start, stop = (d.whole(-n, n) if d.maybe() else None for _ in range(2))
        index.append((start, stop, d.of((None, 1, 2))))
    if not plain and d.maybe():  # the last axes
        index = [{"ellipsis": ()}, *index[::-1]]
        shape = (*shape[len(axes) :], *axes[::-1])
    return [shape], {"index": tuple(index)}


@operation(
    needle=lambda n, x, index: x[spelled(index)],
    torch=lambda t, x, index: x[tuple(t.from_numpy(p) if isinstance(p, np.ndarray) else p for p in slices(index))],
    drawn=indexed,
    node="GetItem",
    attributes=lambda op, x: {"index": index_of(op)},
)
def getitem(t: Tape, x: Var, *, index: Sequence[Any]) -> Var:
    """What is at an index, see `slices`; a node's index may be any that NumPy takes."""
    return t.emit(taken(t, x.value, index), (x,), lambda g: (put(t, g, x.shape, index),))


def placed(d: Draw) -> Drawn:
    """A shape, and an index that takes a part of that shape out of another one."""
    shape = d.shape(min_rank=1)
    wide: list[int] = []
    index: list[Any] = []
    if d.maybe():
        shape = (d.whole(0, 5), *d.shape(min_rank=1, max_rank=3))
        n = d.whole(1, 4)
        return [shape], {
            "shape": (n, *shape[1:]),
            "index": ({"array": tuple(d.whole(-n, n - 1) for _ in range(shape[0]))},),
        }
    for n in shape:
        start, step = d.whole(0, 2), d.whole(1, 2)
        stop = start + n * step
        wide.append(stop + d.whole(0, 2))
        index.append((start, stop, step))
    return [shape], {"shape": tuple(wide), "index": tuple(index)}


def torch_put(t: Any, x: Any, shape: Shape, index: Any) -> Any:
    """Zeros, and x added at an index."""
    out = x.new_zeros(shape)
    if slices_alone(index):
        out[slices(index)] = x
        return out
    return out.index_put(tuple(t.from_numpy(part) for part in slices(index)), x, accumulate=True)


@operation(
    needle=lambda n, x, shape, index: n.ops.put_item(x, shape, spelled(index)),
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
