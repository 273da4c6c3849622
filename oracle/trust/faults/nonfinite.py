"""What is wrong only where an operand holds nan or an infinity: hidden, passed over, or lost on the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import Patch, around, compute, vjp, wrap

fault = Chapter("nonfinite")


def _hidden(op: str) -> Patch:
    """What is nan becomes 0."""
    return compute(op, lambda y, *xs: np.where(np.isnan(y), y.dtype.type(0), y))


def _lost(op: str, when: Callable[[Any], Any]) -> Patch:
    """No gradient where an operand is such."""
    return vjp(
        op,
        lambda r, g, y, *xs: [
            c if c is None or c.shape != x.shape else np.where(when(x), c.dtype.type(0), c)
            for c, x in zip(r, xs, strict=True)
        ],
    )


def _passed_over(op: str, instead: float) -> Patch:
    """What is nan counts as something else."""

    def make(old: Any) -> Any:
        return lambda self, a: old(self, a if a.dtype.kind != "f" else np.where(np.isnan(a), a.dtype.type(instead), a))

    return wrap(f"ops.{op}.compute", make)


fault("max-passes-over-nan", "the largest and the smallest of numbers and nan is a number", "Max forward|Min forward",
      _passed_over("Max", -np.inf) + wrap("ops.Min._extreme", lambda old: np.fmin.reduce))  # fmt: skip
fault("var-passes-over-nan", "nan counts as 0", "Var forward", _passed_over("Var", 0))
fault("softmax-hides-nan", "what is nan becomes 0", "Softmax forward|LogSoftmax forward",
      _hidden("Softmax") + _hidden("LogSoftmax"))  # fmt: skip
fault(
    "loss-hides-nan",
    "a loss that is nan is 0",
    "SoftmaxLoss|SoftmaxCrossEntropy forward",
    _hidden("SoftmaxCrossEntropy"),
)
fault("norm-hides-nan", "what is nan becomes 0", "LayerNorm forward|BatchNorm forward",
      _hidden("LayerNorm") + _hidden("BatchNorm"))  # fmt: skip
fault("power-of-infinity", "a power of an infinity is nan", "PowerScalar forward|EWisePow forward",
      compute("PowerScalar", lambda y, a: np.where(np.isinf(a), y.dtype.type(np.nan), y))
      + compute("EWisePow", lambda y, a, b: np.where(np.isinf(a), y.dtype.type(np.nan), y)))  # fmt: skip
fault("relu-backward-nan", "at nan the gradient is 0", "ReLU backward", _lost("ReLU", np.isnan))
fault("power-backward-nan", "at nan and infinities the gradient is nan", "EWisePow backward|PowerScalar backward",
      vjp("EWisePow", lambda r, g, y, a, b: (_nan_at(r[0], a), r[1]))
      + vjp("PowerScalar", lambda r, g, y, a: (_nan_at(r[0], a),)))  # fmt: skip
fault("abs-backward-infinity", "the gradient is g · a / |a|, which is nan at an infinity", "Abs backward",
      vjp("Abs", lambda r, g, y, a: (np.where(np.isinf(a), g.dtype.type(np.nan), r[0]),)))  # fmt: skip
fault("maximum-backward-nan", "where one is nan, neither gets a gradient", "Maximum backward|Minimum backward",
      vjp("Maximum", lambda r, g, y, a, b: [_lost_beside(c, x, a, b) for c, x in zip(r, (a, b), strict=True)]))  # fmt: skip
fault("root-backward-infinity", "at an infinity the gradient is g", "Sqrt backward|Log backward",
      vjp("Sqrt", lambda r, g, y, a: (np.where(np.isinf(a), g, r[0]),))
      + vjp("Log", lambda r, g, y, a: (np.where(np.isinf(a), g, r[0]),)))  # fmt: skip
fault("argmax-passes-over-nan", "argmax and argmin name the place of a number, and not of nan", "argmax|picked|GetItem",
      around("ops._place_of", lambda old, op, find, *rest: old(op, lambda a, *how, **more: find(_without(a, op), *how, **more), *rest)))  # fmt: skip


def _nan_at(c: Any, a: Any) -> Any:
    return c if c is None or c.shape != a.shape else np.where(np.isfinite(a), c, c.dtype.type(np.nan))


def _lost_beside(c: Any, x: Any, a: Any, b: Any) -> Any:
    none = np.isnan(a) | np.isnan(b)
    return c if c is None or c.shape != none.shape else np.where(none, c.dtype.type(0), c)


def _without(a: Any, op: str) -> Any:
    if a.dtype.kind != "f":
        return a
    return np.where(np.isnan(a), a.dtype.type(-np.inf if op == "argmax" else np.inf), a)
