"""Softmax and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn
from oracle.operations.operation import meaning, operation
from oracle.operations.reductions import shifted, softmax_from
from oracle.operations.tape import LEAD, Array, Tape, Var, axes_of, mean_of, require, summed


def matrix(d: Draw) -> Drawn:
    """Rows and columns, at least one column."""
    return [(d.size(), d.whole(1, 8))], {}


@operation(
    needle=lambda n, x: n.logsoftmax(x),
    torch=lambda t, x: t.log_softmax(x, 1),
    drawn=matrix,
    node="LogSoftmax",
    hard=(1e3, -1e3, 300.0, 100.0),
)
def logsoftmax(t: Tape, x: Var) -> Var:
    """x − ln Σ eˣ over the last axis of a matrix: (n, k) -> (n, k)."""
    require(len(x.shape) == 2 and x.shape[1] > 0, f"a matrix with at least one column is needed, but got {x.shape}")
    seen, top, _, total = shifted(t, x.value, (x.value.ndim - 1,))
    lse = t.noisy(np.log(t.noisy(total))) + t.noisy(top)
    y = seen - t.noisy(lse)

    def vjp(g: Array) -> Sequence[Array]:
        total_g = summed(t, t.noisy(g), (g.ndim - 1,), keepdims=True)
        return (t.noisy(g) - t.noisy(t.noisy(softmax_from(t, x.value, lse)) * t.noisy(total_g)),)

    return t.emit(y, (x,), vjp)


def along_an_axis(d: Draw) -> Drawn:
    """A shape with at least one element along each axis, and an axis of it, now and then by default."""
    shape = tuple(max(n, 1) for n in d.shape(min_rank=2 if d.maybe() else 1))
    return [shape], {} if d.maybe() and d.maybe() else {"axis": d.whole(-len(shape), len(shape) - 1)}


@operation(
    needle=lambda n, x, **a: n.softmax(x, **a),
    torch=lambda t, x, axis=-1: t.softmax(x, axis),
    drawn=along_an_axis,
    node="Softmax",
    attributes=lambda op, x: {"axis": op.axis},
    layer="Softmax",
    hard=(1e3, -1e3, 300.0, 100.0),
)
def softmax(t: Tape, x: Var, *, axis: int = -1) -> Var:
    """eˣ / Σ eˣ along an axis."""
    over = axes_of(axis, len(x.shape))
    _, _, e, total = shifted(t, x.value, over)
    y = t.noisy(e) / t.noisy(total)

    def vjp(g: Array) -> Sequence[Array]:
        inner = summed(t, t.noisy(t.noisy(g) * t.noisy(y)), over, keepdims=True)
        return (t.noisy(y) * t.noisy(t.noisy(g) - t.noisy(inner)),)

    return t.emit(y, (x,), vjp)


def labelled(d: Draw) -> Drawn:
    """Rows of logits, and the class of each."""
    n, k = d.whole(1, 5), d.whole(1, 5)
    return [(n, k)], {"labels": tuple(d.whole(0, k - 1) for _ in range(n))}


@operation(
    needle=lambda n, z, labels: n.nn.SoftmaxLoss()(z, n.Tensor(np.array(labels), requires_grad=False)),
    torch=lambda t, z, labels: t.nn.functional.cross_entropy(z, t.tensor(labels)),
    drawn=labelled,
    covers=("SoftmaxCrossEntropy",),
    hard=(1e3, -1e3, 300.0, 100.0),
)
def softmax_loss(t: Tape, z: Var, *, labels: Array) -> Var:
    """Mean over the rows of ln Σ e^z − z_y: logits (n, k), labels (steps, n) -> ()."""
    n, k = z.shape
    require(n > 0 and k > 0, f"the mean of no rows, or of no classes, is none: got {z.shape}")
    require(labels.shape[-1] == n, f"{labels.shape[-1]} labels for {n} rows")
    require(bool(((labels >= 0) & (labels < k)).all()), f"labels lie in 0..{k - 1}, but got {labels.tolist()!s:.80}")
    onehot = (labels[..., None] == np.arange(k)).astype(np.float64)[None]
    seen, top, e, s = shifted(t, z.value, (z.value.ndim - 1,))
    lse = t.noisy(np.log(t.noisy(s))) + t.noisy(top)
    # the two terms may be summed apart, so each has rounding of its own size
    normalisers = mean_of(t, t.noisy(np.log(t.noisy(s)))[..., 0], (LEAD,))
    picked = mean_of(t, np.where(onehot > 0, t.noisy(seen - top), 0.0).sum(axis=-1), (LEAD,))  # -inf · 0 is none of it
    loss = (t.noisy(normalisers) - t.noisy(picked))[..., 0]

    def vjp(g: Array) -> Sequence[Array]:
        # e^(z − lse) carries the rounding of a large lse
        p = t.either(lambda: softmax_from(t, z.value, lse), lambda: t.noisy(e) / t.noisy(s))
        return (t.noisy(t.noisy(p) - onehot) * t.noisy(g)[..., None, None] / n,)

    return t.emit(loss, (z,), vjp)


@meaning("SoftmaxCrossEntropy")
def softmax_cross_entropy(t: Tape, op: Any, z: Var, labels: Var) -> Var:
    """A node has its labels as an operand."""
    return softmax_loss(t, z, labels=labels.value[0])
