"""Operations that move elements to other places."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn, Shape, some_axes, two
from oracle.operations.operation import axes_of_op, operation
from oracle.operations.tape import LEAD, Array, Tape, Var, axes_of, expand, moved, reduced


def transposed(d: Draw) -> Drawn:
    """A shape of rank 2 or more, and two axes or none."""
    shape = d.shape(min_rank=3 if d.maybe() else 2)
    if d.maybe():
        shape = (shape[0],) * len(shape)  # a wrong pair of axes then has the right shape
    if d.maybe():
        return [shape], {}
    axis = -len(shape), len(shape) - 1
    return [shape], {"axes": (d.whole(*axis), d.whole(*axis))}


def needle_transpose(n: Any, x: Any, **a: Any) -> Any:
    """By the attribute, the method or the function."""
    if not a and len(x.shape) == 2:
        return x.T if hasattr(type(x), "T") else n.transpose(x)
    return x.transpose(**a) if len(x.shape) % 2 else n.transpose(x, **a)


@operation(
    needle=needle_transpose,
    torch=lambda t, x, axes=(-1, -2): x.transpose(*axes),
    drawn=transposed,
    node="Transpose",
    attributes=axes_of_op,
)
def transpose(t: Tape, x: Var, *, axes: tuple[int, int] | None = None) -> Var:
    """Two axes swapped; the last two by default."""
    (first,), (second,) = (axes_of(axis, len(x.shape)) for axis in (axes or (-1, -2)))  # which may be the same
    return moved(t, x, lambda v: np.swapaxes(v, first, second), lambda g: np.swapaxes(g, first, second))


def reshaped(d: Draw) -> Drawn:
    """A shape, and another of the same size."""
    shape = d.shape()
    flat: tuple[int, ...] = (1,)
    for n in shape:
        flat = (flat[0] * n,)
    targets = [flat, shape[::-1], (1, *shape), (*shape, 1), tuple(n for n in shape if n != 1)]
    target = targets[d.whole(0, 4)]
    if target and 0 not in target and d.maybe():
        at = d.whole(0, len(target) - 1)
        target = (*target[:at], -1, *target[at + 1 :])
    return [shape], {"shape": target}


@functools.cache
def takes_several(method: Any) -> bool:
    """Whether a method can be given several numbers in place of a tuple: a needle of the course need not."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(method).parameters.values())


def needle_reshape(n: Any, x: Any, shape: Shape) -> Any:
    """By the method, with one argument or several, or the function; several axes as one by `flatten`, where there is one."""
    joins = len(x.shape) > 1 and len(shape) == len(x.shape) - 1 and shape[1:] == x.shape[2:] and -1 not in shape
    if joins and hasattr(type(x), "flatten"):
        return x.flatten(0, 1)
    if len(x.shape) == 3 and takes_several(type(x).reshape):
        return x.reshape(*shape)
    return x.reshape(shape) if len(x.shape) % 2 else n.reshape(x, shape)


@operation(
    needle=needle_reshape,
    torch=lambda t, x, shape: t.reshape(x, shape),
    drawn=reshaped,
    node="Reshape",
    attributes=lambda op, x: {"shape": np.empty(x.shape, bool).reshape(op.shape).shape},
)
def reshape(t: Tape, x: Var, *, shape: Shape) -> Var:
    """The same elements in row-major order."""
    old = x.shape
    return moved(t, x, lambda v: v.reshape(v.shape[:LEAD] + tuple(shape)), lambda g: g.reshape(g.shape[:LEAD] + old))


def ranked(d: Draw) -> Drawn:
    """A shape of at least one axis."""
    return [d.shape(min_rank=1, max_rank=4)], {}


@operation(
    needle=lambda n, x: n.nn.Flatten()(x),
    torch=lambda t, x: t.flatten(x, 1) if x.ndim > 1 else x.reshape(-1, 1),
    drawn=ranked,
    covers=("Reshape",),
)
def flatten(t: Tape, x: Var) -> Var:
    """``nn.Flatten``: all axes behind the first as one."""
    return reshape(t, x, shape=(x.shape[0], math.prod(x.shape[1:])))


def broadcasted(d: Draw) -> Drawn:
    """A shape, and one that it broadcasts to; often with a new axis as long as the first or the last one."""
    if d.maybe():
        shape = d.shape(min_rank=1, max_rank=3)
        return [shape], {"shape": (shape[0 if d.maybe() else -1], *shape)}
    (shape, other), _ = two(d)
    rank = max(len(shape), len(other))
    pairs = zip((1,) * (rank - len(shape)) + shape, (1,) * (rank - len(other)) + other, strict=True)
    return [shape], {"shape": tuple(max(a, b) if 0 not in (a, b) else 0 for a, b in pairs)}


@operation(
    needle=lambda n, x, shape: x.broadcast_to(shape),
    torch=lambda t, x, shape: x.broadcast_to(shape),
    drawn=broadcasted,
    node="BroadcastTo",
    attributes=lambda op, x: {"shape": op.shape},
)
def broadcast_to(t: Tape, x: Var, *, shape: Shape) -> Var:
    """NumPy's broadcasting rule."""
    if np.broadcast_shapes(x.shape, tuple(shape)) != tuple(shape):
        raise ValueError(f"{x.shape} does not broadcast to {tuple(shape)}")
    return t.emit(expand(x.value, tuple(shape)), (x,), lambda g: (reduced(t, t.noisy(g), x.shape),))


def flipped(d: Draw) -> Drawn:
    """A shape, and axes of it."""
    shape = d.shape(min_rank=1)
    axes = some_axes(d, len(shape), allow_none=False)
    return [shape], {"axes": axes if isinstance(axes, tuple) else (axes,)}


@operation(
    needle=lambda n, x, axes: n.flip(x, axes),
    torch=lambda t, x, axes: t.flip(x, axes),
    drawn=flipped,
    node="Flip",
    attributes=axes_of_op,
)
def flip(t: Tape, x: Var, *, axes: int | tuple[int, ...]) -> Var:
    """Elements reversed along axes."""
    over = axes_of(axes, len(x.shape))
    return moved(t, x, lambda v: np.flip(v, over), lambda g: np.flip(g, over))


def dilated(d: Draw) -> Drawn:
    """A shape, axes of it, and how many zeros."""
    shape = d.shape(min_rank=1)
    axes = d.distinct(len(shape), len(shape))
    return [shape], {"axes": tuple(a - len(shape) if d.maybe() else a for a in axes), "dilation": d.whole(0, 3)}


def torch_dilate(t: Any, x: Any, axes: Shape, dilation: int) -> Any:
    """Zeros, and x at some of the places."""
    axes = tuple(a % x.dim() for a in axes)
    out = x.new_zeros([n * (dilation + 1) if i in axes else n for i, n in enumerate(x.shape)])
    where = tuple(slice(None, None, dilation + 1) if i in axes else slice(None) for i in range(x.dim()))
    out[where] = x
    return out


def dilation_of(op: Any, x: Var) -> dict[str, Any]:
    """The axes of a node as a tuple; an integer is one axis."""
    return {"axes": op.axes if isinstance(op.axes, tuple | list) else (op.axes,), "dilation": op.dilation}


@operation(
    needle=lambda n, x, **a: n.dilate(x, **a),
    torch=torch_dilate,
    drawn=dilated,
    node="Dilate",
    attributes=dilation_of,
)
def dilate(t: Tape, x: Var, *, axes: tuple[int, ...], dilation: int) -> Var:
    """``dilation`` zeros after every element along axes."""
    over = set(axes_of(axes, len(x.shape)))
    shape = tuple(n * (dilation + 1) if LEAD + i in over else n for i, n in enumerate(x.shape))
    where = tuple(slice(None, None, dilation + 1) if i in over else slice(None) for i in range(LEAD + len(shape)))

    def there(v: Array) -> Array:
        out = np.zeros(v.shape[:LEAD] + shape)
        out[where] = v
        return out

    return moved(t, x, there, lambda g: g[where])
