"""Rule OP: every node of needle's tape, judged in float64 from needle's own inputs and its own adjoint. NumPy alone.

Rules G and L look at what a user sees. This one looks at the graph itself: the value of every node, and what each
passes back. As inputs and adjoints are needle's own, nothing that went wrong elsewhere can hide or imitate a fault
here, and the first bad node is the guilty operator. A wrong normalisation in a first layer, where no gradient arrives
at a layer in front, is visible to this rule alone.

The bounds are first-order error bounds with every sum taken at its worst (k summands: k·u), so that any order of
summation is right; the limit is 1. The definitions are written here from the mathematics, not from needle, and are
found by the name of the op's class, as the course names it. Only the course's API is used: ``op``, ``inputs``,
``cached_data``, ``grad``, ``gradient_as_tuple``. A node whose class or attributes are unknown is passed over and
counted; a needle without a tape gives no nodes, and the other rules stand alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.definitions import TINY, U

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Bounded = tuple[Array, Array]  # a float64 value, and how far a correct float32 program may be from it
Parts = tuple[Bounded | None, ...]  # one per element of a TensorTuple; one for a Tensor; None is zero
Vjp = Callable[[Array, Sequence[bool]], "Sequence[Bounded | Parts | None]"]
Rule = Callable[..., "tuple[Any, Any, Vjp]"]  # (op, *operands) -> value, bound, vjp

_BROADCASTING = ("EWiseAdd", "EWiseMul", "EWiseDiv", "EWisePow", "BroadcastTo", "MatMul")
HUGE = 1e30  # beyond it a correct float32 program may overflow on the way
TRANSCENDENTAL = 8 * U  # NumPy's vector loops for exp, log and tanh err by up to 4 ulp


# -- the definitions --------------------------------------------------------------------------------------------------


def _reduced(c: Array, e: Array, shape: Shape) -> Bounded:
    """A contribution summed over what broadcasting had expanded."""
    if c.shape == shape:
        return c, e
    lead = c.ndim - len(shape)
    axes = tuple(i for i in range(c.ndim) if i < lead or (shape[i - lead] == 1 and c.shape[i] != 1))
    return _sum(c, e, axes, shape)


def _sum(c: Array, e: Array, axes: tuple[int, ...], shape: Shape) -> Bounded:
    k = math.prod(c.shape[a] for a in axes)
    bound = e.sum(axes) + (k + 2) * U * np.abs(c).sum(axes)
    return c.sum(axes).reshape(shape), bound.reshape(shape)


def _scaled(g: Array, slope: Array | float, error: Array | float) -> Bounded:
    """g · slope, where the slope is known up to an absolute error; one that underflows may be lost before g scales it up."""
    c = g * slope
    return c, 2 * U * np.abs(c) + np.abs(g) * (error + TINY)


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(rank))
    return tuple(int(a) % rank for a in (axes if isinstance(axes, tuple | list) else (axes,)))


def _kept(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _moved(y: Array, back: Callable[[Array], Array]) -> tuple[Array, Array, Vjp]:
    """An op that only moves elements."""
    return y, np.zeros(y.shape), lambda g, needs: [(back(g), 2 * U * np.abs(back(g)))]


def _elementwise(y: Array, error: Array, slope: Array, slope_error: Array) -> tuple[Array, Array, Vjp]:
    return y, error, lambda g, needs: [_scaled(g, slope, slope_error)]


def _ewise_add(op: Any, a: Array, b: Array) -> Any:
    y = a + b
    return y, 2 * U * np.abs(y), lambda g, needs: [
        _reduced(g, 0 * g, x.shape) if n else None for x, n in zip((a, b), needs, strict=True)
    ]  # fmt: skip


def _ewise_mul(op: Any, a: Array, b: Array) -> Any:
    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        return [_reduced(*_scaled(g, o, 0.0), x.shape) if n else None
                for x, o, n in zip((a, b), (b, a), needs, strict=True)]  # fmt: skip

    y = a * b
    return y, 2 * U * np.abs(y), vjp


def _ewise_div(op: Any, a: Array, b: Array) -> Any:
    y = a / b

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        slope = y / b
        return (
            _reduced(*_scaled(g, 1 / b, U / np.abs(b)), a.shape) if needs[0] else None,
            _reduced(*_scaled(g, -slope, 4 * U * np.abs(slope)), b.shape) if needs[1] else None,
        )

    return y, 2 * U * np.abs(y), vjp


def _ewise_pow(op: Any, a: Array, b: Array) -> Any:
    y = a**b

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        log = np.log(np.abs(a))
        da = db = None
        if needs[0]:
            slope = np.where(b == 0, 0.0, b * a ** (b - 1))
            # b − 1 is rounded before it becomes an exponent
            da = _reduced(*_scaled(g, slope, np.abs(slope) * U * (12 + np.abs((b - 1) * log))), a.shape)
        if needs[1]:
            slope = np.where((a == 0) & (b >= 0), 0.0, y * log)
            db = _reduced(*_scaled(g, slope, 20 * U * np.abs(slope)), b.shape)
        return da, db

    return y, TRANSCENDENTAL * np.abs(y), vjp


def _add_scalar(op: Any, a: Array) -> Any:
    y = a + op.scalar
    return _elementwise(y, 2 * U * (np.abs(y) + abs(op.scalar)), np.ones(a.shape), np.zeros(a.shape))


def _mul_scalar(op: Any, a: Array) -> Any:
    y, size = a * op.scalar, np.full(a.shape, float(abs(op.scalar)))
    return _elementwise(y, 3 * U * np.abs(y), np.full(a.shape, float(op.scalar)), 2 * U * size)


def _div_scalar(op: Any, a: Array) -> Any:
    y, slope = a / op.scalar, np.full(a.shape, 1.0 / op.scalar)
    return _elementwise(y, 3 * U * np.abs(y), slope, 2 * U * np.abs(slope))


def _power_scalar(op: Any, a: Array) -> Any:
    n = float(op.scalar)
    y = a**n
    slope = np.zeros(a.shape) if n == 0 else n * a ** (n - 1)
    # an exponent that float32 does not hold is rounded first
    log = np.where(a == 0, 0.0, np.abs(np.log(np.abs(a))))
    error = U * np.abs(y) * (8 + abs(n) * log)
    return _elementwise(y, error, slope, U * np.abs(slope) * (16 + (abs(n) + 1) * log))


def _negate(op: Any, a: Array) -> Any:
    return _elementwise(-a, np.zeros(a.shape), np.full(a.shape, -1.0), np.zeros(a.shape))


def _log(op: Any, a: Array) -> Any:
    y = np.log(a)
    return _elementwise(y, TRANSCENDENTAL * np.abs(y), 1 / a, 2 * U / np.abs(a))


def _exp(op: Any, a: Array) -> Any:
    y = np.exp(a)
    return _elementwise(y, TRANSCENDENTAL * y, y, (TRANSCENDENTAL + 2 * U) * y)


def _relu(op: Any, a: Array) -> Any:
    on = (a > 0).astype(np.float64)
    return _elementwise(a * on, np.zeros(a.shape), on, np.zeros(a.shape))


def _tanh(op: Any, a: Array) -> Any:
    y = np.tanh(a)
    # the derivative is taken from the rounded output: 1 − y²
    return _elementwise(y, TRANSCENDENTAL * np.abs(y), 1 - y * y, U * (4 + 20 * y * y))


def _sigmoid(op: Any, a: Array) -> Any:
    e = np.exp(-np.abs(a))
    y = np.where(a >= 0, 1.0, e) / (1 + e)
    # y(1 − y) from the rounded output: where y is near 1, what is left of 1 − y has the error of y
    return _elementwise(y, 12 * U * y, y * (1 - y), U * y * (16 + 16 * y))


def _cast(op: Any, a: Array) -> Any:
    y = a.astype(op.dtype).astype(np.float64)
    return _moved(y, lambda g: g)


def _transpose(op: Any, a: Array) -> Any:
    first, second = (-1, -2) if op.axes is None else op.axes
    return _moved(np.swapaxes(a, first, second), lambda g: np.swapaxes(g, first, second))


def _reshape(op: Any, a: Array) -> Any:
    return _moved(a.reshape(op.shape), lambda g: g.reshape(a.shape))


def _broadcast_to(op: Any, a: Array) -> Any:
    y = np.broadcast_to(a, op.shape)
    return y, np.zeros(y.shape), lambda g, needs: [_reduced(g, 0 * g, a.shape)]


def _get_item(op: Any, a: Array) -> Any:
    y = a[op.index]

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        c, e = np.zeros(a.shape), np.zeros(a.shape)
        np.add.at(c, op.index, g)
        np.add.at(e, op.index, (2 + g.size) * U * np.abs(g))
        return [(c, e)]

    return np.asarray(y), np.zeros(np.shape(y)), vjp


def _put_item(op: Any, a: Array) -> Any:
    y, e = np.zeros(op.shape), np.zeros(op.shape)
    np.add.at(y, op.index, a)
    np.add.at(e, op.index, (2 + a.size) * U * np.abs(a))
    return y, e, lambda g, needs: [(g[op.index], np.zeros(a.shape))]


def _flip(op: Any, a: Array) -> Any:
    axes = _axes(op.axes, a.ndim)
    return _moved(np.flip(a, axes), lambda g: np.flip(g, axes))


def _dilated(op: Any, a: Array) -> tuple[tuple[slice, ...], Shape]:
    axes = [int(x) % a.ndim for x in _iterable(op.axes) if -a.ndim <= x < a.ndim]
    places = tuple(slice(None, None, op.dilation + 1 if i in axes else None) for i in range(a.ndim))
    return places, tuple(n * (op.dilation + 1) if i in axes else n for i, n in enumerate(a.shape))


def _iterable(axes: Any) -> Iterable[int]:
    return axes if isinstance(axes, tuple | list) else (axes,)


def _dilate(op: Any, a: Array) -> Any:
    places, shape = _dilated(op, a)
    y = np.zeros(shape)
    y[places] = a
    return _moved(y, lambda g: g[places])


def _undilate(op: Any, a: Array) -> Any:
    places, _ = _dilated(op, a)

    def back(g: Array) -> Array:
        out = np.zeros(a.shape)
        out[places] = g
        return out

    return _moved(a[places], back)


def _summation(op: Any, a: Array) -> Any:
    axes = _axes(op.axes, a.ndim)
    shape = tuple(n for i, n in enumerate(a.shape) if i not in axes)
    y, e = _sum(a, np.zeros(a.shape), axes, shape)
    return y, e, lambda g, needs: [
        (np.broadcast_to(g.reshape(_kept(a.shape, axes)), a.shape),
         np.broadcast_to(2 * U * np.abs(g).reshape(_kept(a.shape, axes)), a.shape))
    ]  # fmt: skip


def _max(op: Any, a: Array) -> Any:
    axes = _axes(op.axes, a.ndim)
    top = a.max(axes, keepdims=True)
    hit = (a == top).astype(np.float64)
    share = hit / hit.sum(axes, keepdims=True)
    y = top.reshape([n for i, n in enumerate(a.shape) if i not in axes])
    return y, np.zeros(y.shape), lambda g, needs: [_scaled(g.reshape(top.shape), share, 2 * U * share)]


def _matmul(op: Any, a: Array, b: Array) -> Any:
    y = a @ b
    size = np.abs(a) @ np.abs(b)

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        def one(left: Array, right: Array, shape: Shape) -> Bounded:
            k = left.shape[-1] + 8
            return _reduced(left @ right, k * U * (np.abs(left) @ np.abs(right)), shape)

        return (
            one(g, np.swapaxes(b, -1, -2), a.shape) if needs[0] else None,
            one(np.swapaxes(a, -1, -2), g, b.shape) if needs[1] else None,
        )

    return y, (a.shape[-1] + 2) * U * size, vjp


def _linear(op: Any, x: Array, w: Array, b: Array | None = None) -> Any:
    rows = x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
    y = x @ w
    error = (x.shape[-1] + 4) * U * (np.abs(x) @ np.abs(w))
    if b is not None:
        flat = b.reshape(-1)
        y = y + flat
        error = error + 4 * U * np.abs(flat)

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        g = g.reshape((len(rows), w.shape[1]))
        size, k = np.abs(g), len(rows) + 8
        made: list[Any] = [None] * (2 if b is None else 3)
        if needs[0]:
            made[0] = (g @ w.T).reshape(x.shape), ((w.shape[1] + 8) * U * (size @ np.abs(w.T))).reshape(x.shape)
        if needs[1]:
            made[1] = rows.T @ g, k * U * (np.abs(rows.T) @ size)
        if b is not None and needs[2]:
            made[2] = g.sum(0).reshape(b.shape), (k * U * size.sum(0)).reshape(b.shape)
        return made

    return y, error, vjp


def _conv(op: Any, x: Array, w: Array) -> Any:
    (n, h, wd, c), (kh, kw, _, o), p = x.shape, w.shape, op.padding
    oh, ow = (h + 2 * p - kh) // op.stride + 1, (wd + 2 * p - kw) // op.stride + 1
    rows = np.arange(oh)[:, None, None, None] * op.stride + np.arange(kh)[None, None, :, None]
    cols = np.arange(ow)[None, :, None, None] * op.stride + np.arange(kw)[None, None, None, :]
    flat = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))[:, rows, cols].reshape(n * oh * ow, kh * kw * c)
    kernel = w.reshape(kh * kw * c, o)
    y, size = flat @ kernel, np.abs(flat) @ np.abs(kernel)

    def gathered(patches: Array) -> Array:
        padded = np.zeros((n, h + 2 * p, wd + 2 * p, c))
        places: Any = (slice(None), rows, cols)
        np.add.at(padded, places, patches.reshape(n, oh, ow, kh, kw, c))
        return padded[:, p : p + h, p : p + wd]

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        g = g.reshape(-1, o)
        dx = dw = None
        if needs[0]:
            # every pixel collects from at most kh·kw windows of o channels
            error = (kh * kw * o + 8) * U * gathered(np.abs(g) @ np.abs(kernel.T))
            dx = gathered(g @ kernel.T), error
        if needs[1]:
            error = (len(flat) + 8) * U * (np.abs(flat.T) @ np.abs(g))
            dw = (flat.T @ g).reshape(w.shape), error.reshape(w.shape)
        return dx, dw

    shape = (n, oh, ow, o)
    return y.reshape(shape), ((flat.shape[1] + 4) * U * size).reshape(shape), vjp


def _make_tuple(op: Any, *xs: Array) -> Any:
    def vjp(g: tuple[Array, ...], needs: Sequence[bool]) -> Any:
        return [(e, 0 * e) if n else None for e, n in zip(g, needs, strict=True)]

    return xs, tuple(np.zeros(x.shape) for x in xs), vjp


def _tuple_get_item(op: Any, xs: tuple[Array, ...]) -> Any:
    y = xs[op.index]
    return y, np.zeros(y.shape), lambda g, needs: [
        tuple((g, 0 * g) if i == op.index else None for i in range(len(xs)))
    ]  # fmt: skip


def _fused_add_scalars(op: Any, a: Array) -> Any:
    cs = (op.c0, op.c1)
    ys = tuple(a + c for c in cs)
    return ys, tuple(2 * U * (np.abs(y) + abs(c)) for y, c in zip(ys, cs, strict=True)), lambda g, needs: [
        (g[0] + g[1], 4 * U * (np.abs(g[0]) + np.abs(g[1])))
    ]  # fmt: skip


def _stack(op: Any, xs: tuple[Array, ...]) -> Any:
    y = np.stack(xs, op.axis)

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        parts = np.moveaxis(g, op.axis, 0)
        return [tuple((part, 0 * part) for part in parts)]

    return y, np.zeros(y.shape), vjp


def _split(op: Any, a: Array) -> Any:
    ys = tuple(np.moveaxis(a, op.axis, 0))

    def vjp(g: tuple[Array, ...], needs: Sequence[bool]) -> Any:
        c = np.stack(g, op.axis) if g else np.zeros(a.shape)
        return [(c, 0 * c)]

    return ys, tuple(np.zeros(y.shape) for y in ys), vjp


def _exponentials(a: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array, Array, Array]:
    """Shift, a − max, softmax, ln Σ e^(a−max), and the bound of that logarithm before it is rounded."""
    top = a.max(axes, keepdims=True)
    shifted = a - top
    e = np.exp(shifted)
    total = e.sum(axes, keepdims=True)
    p, log = e / total, np.log(total)
    k = math.prod(a.shape[i] for i in axes)
    # the rounding of a − max is multiplied by what it contributes to the sum
    error = U * (k + 12 + 2 * (p * np.abs(shifted)).sum(axes, keepdims=True) + 8 * log)
    return top, shifted, p, log, error


def _logsumexp(op: Any, a: Array) -> Any:
    axes = _axes(op.axes, a.ndim)
    top, shifted, p, log, error = _exponentials(a, axes)
    y = log + top
    error = error + 2 * U * (np.abs(y) + np.abs(top))
    shape = tuple(n for i, n in enumerate(a.shape) if i not in axes)

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        # e^(a − lse) from a rounded lse, or e^(a − max)/Σ: both are in use
        relative = np.expm1(np.minimum(U * (16 + 4 * np.abs(shifted)) + 2 * error, 50))
        return [_scaled(g.reshape(top.shape), p, p * relative)]

    return y.reshape(shape), error.reshape(shape), vjp


def _logsoftmax(op: Any, a: Array) -> Any:
    top, shifted, p, log, error = _exponentials(a, (1,))
    y = shifted - log
    error = error + 2 * U * (np.abs(shifted) + np.abs(y) + np.abs(top))

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        total, size = g.sum(1, keepdims=True), np.abs(g).sum(1, keepdims=True)
        relative = np.expm1(np.minimum(U * (16 + 4 * np.abs(shifted)) + 2 * error, 50))
        c = g - p * total
        return [(c, 2 * U * (np.abs(g) + np.abs(c)) + p * size * ((a.shape[1] + 8) * U + relative))]

    return y, error, vjp


def _softmax_cross_entropy(op: Any, z: Array, labels: Array) -> Any:
    n, k = z.shape
    _, shifted, p, log, error = _exponentials(z, (1,))
    onehot = (labels.reshape(-1, 1) == np.arange(k)).astype(np.float64)
    picked = (shifted * onehot).sum(1, keepdims=True)
    size = log + np.abs(picked)
    value = (log - picked).sum() / n
    bound = (error + 2 * U * np.abs(picked)).sum() / n + (n + 4) * U * size.sum() / n

    def vjp(g: Array, needs: Sequence[bool]) -> Any:
        relative = np.expm1(np.minimum(2 * U * (8 + np.abs(shifted)) + 2 * error, 50))
        unit = np.abs(g) / n
        return (p - onehot) * g / n, None, unit * (p * relative + 6 * U * (p + onehot))

    def paired(g: Array, needs: Sequence[bool]) -> Any:
        c, _, e = vjp(g, needs)
        return (c, e), None

    return np.asarray(value), np.asarray(bound), paired


def _normalised(x: Array, axis: int, eps: float) -> tuple[Array, Array, Array, Array]:
    """xh = (x − mean)/√(var + eps), its bound, 1/√(var + eps), its bound: from centred values, biased variance."""
    n = x.shape[axis]
    mean = x.mean(axis, keepdims=True)
    e_mean = (n + 4) * U * np.abs(x).mean(axis, keepdims=True)
    centred = x - mean
    size = np.abs(centred)
    e_centred = e_mean + U * size
    var = (centred * centred).mean(axis, keepdims=True)
    # an error of the mean cancels from the variance to first order, for centred values sum to zero
    e_var = (n + 10) * U * var + e_mean * e_mean + 2 * e_mean * U * size.mean(axis, keepdims=True)
    inv = 1 / np.sqrt(var + eps)
    lowest = np.maximum(var - e_var, 0) + eps * (1 - 2 * U)
    e_inv = 1 / np.sqrt(lowest) - inv + 6 * U * inv
    e_xh = e_centred * (inv + e_inv) + size * e_inv + 4 * U * size * inv
    return centred * inv, e_xh, inv, e_inv


def _norm_back(g: Array, e_g: Array, xh: Array, e_xh: Array, axis: int) -> Bounded:
    """g − xh·mean(g·xh) − mean of that, in any order."""
    n, size, reach = xh.shape[axis], np.abs(g), np.abs(xh)
    q = (g * xh).mean(axis, keepdims=True)
    e_q = ((size + e_g) * e_xh + e_g * reach + (n + 8) * U * size * reach).mean(axis, keepdims=True)
    t = g - xh * q
    # the products of two errors count: in a column that is constant but for rounding, xh and q are nothing else
    e_t = e_g + 4 * U * (size + reach * np.abs(q)) + e_xh * (np.abs(q) + e_q) + reach * e_q
    mean = t.mean(axis, keepdims=True)
    e_mean = (e_t + (n + 8) * U * (size + reach * np.abs(q))).mean(axis, keepdims=True)
    return t - mean, e_t + e_mean + 2 * U * (np.abs(t) + np.abs(mean))


def _norm(axis: int) -> Rule:
    def rule(op: Any, x: Array, w: Array, b: Array) -> Any:
        xh, e_xh, inv, e_inv = _normalised(x, axis, float(op.eps))
        y = xh * w + b
        error = e_xh * np.abs(w) + 4 * U * (np.abs(xh * w) + np.abs(b))
        over = tuple(range(x.ndim - 1))

        def vjp(g: Array, needs: Sequence[bool]) -> Any:
            size = np.abs(g)
            k = math.prod(x.shape[:-1]) + 8
            dw = (g * xh).sum(over), (size * e_xh + k * U * size * np.abs(xh)).sum(over)
            db = g.sum(over), k * U * size.sum(over)
            if axis == 0:
                t, e_t = _norm_back(g, 0 * g, xh, e_xh, axis)
                scale, e_scale = inv * w, e_inv * np.abs(w) + 4 * U * np.abs(inv * w)
            else:
                t, e_t = _norm_back(g * w, 2 * U * size * np.abs(w), xh, e_xh, axis)
                scale, e_scale = inv, e_inv + 2 * U * inv
            dx = t * scale, e_t * (np.abs(scale) + e_scale) + np.abs(t) * e_scale
            return [c if n else None for c, n in zip((dx, dw, db), needs, strict=True)]

        return y, error, vjp

    return rule


RULES: Mapping[str, Rule] = {
    "EWiseAdd": _ewise_add,
    "EWiseMul": _ewise_mul,
    "EWiseDiv": _ewise_div,
    "EWisePow": _ewise_pow,
    "AddScalar": _add_scalar,
    "MulScalar": _mul_scalar,
    "DivScalar": _div_scalar,
    "PowerScalar": _power_scalar,
    "Negate": _negate,
    "Log": _log,
    "Exp": _exp,
    "ReLU": _relu,
    "Tanh": _tanh,
    "Sigmoid": _sigmoid,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "BroadcastTo": _broadcast_to,
    "GetItem": _get_item,
    "PutItem": _put_item,
    "Flip": _flip,
    "Dilate": _dilate,
    "UnDilate": _undilate,
    "Summation": _summation,
    "Max": _max,
    "MatMul": _matmul,
    "Linear": _linear,
    "Conv": _conv,
    "MakeTensorTuple": _make_tuple,
    "TupleGetItem": _tuple_get_item,
    "FusedAddScalars": _fused_add_scalars,
    "Stack": _stack,
    "Split": _split,
    "LogSumExp": _logsumexp,
    "LogSoftmax": _logsoftmax,
    "SoftmaxCrossEntropy": _softmax_cross_entropy,
    "BatchNorm": _norm(0),
    "LayerNorm": _norm(-1),
}

# -- recording the tape -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node as it was before the backward pass, which frees it."""

    tensor: Any
    op: Any
    inputs: tuple[Any, ...]

    @property
    def kind(self) -> str:
        """Name of the op's class."""
        return type(self.op).__name__


def record(root: Any, *, retain: bool = True) -> list[Node]:
    """The nodes below root, oldest first, found through ``op`` and ``inputs``; each is asked to keep its gradient."""
    nodes: list[Node] = []
    seen = {id(root)}
    stack: list[tuple[Any, Any]] = [(root, None)]
    while stack:
        tensor, rest = stack.pop()
        if rest is None:
            op, inputs = getattr(tensor, "op", None), getattr(tensor, "inputs", None)
            if op is None or not inputs:
                continue
            rest = iter(tuple(inputs))
        for x in rest:
            if id(x) not in seen:
                seen.add(id(x))
                stack += [(tensor, rest), (x, None)]
                break
        else:
            nodes.append(Node(tensor, tensor.op, tuple(tensor.inputs)))
            if retain and getattr(tensor, "requires_grad", False) and hasattr(tensor, "retain_grad"):
                tensor.retain_grad()
    return nodes


# -- judging it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A node, or what arrives at a tensor, that is not what its definition says."""

    kind: str  # class of the op; of the first consumer for an accumulation
    direction: str  # "forward", "backward", "accumulation", "seed"
    node: int  # place in the tape, oldest first
    fault: str  # "value", "shape", "dtype", "missing"
    message: str
    operand: int | None = None
    index: tuple[int, ...] = ()
    ours: float | str | None = None
    truth: float | str | None = None
    dtype: str | None = None
    error: float | None = None
    allowed: float | None = None
    broadcast: bool = False  # what is wrong is the reduction to the shape of an operand that was broadcast
    words: str = ""  # what the numbers look like
    second: bool = False  # the backward pass ran on Tensors (create_graph)
    label: str = ""  # layer whose output the node is
    tape: int = 0  # number of the backward pass within the step

    @property
    def name(self) -> str:
        """Like ``BatchNorm backward, operand 0 (node 2)``."""
        of = "" if self.operand is None else f", operand {self.operand}"
        at = f"node {self.node}" + (f" of pass {self.tape}" if self.tape else "")
        what = self.direction if self.direction in ("accumulation", "seed") else f"{self.kind} {self.direction}"
        return f"{what}{of} ({at})"


@dataclass
class Findings:
    """What rule OP found on one or more tapes."""

    bad: list[Finding] = field(default_factory=list)
    nodes: int = 0
    unknown: int = 0  # nodes that could not be judged
    tensors: int = 0
    elements: int = 0
    largest: float = 0.0
    where: str = ""
    tapes: int = 0
    outputs: dict[str, int] = field(default_factory=dict)  # layer -> place of its output in the last tape

    def note(self, share: float, size: int, where: str) -> None:
        """Count one comparison."""
        self.tensors += 1
        self.elements += size
        if math.isfinite(share) and share > self.largest:
            self.largest, self.where = share, where


@dataclass
class _Arrival:
    """What should arrive at one tensor: the contributions of all its uses."""

    tensor: Any
    parts: list[tuple[Parts, int, int]] = field(default_factory=list)  # contribution, node, operand
    known: bool = True


def judge(
    nodes: Sequence[Node],
    seed: Any = None,
    *,
    backward: bool = True,
    labels: Mapping[int, str] | None = None,
    found: Findings | None = None,
    second: bool = False,
) -> Findings:
    """Judge a recorded tape after its backward pass. ``seed`` is the adjoint of the root (ones by default)."""
    found = Findings() if found is None else found
    if nodes:
        with np.errstate(all="ignore"):
            _Judge(nodes, found, labels or {}, second).run(seed, backward)
        found.tapes += 1
    return found


class _Judge:
    def __init__(self, nodes: Sequence[Node], found: Findings, labels: Mapping[int, str], second: bool) -> None:
        self.nodes, self.found, self.labels, self.second = nodes, found, labels, second
        self.wide: dict[int, Any] = {}
        self.vjps: dict[int, Vjp | None] = {}

    def run(self, seed: Any, backward: bool) -> None:
        for i, node in enumerate(self.nodes):
            self.vjps[i] = self._forward(i, node)
        self.found.nodes += len(self.nodes)
        if self.labels:
            self.found.outputs = {
                self.labels[id(n.tensor)]: i for i, n in enumerate(self.nodes) if id(n.tensor) in self.labels
            }
        if not backward:
            return
        arrivals: dict[int, _Arrival] = {}
        root = self.nodes[-1].tensor
        given = np.ones(np.shape(root.cached_data)) if seed is None else np.asarray(seed, dtype=np.float64)
        arrivals[id(root)] = _Arrival(root, [(((given, 0 * given),), len(self.nodes) - 1, -1)])
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            arrival = arrivals.pop(id(node.tensor), None)
            if arrival is None:
                continue
            adjoint = self._arrived(arrival)
            self._pass_on(i, node, adjoint, arrivals)
        for arrival in arrivals.values():
            self._arrived(arrival)

    def _values(self, tensor: Any) -> Any:
        """float64 of what a tensor holds."""
        wide = self.wide.get(id(tensor))
        if wide is None:
            data = tensor.cached_data
            wide = tuple(_wide(a) for a in data) if isinstance(data, tuple) else _wide(data)
            self.wide[id(tensor)] = wide
        return wide

    def _forward(self, i: int, node: Node) -> Vjp | None:
        rule = RULES.get(node.kind)
        if rule is None:
            self.found.unknown += 1
            return None
        try:
            value, bound, vjp = rule(node.op, *(self._values(x) for x in node.inputs))
        except (AttributeError, TypeError, ValueError, IndexError, KeyError):
            self.found.unknown += 1
            return None
        ours = _parts_of(node.tensor.cached_data)
        values, bounds = _parts_of(value), _parts_of(bound)
        where = self.labels.get(id(node.tensor), "")
        if len(ours) != len(values):
            message = f"{node.kind} gives {len(ours)} tensors, not {len(values)}"
            self._bad(Finding(node.kind, "forward", i, "shape", message, second=self.second, label=where))
            return None
        dtype = _dtype(node)
        for mine, right, allowed in zip(ours, values, bounds, strict=True):
            wrong = self._compare(mine, right, allowed, f"{node.kind} forward")
            if wrong is None and dtype is not None and mine.dtype != dtype:
                wrong = {"fault": "dtype", "ours": str(mine.dtype), "truth": str(dtype),
                         "message": f"has dtype {mine.dtype}, not {dtype}"}  # fmt: skip
            if wrong is not None:
                text = f"the value of {node.kind} {wrong.pop('message')}"
                self._bad(Finding(node.kind, "forward", i, message=text, tape=self.found.tapes, label=where, **wrong))
                break
        return vjp

    def _pass_on(self, i: int, node: Node, adjoint: Any, arrivals: dict[int, _Arrival]) -> None:
        """What a node owes its inputs, from its own adjoint as needle has it."""
        needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
        made: Sequence[Any] | None = None
        vjp = self.vjps[i]
        if vjp is not None and adjoint is not None:
            try:
                made = vjp(adjoint, needs)
            except (AttributeError, TypeError, ValueError, IndexError, KeyError):
                self.found.unknown += 1
        for j, (x, need) in enumerate(zip(node.inputs, needs, strict=True)):
            if not need:
                continue
            arrival = arrivals.setdefault(id(x), _Arrival(x))
            if made is None:
                arrival.known = False
            elif made[j] is not None:
                c = made[j]
                # a pair of arrays is the contribution to a Tensor, a tuple of pairs that to a TensorTuple
                parts = c if isinstance(x.cached_data, tuple) else (c,)
                arrival.parts.append((parts, i, j))

    def _arrived(self, arrival: _Arrival) -> Any:
        """Compare an adjoint with the sum of what should have arrived; returns needle's own adjoint, float64."""
        tensor = arrival.tensor
        grad = getattr(tensor, "grad", None)
        data = _parts_of(tensor.cached_data)
        raw = None if grad is None else _parts_of(getattr(grad, "cached_data", grad))
        if raw is None or len(raw) != len(data):
            if arrival.known and (self._owed(arrival) if isinstance(tensor.cached_data, tuple) else arrival.parts):
                self._blame(arrival, {"fault": "missing", "message": "is missing", "truth": "a gradient"})
            return None
        fits = True
        for place, (mine, like) in enumerate(zip(raw, data, strict=True)):
            wrong: dict[str, Any] | None = None
            if mine.shape != like.shape:
                fits = False
                message = f"has shape {mine.shape}, not {like.shape}"
                wrong = {"fault": "shape", "message": message, "ours": str(mine.shape), "truth": str(like.shape)}
            elif arrival.known:
                right, allowed = self._total(arrival, place, like.shape)
                wrong = self._compare(mine, right, allowed, "vjp")
                if wrong is None and like.dtype.kind == "f" and mine.dtype != like.dtype:
                    wrong = {"fault": "dtype", "message": f"has dtype {mine.dtype}, not {like.dtype}",
                             "ours": str(mine.dtype), "truth": str(like.dtype)}  # fmt: skip
            if wrong is not None:
                self._blame(arrival, wrong, place)
                break
        if not fits:
            return None
        wide = tuple(_wide(a) for a in raw)
        return wide if isinstance(tensor.cached_data, tuple) else wide[0]

    def _total(self, arrival: _Arrival, place: int, shape: Shape) -> Bounded:
        """The sum of all contributions, and its bound."""
        given = [p[place] for p, _, _ in arrival.parts if p[place] is not None]
        if not given:
            return np.zeros(shape), np.zeros(shape)
        if len(given) == 1:
            return given[0]  # type: ignore[return-value]
        value = sum(c for c, _ in given)  # type: ignore[misc]
        bound = sum(e for _, e in given) + len(given) * U * sum(np.abs(c) for c, _ in given)  # type: ignore[misc]
        return np.asarray(value), np.asarray(bound)

    def _owed(self, arrival: _Arrival) -> bool:
        return any(
            bool((np.abs(p[0]) > p[1] + TINY).any()) for parts, _, _ in arrival.parts for p in parts if p is not None
        )

    def _compare(self, ours: Array, value: Array, bound: Array, where: str) -> dict[str, Any] | None:
        if ours.shape != value.shape:
            return {"fault": "shape", "message": f"has shape {ours.shape}, not {value.shape}",
                    "ours": str(ours.shape), "truth": str(value.shape)}  # fmt: skip
        if ours.dtype.kind not in "fiub":  # None, for one
            return {"fault": "dtype", "message": f"has dtype {ours.dtype}: it is no number", "ours": str(ours.dtype),
                    "truth": "a number"}  # fmt: skip
        if not value.size:
            return None
        allowed = bound + TINY
        error = np.abs(ours - value)
        share = error / allowed
        top = float(share.max())
        if not top <= 1:
            # what cannot be judged is let pass element by element: no number, or too large for float32 on the way
            tame = (np.abs(value) < HUGE) & (allowed < HUGE)
            share = np.where(tame, np.where(np.isnan(share), np.inf, share), 0.0)
            top = float(share.max())
        self.found.note(top, value.size, where)
        if top <= 1:
            return None
        at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), share.shape))
        return {
            "fault": "value", "index": at, "ours": float(ours[at]), "truth": float(value[at]), "dtype": str(ours.dtype),
            "error": float(error[at]), "allowed": float(allowed[at]),
            "message": f"is off by {float(error[at]):.3g}, allowed {float(allowed[at]):.3g}",
        }  # fmt: skip

    # -- whose fault is a bad adjoint? --------------------------------------------------------------------------------

    def _blame(self, arrival: _Arrival, wrong: dict[str, Any], place: int = 0) -> None:
        """The consumer that gives a bad contribution when it is run alone; where all are right, their addition."""
        uses = [(i, j) for _, i, j in arrival.parts if j >= 0]
        message = wrong.pop("message")
        where = self.labels.get(id(arrival.tensor), "")
        guilty = next(((i, j) for i, j in uses if self._alone_is_right(self.nodes[i], j) is False), None)
        about: dict[str, Any] = {"second": self.second, "tape": self.found.tapes, **wrong}
        if guilty is not None:
            i, j = guilty
            node = self.nodes[i]
            text = f"what {node.kind} passes back to its operand {j} {message}"
            self._bad(
                Finding(node.kind, "backward", i, message=text, operand=j, broadcast=self._reduction_is_wrong(node, j),
                        label=self.labels.get(id(node.tensor), ""), **about)
            )  # fmt: skip
            return
        i, operand = uses[0] if uses else (len(self.nodes) - 1, None)
        if not uses:
            text = f"the adjoint that backward starts from {message}"
            self._bad(Finding(self.nodes[i].kind, "seed", i, message=text, label=where, **about))
            return
        words = self._addition(arrival, place) if wrong["fault"] == "value" else ""
        text = f"the adjoint of a tensor with {len(uses)} use{'s' * (len(uses) != 1)} {message}"
        finding = Finding(self.nodes[i].kind, "accumulation", i, message=text, operand=operand, words=words,
                          label=where, **about)  # fmt: skip
        self._bad(finding)

    def _alone_is_right(self, node: Node, j: int) -> bool | None:
        """Whether the op, on leaves of its own and with nothing around it, passes the right gradient to operand j.

        None where that cannot be found out.
        """
        op, rule = node.op, RULES.get(node.kind)
        g = getattr(node.tensor, "grad", None)
        if rule is None or g is None:
            return None
        wide = [self._values(x) for x in node.inputs]
        needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
        try:
            kind = type(node.tensor)
            if any(isinstance(x.cached_data, tuple) for x in (node.tensor, *node.inputs)):
                got = self._asked(node, j)
            else:
                leaves = [
                    kind.make_const(x.cached_data, requires_grad=n) for x, n in zip(node.inputs, needs, strict=True)
                ]
                out = op(*leaves)
                # by the walk that made what is judged: on arrays, or on Tensors
                out.backward(
                    kind.make_const(np.array(g.cached_data)), **({"create_graph": True} if self.second else {})
                )
                got = leaves[j].grad
            if got is None:
                # lost by the rule, or by the walk after it?
                return self._asked(node, j) is not None
            given = _parts_of(g.cached_data)
            adjoint: Any = (
                tuple(_wide(a) for a in given) if isinstance(node.tensor.cached_data, tuple) else _wide(given[0])
            )
            made = rule(op, *wide)[2](adjoint, needs)[j]
        except Exception:
            return None
        parts: Any = made if isinstance(node.inputs[j].cached_data, tuple) else (made,)
        quiet = _Judge(self.nodes, Findings(), {}, self.second)
        for mine, part in zip(_parts_of(getattr(got, "cached_data", got)), parts, strict=False):
            value, bound = (np.zeros(mine.shape),) * 2 if part is None else part
            if quiet._compare(mine, value, bound, "") is not None:
                return False
        return True

    def _asked(self, node: Node, j: int) -> Any:
        """The contribution that ``gradient_as_tuple`` gives; for tuples, which cannot be run alone."""
        tensor = node.tensor
        freed = tensor.op, tensor.inputs
        try:
            tensor.op, tensor.inputs = node.op, node.inputs
            grad = type(tensor).make_const(tensor.grad.cached_data)
            return node.op.gradient_as_tuple(grad, tensor)[j]
        finally:
            tensor.op, tensor.inputs = freed

    def _reduction_is_wrong(self, node: Node, j: int) -> bool:
        """Whether another op that broadcasts the same operand is wrong too: then it is the reduction that they share."""
        tensor, x = node.tensor, node.inputs[j]
        if node.kind not in _BROADCASTING or isinstance(x.cached_data, tuple):
            return False
        shape, wide = np.shape(x.cached_data), np.shape(tensor.cached_data)
        if node.kind == "MatMul":
            wide = (*wide[:-2], *shape[-2:])
        other = "EWiseMul" if node.kind == "EWiseAdd" else "EWiseAdd"
        kind = getattr(sys.modules.get(type(node.op).__module__), other, None)
        if kind is None or shape == wide:
            return False
        g = (np.arange(math.prod(wide)) % 7 - 3.0).reshape(wide)  # small whole numbers: the sum is exact
        try:
            leaf = type(tensor).make_const(np.array(x.cached_data), requires_grad=True)
            kind()(leaf, type(tensor).make_const(np.ones(wide, x.cached_data.dtype))).backward(
                type(tensor).make_const(g.astype(x.cached_data.dtype))
            )
            return not np.array_equal(_parts_of(leaf.grad.cached_data)[0], _reduced(g, 0 * g, shape)[0])
        except Exception:
            return False

    def _addition(self, arrival: _Arrival, place: int) -> str:
        """What a wrong sum looks like."""
        given = [p[place] for p, _, _ in arrival.parts if p[place] is not None]
        grad = arrival.tensor.grad
        ours = _wide(_parts_of(getattr(grad, "cached_data", grad))[place])
        total, bound = self._total(arrival, place, ours.shape)
        allowed = 4 * bound + TINY
        guesses = [("twice the sum", 2 * total), ("zero", 0 * total)]
        if len(given) > 1:
            guesses.insert(0, ("only the contribution that comes last counts", given[-1][0]))  # type: ignore[index]
            guesses.insert(0, ("only the contribution that comes first counts", given[0][0]))  # type: ignore[index]
            guesses += [(f"contribution {k + 1} of {len(given)} is missing", total - p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
            guesses += [(f"contribution {k + 1} of {len(given)} counts twice", total + p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
        for words, value in guesses:
            if bool((np.abs(ours - value) <= allowed).all()):
                return words
        return ""

    def _bad(self, finding: Finding) -> None:
        self.found.bad.append(finding)


def _wide(a: Any) -> Array:
    return np.asarray(a).astype(np.float64)


def _parts_of(data: Any) -> tuple[Any, ...]:
    """The arrays of a TensorTuple, whose elements may be Tensors; the array of a Tensor."""
    if isinstance(data, tuple | list):
        return tuple(np.asarray(getattr(a, "cached_data", a)) for a in data)
    return (np.asarray(data),)


def _dtype(node: Node) -> Any:
    """The dtype that a node must have: that of its floating inputs."""
    if node.kind == "Cast":
        return np.dtype(node.op.dtype)
    floats = [a.dtype for x in node.inputs for a in _parts_of(x.cached_data) if a.dtype.kind == "f"]
    return np.result_type(*floats) if floats else None
