"""What a mutated line may call, as ``_m.name(...)``. Works on arrays, Tensors, numbers, tuples of them and what returns them."""

from __future__ import annotations

import functools
import operator
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

fired: Counter[str] = Counter()  # how often the condition of a rare trigger held


def _array(x: Any) -> Any:
    return getattr(x, "cached_data", x)


_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, operator.methodcaller)


def _each(x: Any, f: Callable[[Any], Any]) -> Any:
    """f of x, of its elements, or of what it returns; what holds no floating-point numbers stays as it is."""
    if isinstance(x, tuple):
        return tuple(_each(v, f) for v in x)
    if isinstance(x, _FUNCTIONS):
        return lambda *args, **keywords: _each(x(*args, **keywords), f)
    if isinstance(x, float):
        return f(x)
    kind = getattr(getattr(_array(x), "dtype", None), "kind", "")
    return f(x) if kind == "f" else x


def scaled(x: Any, k: int) -> Any:
    """x · (1 + 2⁻ᵏ)."""
    return _each(x, lambda v: v * (1 + 2.0**-k))


def cast(x: Any, dtype: str) -> Any:
    """x in another dtype."""
    return _each(x, lambda v: float(np.dtype(dtype).type(v)) if isinstance(v, float) else v.astype(dtype))


def rounded(x: Any, dtype: str) -> Any:
    """x rounded to a narrower dtype, in the dtype that it has."""
    return _each(
        x, lambda v: float(np.dtype(dtype).type(v)) if isinstance(v, float) else v.astype(dtype).astype(v.dtype)
    )


def wide(f: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """f computed in float64 and rounded once: only the rounding differs. Of Tensors as it is, because a rounded one has no graph."""
    if any(hasattr(a, "cached_data") for a in (getattr(f, "__self__", None), *args)):
        return f(*args, **keywords)
    narrow = f(
        *(a.copy() if isinstance(a, np.ndarray) else a for a in args), **keywords
    )  # one of them may be the output
    if np.asarray(narrow).dtype != np.float32:
        return narrow
    own = getattr(f, "__self__", None)
    if isinstance(own, np.ndarray):
        f = getattr(_wide(own), f.__name__)
    return np.asarray(f(*map(_wide, args), **keywords)).astype(np.float32)


def _wide(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x


_OPS: dict[str, Any] = {
    "+": (np.add, operator.add),
    "-": (np.subtract, operator.sub),
    "*": (np.multiply, operator.mul),
    "/": (np.divide, operator.truediv),
}


def in_place(op: str, a: Any, b: Any) -> Any:
    """a op b, written into a where that is possible."""
    ufunc, plain = _OPS[op]
    owned = isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.flags.writeable and a.ndim > 0
    if owned and not hasattr(b, "cached_data") and np.broadcast_shapes(a.shape, np.shape(b)) == a.shape:
        return ufunc(a, b, a, casting="unsafe")
    return plain(a, b)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean where the maximum belongs."""
    return np.asarray(x.mean(axis=axis, keepdims=keepdims), x.dtype)


CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "beyond 64": lambda a: bool((np.abs(a) > 64).any()),
    "size over 32": lambda a: a.size > 32,
    "square": lambda a: a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1,
    "a size of 1": lambda a: 1 in a.shape,
    "an exact zero": lambda a: bool(a.size and not a.all()),
}


def rare(x: Any, condition: str) -> Any:
    """x · 1.5 where a rare condition holds, else x."""

    def damaged(v: Any) -> Any:
        if not CONDITIONS[condition](np.asarray(_array(v))):
            return v
        fired[condition] += 1
        return v * 1.5

    return _each(x, damaged)
