"""Operations that make one number of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import over_axes
from oracle.operations.operation import axes_of_op, operation
from oracle.operations.tape import LEAD, Array, Tape, Var, axes_of, expand, summed


def dims(x: Any, axes: Any) -> Any:
    """Axes as torch wants them: None is all of them, which for torch must be spelled out."""
    return tuple(range(x.dim())) if axes is None else axes


@operation(
    needle=lambda n, x, **a: n.summation(x, **a),
    torch=lambda t, x, axes=None: x.sum() if axes is None else x.sum(dim=axes),
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


@operation(
    needle=lambda n, x, axes=None: x.max(axes),
    torch=lambda t, x, axes=None: t.amax(x, dims(x, axes)),
    drawn=over_axes(min_size=1),
    node="Max",
    attributes=axes_of_op,
    special=(),
)
def maximum(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Largest element over axes, which are dropped; ties share the gradient equally."""
    over = axes_of(axes, len(x.shape))
    top = x.value.max(axis=over, keepdims=True)
    hit = (x.value[:1] == top[:1]).astype(np.float64)
    share = hit / hit.sum(axis=over, keepdims=True)

    def vjp(g: Array) -> Sequence[Array]:
        return (t.noisy(g.reshape(g.shape[:LEAD] + top.shape[LEAD:])) * share,)

    return t.emit(np.squeeze(top, axis=over), (x,), vjp)


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


def torch_logsumexp(t: Any, x: Any, axes: Any = None) -> Any:
    """Over all axes as over one."""
    return t.logsumexp(x.reshape(-1), 0) if axes is None else t.logsumexp(x, axes)


@operation(
    needle=lambda n, x, **a: n.logsumexp(x, **a),
    torch=torch_logsumexp,
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
