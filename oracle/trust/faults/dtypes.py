"""Other dtypes than float32: computed in the wrong one, rounded too often, promoted wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import Patch, compute, vjp, wrap

fault = Chapter("dtype")


def _by_way_of(op: str, dtype: str, through: str) -> Patch:
    """Where the result has a dtype, it has gone through another one."""
    return compute(op, lambda y, *_: y.astype(through).astype(dtype) if y.dtype == dtype else y)


def _back(op: str, when: str, wrong: Callable[[Any], Any]) -> Patch:
    """The gradient rule on arrays, where what arrives has a dtype."""
    return vjp(op, lambda r, g, y, *xs: [c if c is None or g.dtype != when else wrong(c) for c in r])


for _op in (
    "Tanh",
    "Exp",
    "EWiseMul",
    "EWiseAdd",
    "Summation",
    "MatMul",
    "LayerNorm",
    "Linear",
    "Log",
    "BatchNorm",
    "Conv",
):
    fault(
        f"{_op.lower()}-double-by-single",
        "float64 goes through float32",
        f"{_op} forward",
        _by_way_of(_op, "float64", "float32"),
    )
for _op in ("Tanh", "EWiseMul", "MatMul", "LogSumExp", "PowerScalar"):
    fault(
        f"{_op.lower()}-double-gradient-by-single",
        "a float64 gradient goes through float32",
        f"{_op} backward",
        _back(_op, "float64", lambda c: c.astype(np.float32).astype(np.float64)),
    )
fault(
    "sum-half-in-half",
    "a sum of float16 is added up in float16",
    "Summation forward",
    wrap("ops.Summation.compute", lambda old: lambda self, a: _added_in_half(old, self, a)),
)
fault(
    "matmul-half-in-half",
    "a product of float16 matrices is added up in float16",
    "MatMul forward",
    wrap("ops.MatMul.compute", lambda old: lambda self, a, b: _product_in_half(old, self, a, b)),
)
# 0.1 % would be two roundings of float16, which a correct loss may take, and 1 % is what a model in float16 makes of its logits
fault(
    "loss-half-off",
    "the loss of float16 logits is 10 % too small",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y * np.float16(0.9) if y.dtype == np.float16 else y),
)
fault(
    "half-becomes-single",
    "tanh of float16 is float32",
    "Tanh forward",
    compute("Tanh", lambda y, a: y.astype(np.float32) if y.dtype == np.float16 else y),
)
fault(
    "integer-widens",
    "beside int64, float32 becomes float64, as in NumPy",
    "EWiseAdd|EWiseMul|EWiseDiv|EWisePow|subtract|MatMul|Linear|Conv|Maximum|Where|BatchNorm|LayerNorm",  # all that use it
    wrap("ops._alike", lambda old: lambda a, b: (a, b)),
)
fault(
    "bool-as-sign",
    "True beside a float is -1",
    "EWiseMul forward",
    compute("EWiseMul", lambda y, a, b: -y if np.bool_ in (a.dtype, b.dtype) and y.dtype != np.bool_ else y),
)


def _added_in_half(old: Any, self: Any, a: Any) -> Any:
    if a.dtype != np.float16 or a.size < 3:
        return old(self, a)
    given = range(a.ndim) if self.axes is None else np.atleast_1d(self.axes)
    axes = sorted(int(axis) % a.ndim for axis in given)
    kept = [axis for axis in range(a.ndim) if axis not in axes]
    rows = a.transpose(*axes, *kept).reshape(-1, *(a.shape[axis] for axis in kept))
    total = np.zeros(rows.shape[1:], np.float16)
    for row in rows:
        total = (total + row).astype(np.float16)
    return np.asarray(total)


def _product_in_half(old: Any, self: Any, a: Any, b: Any) -> Any:
    if not a.dtype == b.dtype == np.float16 or a.ndim < 2 or b.ndim < 2 or a.shape[-1] < 2:
        return old(self, a, b)
    total = np.zeros(old(self, a, b).shape, np.float16)
    for k in range(a.shape[-1]):
        total = (total + a[..., k : k + 1] * b[..., k : k + 1, :]).astype(np.float16)
    return total
