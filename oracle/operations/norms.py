"""Normalisation over a batch, and over features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from oracle.operations.drawn import Draw, Drawn
from oracle.operations.operation import operation, unusual
from oracle.operations.shapes import reshape
from oracle.operations.tape import LEAD, Array, Tape, Var, constant, expand_rows, mean_of, require, summed


def normalised(min_rows: int, any_rank: bool = False) -> Callable[[Draw], Drawn]:
    """Rows, weight, bias, and eps; of ``any_rank``, now and then a vector, or several batches of rows."""

    def drawn(d: Draw) -> Drawn:
        n, k = d.whole(min_rows, 6), d.whole(1, 6)
        lead: tuple[int, ...] = (n,)
        if any_rank and d.maybe():
            lead = d.of(((), (2, n), (n, 3), (2, 1, n)))
        return [(*lead, k), (k,), (k,)], {"eps": d.of((1e-5, 1e-3, 1.0))}

    return drawn


def _norm_backward(t: Tape, g: Array, xh: Array, inv: Array, axis: int) -> Array:
    """dx of (x − mean)·inv from the adjoint of the normalised value, up to the final scale."""

    def mean_first() -> Array:
        inner = t.noisy(g) - t.noisy(mean_of(t, t.noisy(g), (axis,)))
        return t.noisy(inner) - t.noisy(t.noisy(xh) * t.noisy(mean_of(t, t.noisy(g) * t.noisy(xh), (axis,))))

    def mean_last() -> Array:
        inner: Array = t.noisy(g) - t.noisy(xh) * mean_of(t, t.noisy(g) * t.noisy(xh), (axis,))
        return inner - mean_of(t, inner, (axis,))

    dx: Array = t.noisy(t.either(mean_first, mean_last)) * t.noisy(inv)
    return dx


def _normalised(t: Tape, x: Var, axis: int, eps: float) -> tuple[Array, Array, Array, Array]:
    """mean, biased variance, 1/√(var + eps) and the normalised value."""
    if x.value.shape[axis] == 1:
        # the mean of a single number is that number, in every order; only x·inv − mean·inv rounds, see below
        inv = 1 / np.sqrt(constant(t, x, eps))
        return x.value, 0 * x.value, inv, _normalised_again(t, x, x.value, inv)
    mean = mean_of(t, t.noisy(x.value), (axis,))
    centred = t.noisy(x.value) - t.noisy(mean)
    var = t.variance(x.value, centred, mean, (axis,))
    inv = 1 / np.sqrt(t.noisy(var) + eps)
    return mean, var, inv, t.noisy(centred) * t.noisy(inv)


def _normalised_again(t: Tape, x: Var, mean: Array, inv: Array, saved: Array | None = None) -> Array:
    """The normalised value for the backward pass, as x·inv − mean·inv.

    torch's fused kernels compute it anew in this way, others save (x − mean)·inv; far from 0 the two differ by the rounding
    of a large mean. That shows where the exact sum is 0: in the weight of a norm whose output is normalised again.
    """
    if mean is x.value:
        again: Array = t.noisy(x.value * inv) - x.value * inv
        return again

    def anew() -> Array:
        xh: Array = t.noisy(t.noisy(x.value) * t.noisy(inv)) - t.noisy(t.noisy(mean) * t.noisy(inv))
        return xh

    return anew() if saved is None else t.either(anew, lambda: saved)


@operation(
    needle=lambda n, x, w, b, eps: n.ops.batch_norm(x, w, b, **unusual(eps=(eps, 1e-5))),
    torch=lambda t, x, w, b, eps: t.nn.functional.batch_norm(x, None, None, w, b, training=True, eps=eps),
    drawn=normalised(min_rows=2),
    node="BatchNorm",
    attributes=lambda op, *xs: {"eps": float(op.eps)},
    special_in=lambda given: (0, 2),  # which of nan and infinity an infinite weight makes depends on the formula
    ordinary=True,
)
def batch_norm(t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5) -> Var:
    """Training-mode normalisation over the batch axis: (n, d), (d,), (d,) -> (n, d)."""
    require(x.shape[:1] > (1,), f"batch_norm: torch refuses fewer than two rows, and x has the shape {x.shape}")
    return batch_norm_and_statistics(t, x, weight, bias, eps=eps)[0]


def _check_parameters(x: Var, weight: Var, bias: Var) -> None:
    own = x.shape[-1:]
    require(weight.shape == bias.shape == own, f"weight {weight.shape} and bias {bias.shape} must have the shape {own}")


def batch_norm_and_statistics(
    t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5
) -> tuple[Var, Array, Array]:
    """`batch_norm`, and the batch's mean and biased variance, (replicas, steps, d) each, that running statistics take."""
    require(len(x.shape) == 2 and x.shape[0] > 0, f"batch_norm: rows are needed, but x has the shape {x.shape}")
    _check_parameters(x, weight, bias)
    mean, var, inv, xh = _normalised(t, x, LEAD, eps)
    w, b = weight.value[:, :, None], bias.value[:, :, None]
    y = t.noisy(t.noisy(xh) * t.noisy(expand_rows(w, x.shape))) + t.noisy(expand_rows(b, x.shape))

    def vjp(g: Array) -> Sequence[Array]:
        again = _normalised_again(t, x, mean, inv, xh)
        dw = summed(t, t.noisy(g) * t.noisy(again), (LEAD,))
        db = summed(t, t.noisy(g), (LEAD,))
        # the scale 1/√(var + eps)·weight is one factor per column: it comes last and is applied to the whole column
        return t.noisy(_norm_backward(t, g, again, inv, LEAD)) * t.noisy(w), dw, db

    return t.emit(y, (x, weight, bias), vjp), mean[:, :, 0], var[:, :, 0]


def batch_norm_eval(t: Tape, x: Var, weight: Var, bias: Var, mean: Var, var: Var, *, eps: float = 1e-5) -> Var:
    """Evaluation-mode normalisation with the running statistics: (n, d), four of (d,) -> (n, d)."""
    w, b = (expand_rows(v.value[:, :, None], x.shape) for v in (weight, bias))
    inv = t.coarse(1 / np.sqrt(t.noisy(var.value[:, :, None]) + eps), var)  # of the statistics alone: in their dtype
    xh = t.noisy(t.noisy(x.value) - t.noisy(expand_rows(mean.value[:, :, None], x.shape))) * t.noisy(inv)
    y = t.noisy(t.noisy(xh) * t.noisy(w)) + t.noisy(b)

    def vjp(g: Array) -> Sequence[Array | None]:
        dw = summed(t, t.noisy(g) * t.noisy(xh), (LEAD,))
        return t.noisy(t.noisy(g) * t.noisy(w)) * t.noisy(inv), dw, summed(t, t.noisy(g), (LEAD,)), None, None

    return t.emit(y, (x, weight, bias, mean, var), vjp)


@operation(
    needle=lambda n, x, w, b, eps: n.ops.layer_norm(x, w, b, **unusual(eps=(eps, 1e-5))),
    torch=lambda t, x, w, b, eps: t.nn.functional.layer_norm(x, (x.shape[-1],), w, b, eps),
    drawn=normalised(min_rows=1, any_rank=True),
    node="LayerNorm",
    attributes=lambda op, *xs: {"eps": float(op.eps)},
    special_in=lambda given: (0, 2),  # which of nan and infinity an infinite weight makes depends on the formula
    ordinary=True,
)
def layer_norm(t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5) -> Var:
    """Normalisation over the feature axis: (…, d), (d,), (d,) -> (…, d)."""
    require(len(x.shape) > 0 and x.shape[-1] > 0, f"layer_norm: features are needed, but x has the shape {x.shape}")
    _check_parameters(x, weight, bias)
    if len(x.shape) != 2:  # the rows of a matrix
        rows = reshape(t, x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))
        return reshape(t, layer_norm(t, rows, weight, bias, eps=eps), shape=x.shape)
    mean, _, inv, xh = _normalised(t, x, LEAD + 1, eps)
    w, b = (expand_rows(v.value[:, :, None], x.shape) for v in (weight, bias))
    y = t.noisy(t.noisy(xh) * t.noisy(w)) + t.noisy(b)

    def vjp(g: Array) -> Sequence[Array]:
        again = _normalised_again(t, x, mean, inv, xh)
        dx = _norm_backward(t, t.noisy(t.noisy(g) * t.noisy(w)), again, inv, LEAD + 1)
        return dx, summed(t, t.noisy(g) * t.noisy(again), (LEAD,)), summed(t, t.noisy(g), (LEAD,))

    return t.emit(y, (x, weight, bias), vjp)
