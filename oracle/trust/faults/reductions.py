"""Operations over an axis: sum, max, log-sum-exp, log-softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from needle import ops
from needle.autograd import Value
from oracle.trust.faults.chapter import Chapter, square, swap
from oracle.trust.patches import around, compute, replace, vjp, wrap

fault = Chapter("op")

fault(
    "sum-forward-tuple",
    "of several axes only the first is summed, then the rest averaged",
    "Summation forward",
    wrap("ops.Summation.compute", lambda old: lambda self, a: _first_sum(old, self, a)),
)
fault(
    "axes-empty-are-all",
    "axes=() reduces all axes, as in torch, and not none, as in NumPy",
    "Summation|Max|Min|Var|LogSumExp",
    around("ops._axes", lambda old, axes, ndim, op: old(None if axes == () else axes, ndim, op)),
)
fault(
    "sum-long-loses-rest",
    "what is left after the last whole block of a long sum is dropped",
    "Summation forward|unattributed|norm|Linear",
    replace("ops._LONG", 2)
    + replace("ops._BLOCK", 2)
    + around(
        "ops._add_up", lambda old, a, axes: old(a[: len(a) - len(a) % 2], axes) if _long(a, axes) else old(a, axes)
    ),
)

fault(
    "sum-forward-negative",
    "a negative axis is taken from the other end",
    "Summation forward",
    wrap("ops.Summation.compute", lambda old: lambda self, a: _other_end(old, self, a)),
)
fault(
    "sum-backward",
    "the gradient is divided by the number of summands",
    "Summation backward",
    vjp("Summation", lambda r, g, y, a: (r[0] * (max(y.size, 1) / max(a.size, 1)),)),
)
fault(
    "sum-backward-axis",
    "the gradient is spread along the wrong axis where the shape is square",
    "Summation backward",
    vjp("Summation", lambda r, g, y, a: (swap(r[0]) if square(r[0]) else r[0],)),
)
fault(
    "max-forward",
    "the largest absolute value",
    "Max forward",
    compute("Max", lambda y, a: np.where(np.abs(a.min(initial=0)) > np.abs(y), a.min(initial=0), y)),
)
fault(
    "max-backward-ties",
    "every tie gets the whole gradient",
    "Max backward",
    vjp(
        "Max",
        lambda r, g, y, a: (
            np.where(r[0] != 0, np.sign(r[0]) * np.abs(g).max(initial=0) if g.size == 1 else _full_share(r[0]), r[0]),
        ),
    ),
)
fault(
    "max-backward-spread",
    "the gradient goes to all elements",
    "Max backward",
    vjp("Max", lambda r, g, y, a: (np.full_like(r[0], r[0].mean()),)),
)
fault(
    "min-forward",
    "the smallest absolute value",
    "Min forward",
    replace("ops.Min._extreme", staticmethod(lambda a, axes: np.minimum.reduce(np.abs(a), axes))),
)
fault(
    "min-backward-ties",
    "of several smallest, each gets the whole gradient",
    "Min backward",
    wrap(
        "ops.Max.vjp",
        lambda old: (
            lambda self, g, y, needs, a: (
                _not_shared(old(self, g, y, needs, a)[0], g, a, self.axes)
                if isinstance(self, ops.Min) and not isinstance(g, Value)
                else old(self, g, y, needs, a)
            )
        ),
    ),
)
fault(
    "argmax-last",
    "of several largest, the last is named",
    "picked",
    around("ops._place_of", lambda old, op, find, a, axis, kept: _last(old, op, find, a, axis, kept)),
)
fault(
    "argmin-absolute",
    "argmin goes by absolute values",
    "picked",
    around(
        "ops._place_of",
        lambda old, op, find, a, *rest: old(op, find, ops.absolute(a) if op == "argmin" else a, *rest),
    ),
)
fault(
    "var-forward",
    "E x² − (E x)², which cancels",
    "Var forward",
    wrap("ops.Var.compute", lambda old: lambda self, a: _uncentred(old, self, a)),
)
fault(
    "var-forward-correction",
    "the correction is forgotten",
    "Var forward",
    wrap("ops.Var.compute", lambda old: lambda self, a: old(ops.Var(self.axes), a)),
)
fault(
    "var-backward-correction",
    "the correction is forgotten in the gradient",
    "Var backward",
    wrap(
        "ops.Var.vjp",
        lambda old: (
            lambda self, g, y, needs, a: old(self if isinstance(g, Value) else ops.Var(self.axes), g, y, needs, a)
        ),
    ),
)
fault("var-backward", "the gradient lacks the 2", "Var backward", vjp("Var", lambda r, g, y, a: (r[0] / 2,)))
fault(
    "logsumexp-forward",
    "no shift by the maximum",
    "LogSumExp forward",
    replace(
        "ops.LogSumExp.compute",
        lambda self, a: np.asarray(np.log(np.exp(a).sum(axis=ops._axes(self.axes, a.ndim, "logsumexp")))),
    ),
)
fault(
    "logsumexp-backward",
    "the gradient is spread evenly",
    "LogSumExp backward",
    vjp("LogSumExp", lambda r, g, y, a: (np.zeros_like(a) + g.sum() / a.size,)),
)
fault(
    "logsoftmax-forward",
    "1e-4 inside the logarithm",
    "LogSoftmax forward",
    compute(
        "LogSoftmax",
        lambda y, a: (
            a
            - a.max(1, keepdims=True)
            - np.log(np.exp(a - a.max(1, keepdims=True)).sum(1, keepdims=True) + np.float32(1e-4))
        ),
    ),
)
fault(
    "logsoftmax-forward-axis",
    "over axis 0 where the matrix is square",
    "LogSoftmax forward",
    wrap("ops.LogSoftmax.compute", lambda old: lambda self, a: old(self, a.T).T if square(a) else old(self, a)),
)
fault(
    "logsoftmax-backward",
    "the gradient lacks the softmax term",
    "LogSoftmax backward",
    vjp("LogSoftmax", lambda r, g, y, a: (g,)),
)


def _full_share(share: Any) -> Any:
    return np.sign(share) * np.abs(share).max(initial=0)


def _first_sum(old: Any, self: Any, a: Any) -> Any:
    y = old(self, a)
    axes = ops._axes(self.axes, a.ndim, "summation")
    if self.axes is None or len(axes) < 2:
        return y
    return np.asarray(y / np.float32(max(1, math.prod(a.shape[i] for i in axes[1:]))))


def _other_end(old: Any, self: Any, a: Any) -> Any:
    y = old(self, a)
    if isinstance(self.axes, int) and self.axes < 0:
        wrong = a.sum(axis=-self.axes - 1)
        return wrong if wrong.shape == np.shape(y) else y
    return y


def _long(a: Any, axes: tuple[int, ...]) -> bool:
    """Whether the first axis is added up in blocks."""
    return 0 in axes and len(a) > 2 and bool(a.strides[0] != a.itemsize)


def _not_shared(share: Any, g: Any, a: Any, axes: Any) -> Any:
    kept = ops._kept(a.shape, ops._axes(axes, a.ndim, "min"))
    return ((share != 0) * g.reshape(kept),)


def _last(old: Any, op: str, find: Any, a: Any, axis: Any, kept: bool) -> Any:
    flipped = old(op, find, ops.flip(a, axis), axis, kept)
    return (a.size if axis is None else a.shape[axis]) - 1 - flipped


def _uncentred(old: Any, self: Any, a: Any) -> Any:
    axes = ops._axes(self.axes, a.ndim, "var")
    n = math.prod(a.shape[i] for i in axes)
    mean = a.sum(axes) / n
    right = np.asarray(old(self, a))
    return np.asarray(((a * a).sum(axes) / n - mean * mean) * (n / (n - self.correction))).astype(right.dtype)
