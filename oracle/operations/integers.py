"""Which operations keep integers and bools, where there are no floats beside them? And what does NumPy make of them?

By the table at the top of needle/ops.py the result has NumPy's dtype, and its very numbers: an integer that does not fit wraps around. All other
operations give float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from oracle.operations.indexing import slices
from oracle.operations.tape import Array


def _at(x: Array, shape: Any, index: Any) -> Array:
    out = np.zeros(shape, x.dtype)
    np.add.at(out, slices(index), x)
    return out


def _dilated(x: Array, axes: Any, dilation: int) -> Array:
    over = {axis % x.ndim for axis in axes}
    out = np.zeros([n * (dilation + 1) if i in over else n for i, n in enumerate(x.shape)], x.dtype)
    out[tuple(slice(None, None, dilation + 1) if i in over else slice(None) for i in range(x.ndim))] = x
    return out


def _convolved(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
    return np.asarray(np.einsum("nhwckl,klco->nhwo", windows, kernel))


def _linear(*operands: Array) -> Array:
    """In the dtype of the result from the start, as an operation of three operands is."""
    x, w, *b = (a.astype(np.result_type(*operands)) for a in operands)
    return np.asarray(x @ w + b[0] if b else x @ w)


# operation -> the same in NumPy, of arrays and attributes
IN_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "power": np.power,
    "whole_power": np.power,
    "negate": np.negative,
    "relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
    "absolute": np.abs,
    "larger": np.maximum,
    "smaller": np.minimum,
    "where": lambda x, a, b: np.where(x > 0, a, b),
    "maximum": lambda x, axes=None: np.max(x, axes),
    "minimum": lambda x, axes=None: np.min(x, axes),
    "summation": lambda x, axes=None: np.sum(x, axes),
    "matmul": np.matmul,
    "linear": _linear,
    "conv": _convolved,
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "concatenate": lambda *xs, axis: np.concatenate(xs, axis),
    "split": lambda x, axis, pick: np.take(x, pick, axis),
    "transpose": lambda x, axes=(-1, -2): np.swapaxes(x, *(axes or (-1, -2))),
    "reshape": lambda x, shape: np.reshape(x, shape),
    "flatten": lambda x: np.reshape(x, (x.shape[0], int(np.prod(x.shape[1:])))),
    "broadcast_to": lambda x, shape: np.broadcast_to(x, shape),
    "flip": lambda x, axes: np.flip(x, axes),
    "dilate": _dilated,
    "getitem": lambda x, index: x[slices(index)],
    "put_item": _at,
}


def in_numpy(op: str, arrays: Sequence[Array], attributes: Mapping[str, Any]) -> Array | None:
    """What NumPy makes of integers and bools; None where the operation makes floats of them."""
    if op not in IN_NUMPY:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(IN_NUMPY[op](*arrays, **attributes))


def dtype_of(op: str, dtypes: Sequence[str]) -> str:
    """The kind of what becomes of integers and bools: "bool", "integer" or "float"."""
    if op not in IN_NUMPY:
        return "float"
    counts = op in ("summation", "power", "whole_power")
    return "bool" if not counts and {*dtypes[op == "where" :]} == {"bool"} else "integer"
