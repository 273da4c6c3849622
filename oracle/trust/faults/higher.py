"""What is wrong only when a gradient is differentiated: rules that detach, that err in a derivative of theirs, that write into
what they have kept.

All of them act on Tensors alone, and leave the first gradient as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from needle.autograd import Tensor, Value
from oracle.trust.faults.chapter import Chapter, const
from oracle.trust.patches import Patch, wrap

fault = Chapter("higher")


def on_tensors(op: str, rule: Callable[..., Any]) -> Patch:
    """Another gradient rule where it is to be differentiated: ``rule(the right rule, self, g, y, needs, *operands)``."""

    def make(old: Any) -> Any:
        def patched(self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
            if not isinstance(g, Value) and not any(isinstance(x, Value) for x in xs):
                return old(self, g, y, needs, *xs)
            return rule(old, self, g, y, needs, *xs)

        return patched

    return wrap(f"ops.{op}.vjp", make)


def _constant(x: Any) -> Any:
    return const(x.cached_data) if isinstance(x, Tensor) else x


def _detached(op: str) -> Patch:
    """To the gradient, the operands and the result are constants."""
    return on_tensors(op, lambda old, self, g, y, needs, *xs: old(self, g, _constant(y), needs, *map(_constant, xs)))


def _cut(op: str) -> Patch:
    """To the gradient, the gradient that arrives is a constant."""
    return on_tensors(op, lambda old, self, g, y, needs, *xs: old(self, _constant(g), y, needs, *xs))


def _bent(op: str, power: int, share: float = 0.01, of: int = 0) -> Patch:
    """To each contribution is added ``share · (x − constant x) ** power``: 0, as are all its derivatives below that order."""

    def bent(old: Any, self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
        right = old(self, g, y, needs, *xs)
        x = xs[of]
        if not isinstance(x, Tensor) or x.dtype.kind != "f" or x.shape == () or not np.isfinite(x.cached_data).all():
            return right
        off = x - const(x.cached_data)
        added = off if power == 1 else off * off
        return tuple(
            c + added * share if isinstance(c, Tensor) and i == of and c.shape == x.shape else c
            for i, c in enumerate(right)
        )

    return on_tensors(op, bent)


def _writes(op: str, into: Callable[..., Any]) -> Patch:
    """The rule writes into something that it has been given, or has kept."""

    def writing(old: Any, self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
        right = old(self, g, y, needs, *xs)
        into(self, g, y, *xs)
        return right

    return on_tensors(op, writing)


def _scaled(x: Any) -> None:
    if x.cached_data.flags.writeable and x.cached_data.ndim:
        x.cached_data *= np.float32(1.01)


_CURVED = (
    *("Tanh", "Sigmoid", "Exp", "Log", "Softplus", "EWiseMul", "EWiseDiv", "EWisePow", "PowerScalar", "LogSumExp"),
    *("LogSoftmax", "MatMul", "Linear", "Conv", "BatchNorm", "LayerNorm", "SoftmaxCrossEntropy"),
)
for _op in _CURVED:
    fault(
        f"{_op.lower()}-second-detached",
        "to its gradient, the operands are constants",
        f"{_op} second",
        _detached(_op),
    )
for _op in (
    "Transpose",
    "Reshape",
    "BroadcastTo",
    "GetItem",
    "PutItem",
    "Summation",
    "Negate",
    "MulScalar",
    "DivScalar",
):
    fault(
        f"{_op.lower()}-second-cut",
        "its gradient is a constant, whatever arrives depends on",
        f"{_op} second",
        _cut(_op),
    )
for _op in ("Flip", "Dilate", "Max", "Conv", "ReLU"):
    fault(f"{_op.lower()}-second-cut", "its gradient is a constant", f"{_op} second", _cut(_op))
for _op in ("Exp", "Tanh", "EWiseDiv", "PowerScalar", "LogSumExp", "LayerNorm", "BatchNorm", "MatMul"):
    fault(
        f"{_op.lower()}-second-off",
        "the derivative of its gradient is off by 0.01",
        f"{_op} second",
        _bent(_op, 1),
    )
for _op in ("Exp", "Tanh", "Sigmoid", "EWiseDiv", "EWisePow", "LogSumExp", "LayerNorm", "Linear", "Softplus"):
    fault(
        f"{_op.lower()}-third-off",
        "the second derivative of its gradient is off by 0.02",
        f"{_op} third|{_op} second",
        _bent(_op, 2),
    )
fault(
    "exp-second-writes",
    "the gradient rule scales the result that it has been given",
    "Exp second|Exp backward|exp second|writes|create_graph",
    _writes("Exp", lambda self, g, y, x: _scaled(y)),
)
fault(
    "tanh-second-writes",
    "the gradient rule scales the result that it has been given",
    "Tanh second|Tanh backward|writes|create_graph",
    _writes("Tanh", lambda self, g, y, x: _scaled(y)),
)
fault(
    "multiply-second-writes",
    "the gradient rule scales an operand",
    "multiply writes|EWiseMul|alias|writes",
    _writes("EWiseMul", lambda self, g, y, a, b: _scaled(a)),
)
