"""What NumPy's own functions make of a Tensor: np.exp(t), np.sum(t, axis=0), np.where(t > 0, t, 0.0), array * t.

- A function that needle has too gives what needle's gives: a Tensor, with its gradient.
- One that no gradient passes through (shapes, comparisons, indices, rounding) is NumPy's, on the numbers.
- Every other would lose the gradient without a word: it is refused, and says what to write. Constants, which have none
  to lose, and everything under no_grad() give what NumPy gives for the numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle import ops
from needle.autograd import Tensor, _is_recording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# -- functions that needle has too


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x, requires_grad=False)


def _method(name: str) -> Callable[..., Any]:
    return lambda a, *args, **kwargs: getattr(_tensor(a), name)(*args, **kwargs)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    return ops.clip(_tensor(a), min if a_min is None else a_min, max if a_max is None else a_max)


def _transpose(a: Any, axes: Sequence[int] | None = None) -> Tensor:
    """NumPy's reverses all axes, or permutes them; needle's swaps a pair."""
    if axes is not None and tuple(axes) != tuple(range(len(a.shape)))[::-1]:
        raise TypeError(f"np.transpose with axes={axes} is not in needle: swap pairs of axes, t.transpose((i, j))")
    result: Tensor = a.T
    return result


def _where(condition: Any, *both: Any) -> Any:
    return ops.where(condition, *both) if both else np.where(np.asarray(condition))


def _operator(name: str, reflected: str) -> Callable[[Any, Any], Any]:
    """An operator of Tensors: of the left operand, or, where that is none, the reflected one of the right."""
    return lambda a, b: getattr(a, name)(b) if isinstance(a, Tensor) else getattr(b, reflected)(a)


_matmul = _operator("__matmul__", "__rmatmul__")
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: _method("sum"),
    np.mean: _method("mean"),
    np.var: _method("var"),
    np.max: _method("max"),
    np.amax: _method("max"),
    np.min: _method("min"),
    np.amin: _method("min"),
    np.clip: _clip,
    np.where: _where,
    np.concatenate: lambda arrays, axis=0: ops.concatenate(arrays, axis),
    np.stack: lambda arrays, axis=0: ops.stack([*map(_tensor, arrays)], axis),
    np.reshape: lambda a, shape: _tensor(a).reshape(shape),
    np.ravel: lambda a: _tensor(a).flatten(),
    np.copy: lambda a: _tensor(a).clone(),
    np.transpose: _transpose,
    np.swapaxes: lambda a, axis1, axis2: ops.transpose(a, (axis1, axis2)),
    np.broadcast_to: lambda array, shape: ops.broadcast_to(array, shape),
    np.flip: lambda m, axis=None: ops.flip(m, axis),
    np.dot: _matmul,
}


_UFUNCS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: _operator("__add__", "__radd__"),
    np.subtract: _operator("__sub__", "__rsub__"),
    np.multiply: _operator("__mul__", "__rmul__"),
    np.true_divide: _operator("__truediv__", "__rtruediv__"),
    np.power: _operator("__pow__", "__rpow__"),
    np.matmul: _matmul,
    np.equal: _operator("__eq__", "__eq__"),
    np.not_equal: _operator("__ne__", "__ne__"),
    np.less: _operator("__lt__", "__gt__"),
    np.less_equal: _operator("__le__", "__ge__"),
    np.greater: _operator("__gt__", "__lt__"),
    np.greater_equal: _operator("__ge__", "__le__"),
    np.maximum: ops.maximum,
    np.minimum: ops.minimum,
    np.negative: ops.negate,
    np.positive: lambda a: +a,
    np.absolute: ops.absolute,
    np.fabs: ops.absolute,
    np.sqrt: ops.sqrt,
    np.square: lambda a: a * a,
    np.reciprocal: lambda a: 1 / a,
    np.exp: ops.exp,
    np.log: ops.log,
    np.tanh: ops.tanh,
}

# -- functions that no gradient passes through

_NO_GRADIENT: set[Any] = {
    *(np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.shares_memory, np.may_share_memory),
    *(np.zeros_like, np.ones_like, np.empty_like, np.full_like),
    *(np.argmax, np.argmin, np.argsort, np.nonzero, np.flatnonzero, np.count_nonzero, np.searchsorted, np.digitize),
    *(np.allclose, np.isclose, np.array_equal, np.array_equiv, np.isin, np.all, np.any, np.bincount),
    *(np.array2string, np.array_repr, np.array_str, np.save, np.savez, np.savez_compressed, np.savetxt, np.copyto),
    *(np.isfinite, np.isnan, np.isinf, np.signbit, np.sign, np.floor, np.ceil, np.trunc, np.rint),
    *(np.logical_and, np.logical_or, np.logical_xor, np.logical_not),
}

_INSTEAD: dict[Any, str] = {
    np.std: "t.var().sqrt()",
    np.prod: "needle.exp(needle.log(t).sum())",
    np.linalg.norm: "(t * t).sum().sqrt()",
    np.vstack: "needle.concatenate(tensors)",
    np.hstack: "needle.concatenate(tensors, axis=1)",
    np.squeeze: "t.reshape(shape)",
    np.expand_dims: "t.reshape(shape), or t[:, None]",
    np.log1p: "needle.log(1 + t)",
    np.expm1: "needle.exp(t) - 1",
    np.logaddexp: "needle.logsumexp(needle.stack([a, b]), 0)",
    np.split: "needle.split(t, axis), which drops the axis, or t[start:stop]",
    np.inner: "a @ b of matrices",
    np.tensordot: "a @ b of matrices",
    np.einsum: "a @ b of matrices",
}


def ufunc(function: np.ufunc, method: str, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Tensor.__array_ufunc__, which NumPy calls for operators with an array on the left, too."""
    mine = _UFUNCS.get(function) if method == "__call__" else None
    (into,) = kwargs.get("out", (None,)) if len(kwargs.get("out", (None,))) == 1 else (None,)
    if into is inputs[0] and mine is not None and _loses(inputs):
        return mine(*inputs)  # `array += tensor` is `array = array + tensor`, and a Tensor from then on
    if mine is not None and not kwargs:
        return mine(*inputs)
    return _on_numbers(function if method == "__call__" else getattr(function, method), function, inputs, kwargs)


def function(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Tensor.__array_function__."""
    mine = _FUNCTIONS.get(function)
    return mine(*args, **kwargs) if mine is not None else _on_numbers(function, function, args, kwargs)


def _on_numbers(call: Callable[..., Any], function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if function not in _NO_GRADIENT and _loses([args, kwargs]):
        name = f"np.{function.__name__}" + ("" if call is function else f".{call.__name__}")
        name = name.replace("np.", "np.linalg.") if getattr(np.linalg, function.__name__, None) is function else name
        how = f", as in {_INSTEAD[function]}" if function in _INSTEAD else ""
        raise TypeError(
            f"{name} of a Tensor that requires a gradient would lose the gradient: "
            f"write it with needle's operations{how}, or take the numbers alone, t.numpy()"
        )
    return call(*_numbers_of(args), **_numbers_of(kwargs))


def _loses(x: Any) -> bool:
    """Whether a Tensor among the arguments has a gradient to lose."""
    if isinstance(x, Tensor):
        return x.requires_grad and _is_recording()
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, list | tuple):
        return False
    return any(map(_loses, x))


def _numbers_of(x: Any) -> Any:
    """Arguments with the arrays of Tensors in their place."""
    if isinstance(x, Tensor):
        return x.cached_data
    if isinstance(x, dict):
        return {key: _numbers_of(value) for key, value in x.items()}
    return type(x)(map(_numbers_of, x)) if type(x) in (list, tuple) else x
