"""Operations that make one number of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn, over_axes
from oracle.operations.operation import axes_of_op, operation
from oracle.operations.tape import LEAD, Array, Tape, Var, axes_of, expand, mean_of, moved, require, summed


def numpys(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction of torch's by NumPy's rule: axes=None is all of them, and axes=() none, where torch takes it for all."""

    def reduced(t: Any, x: Any, axes: Any = None, **others: Any) -> Any:
        axes = tuple(range(x.dim())) if axes is None else axes
        return reduce(t, x, axes, **others) if axes != () else reduce(t, x.unsqueeze(-1), (-1,), **others)

    return reduced


@operation(
    needle=lambda n, x, **a: n.summation(x, **a),
    torch=numpys(lambda t, x, axes: x.sum(axes)),
    drawn=over_axes(),
    node="Summation",
    attributes=axes_of_op,
)
def summation(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Sum over axes, which are dropped."""
    over = axes_of(axes, len(x.shape))

    def vjp(g: Array) -> Sequence[Array]:
        kept = tuple(1 if LEAD + i in over else n for i, n in enumerate(x.shape))
        return (expand(t.noisy(g.reshape(g.shape[:LEAD] + kept)), x.shape),)

    return t.emit(summed(t, t.noisy(x.value), over, as_mean=True), (x,), vjp)


def extreme(t: Tape, x: Var, end: Array, over: tuple[int, ...]) -> Var:
    """The element of x that is ``end``; ties share the gradient equally."""
    hit = (x.value[:1] == end[:1]).astype(np.float64)
    share = hit / hit.sum(axis=over, keepdims=True)

    def vjp(g: Array) -> Sequence[Array]:
        return (t.noisy(g.reshape(g.shape[:LEAD] + end.shape[LEAD:])) * share,)

    return t.emit(np.squeeze(end, axis=over), (x,), vjp)


@operation(
    needle=lambda n, x, axes=None: x.max(axes),
    torch=numpys(lambda t, x, axes: t.amax(x, axes)),
    drawn=over_axes(min_size=1),
    node="Max",
    attributes=axes_of_op,
)
def maximum(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Largest element over axes, which are dropped; ties share the gradient equally."""
    over = axes_of(axes, len(x.shape))
    return extreme(t, x, x.value.max(axis=over, keepdims=True), over)


@operation(
    needle=lambda n, x, axes=None: x.min(axes) if len(x.shape) % 2 else n.amin(x, axes),
    torch=numpys(lambda t, x, axes: t.amin(x, axes)),
    drawn=over_axes(min_size=1),
    node="Min",
    attributes=axes_of_op,
    values="whole",  # for the sake of ties
)
def minimum(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Smallest element over axes, which are dropped; ties share the gradient equally."""
    over = axes_of(axes, len(x.shape))
    return extreme(t, x, x.value.min(axis=over, keepdims=True), over)


def along(d: Draw) -> Drawn:
    """A matrix, an axis of it or none, and which end."""
    shape = d.whole(1, 4), d.whole(1, 5)
    return [shape], {"axes": d.of((None, 0, 1, -1, -2)), "largest": d.maybe()}


def needle_picked(n: Any, x: Any, axes: int | None, largest: bool) -> Any:
    """Half of what the function picks, and half of what the method does."""

    def at(places: Any) -> Any:
        if axes is None:
            return x.flatten()[places]
        return x[places, np.arange(x.shape[1])] if axes % 2 == 0 else x[np.arange(x.shape[0]), places]

    given = () if axes is None else (axes,)
    function, method = (n.argmax, x.argmax) if largest else (n.argmin, x.argmin)
    return at(function(x, *given)) * 0.5 + at(method(*given)) * 0.5


def torch_picked(t: Any, x: Any, axes: int | None, largest: bool) -> Any:
    """What is at the place that torch names."""
    find = t.argmax if largest else t.argmin
    return x.reshape(-1)[find(x)] if axes is None else x.gather(axes, find(x, axes, keepdim=True)).squeeze(axes)


@operation(
    needle=needle_picked,
    torch=torch_picked,
    drawn=along,
    covers=("GetItem", "Reshape"),
    values="whole",  # for the sake of ties
)
def picked(t: Tape, x: Var, *, axes: int | None, largest: bool) -> Var:
    """The element at the place that argmax or argmin names: of several, the first gets the whole gradient."""
    require(len(x.shape) == 2 and min(x.shape) > 0, f"a matrix is needed, and not an empty one, but got {x.shape}")
    find = np.argmax if largest else np.argmin
    exact = x.value[0, 0]
    at = find(exact, axis=axes, keepdims=True)
    place = np.zeros(exact.shape)
    if axes is None:
        place.reshape(-1)[at.reshape(-1)] = 1
    else:
        np.put_along_axis(place, at, 1.0, axes)
    return summation(t, select_by(t, x, place), axes=axes)


def select_by(t: Tape, x: Var, place: Array) -> Var:
    """x times zeros and ones."""
    return moved(t, x, lambda v: v * place, lambda g: g * place)


def varied(d: Draw) -> Drawn:
    """Any shape, axes of it, and a correction that leaves something."""
    (shape,), attributes = over_axes(min_size=1)(d)
    n = math.prod(shape[i - LEAD] for i in axes_of(attributes.get("axes"), len(shape)))
    correction: float = d.whole(0, 1) if n > 1 else 0
    if correction and n % 3 == 0:  # also a fraction, which NumPy and torch take as well
        correction = 1.5
    return [shape], attributes | ({"correction": correction} if correction or d.maybe() else {})


@operation(
    needle=lambda n, x, axes=None, **a: x.var(axes, **a) if len(x.shape) % 2 else n.var(x, axes, **a),
    torch=numpys(lambda t, x, axes, correction=0: x.var(axes, correction=correction)),
    drawn=varied,
    node="Var",
    values="far",  # from 0, where squares cancel
    attributes=lambda op, x: {**axes_of_op(op), "correction": op.correction},
)
def var(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None, correction: float = 0) -> Var:
    """Σ (x − mean)² / (n − correction) over axes, which are dropped."""
    over = axes_of(axes, len(x.shape))
    n = math.prod(x.value.shape[a] for a in over)
    if n <= correction:
        raise ValueError(f"{n} elements are not more than correction={correction}")
    mean = mean_of(t, t.noisy(x.value), over)
    centred = t.noisy(x.value) - t.noisy(mean)
    y = t.variance(x.value, centred, mean, over) * (n / (n - correction))

    def vjp(g: Array) -> Sequence[Array]:
        spread = t.noisy(g.reshape(g.shape[:LEAD] + mean.shape[LEAD:]))
        return (spread * t.noisy(centred) * (2 / (n - correction)),)

    return t.emit(t.moved(y, lambda v: np.squeeze(v, axis=over)), (x,), vjp)


def shifted(t: Tape, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """Noisy x, its maximum, e^(x − max) and the sum of that: the shift is by the maximum of what is shifted."""
    seen = t.noisy(x)
    top = seen.max(axis=axes, keepdims=True)
    e = np.exp(np.minimum(t.noisy(seen - top), 0))
    return seen, top, e, summed(t, t.noisy(e), axes, keepdims=True)


def softmax_from(t: Tape, x: Array, lse: Array) -> Array:
    """The softmax of x from ln Σ eˣ: e^(x − lse) and e^(x − max) / Σ are both in use; min(·, 0) admits either."""
    soft: Array = np.exp(np.minimum(t.noisy(x) - t.noisy(lse), 0))
    return soft


@operation(
    needle=lambda n, x, **a: n.logsumexp(x, **a),
    torch=numpys(lambda t, x, axes: t.logsumexp(x, axes)),
    drawn=over_axes(min_size=1),
    node="LogSumExp",
    attributes=axes_of_op,
    hard=(1e3, -1e3, 300.0, 100.0),
)
def logsumexp(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """ln Σ eˣ over axes, which are dropped."""
    over = axes_of(axes, len(x.shape))
    _, top, _, total = shifted(t, x.value, over)
    y = t.noisy(np.log(t.noisy(total))) + t.noisy(top)

    def vjp(g: Array) -> Sequence[Array]:
        return (t.noisy(g.reshape(g.shape[:LEAD] + top.shape[LEAD:])) * t.noisy(softmax_from(t, x.value, y)),)

    return t.emit(np.squeeze(y, axis=over), (x,), vjp)
