"""Initialisers: Tensors filled with constants or random numbers.

All take the keywords ``device``, ``dtype="float32"`` and ``requires_grad=False``. Random numbers come from
the global NumPy generator (seed it with ``np.random.seed``), are drawn and scaled in float64, and are
converted to the dtype last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.autograd import Tensor, _real

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = [
    "constant",
    "kaiming_normal",
    "kaiming_uniform",
    "one_hot",
    "ones",
    "ones_like",
    "rand",
    "randb",
    "randn",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
    "zeros_like",
]


def _tensor(data: Any, dtype: DTypeLike, requires_grad: bool) -> Tensor:
    return Tensor.make_const(np.asarray(data).astype(_real(dtype), copy=False), requires_grad)


def rand(
    *shape: int,
    low: float = 0.0,
    high: float = 1.0,
    device: Any = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers in [low, high): -> shape. Draws one ``np.random.rand(*shape)``."""
    return _tensor(np.random.rand(*shape) * (high - low) + low, dtype, requires_grad)


def randn(
    *shape: int,
    mean: float = 0.0,
    std: float = 1.0,
    device: Any = None,
    dtype: DTypeLike = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers: -> shape. Draws one ``np.random.randn(*shape)``."""
    return _tensor(np.random.randn(*shape) * std + mean, dtype, requires_grad)


def constant(
    *shape: int, c: float = 1.0, device: Any = None, dtype: DTypeLike = "float32", requires_grad: bool = False
) -> Tensor:
    """Fill with the number c: -> shape."""
    return Tensor.make_const(np.full(shape, c, _real(dtype)), requires_grad)


def ones(*shape: int, device: Any = None, dtype: DTypeLike = "float32", requires_grad: bool = False) -> Tensor:
    """Fill with ones: -> shape."""
    return Tensor.make_const(np.ones(shape, _real(dtype)), requires_grad)


def zeros(*shape: int, device: Any = None, dtype: DTypeLike = "float32", requires_grad: bool = False) -> Tensor:
    """Fill with zeros: -> shape."""
    return Tensor.make_const(np.zeros(shape, _real(dtype)), requires_grad)


def randb(
    *shape: int, p: float = 0.5, device: Any = None, dtype: DTypeLike = "bool", requires_grad: bool = False
) -> Tensor:
    """Draw True with probability p: -> shape. One ``np.random.rand(*shape) <= p``."""
    if not 0 <= p <= 1:
        raise ValueError(f"randb: p must be in [0, 1], got p={p}")
    return _tensor(np.random.rand(*shape) <= p, dtype, requires_grad)


def one_hot(n: int, i: Tensor, device: Any = None, dtype: DTypeLike = "float32", requires_grad: bool = False) -> Tensor:
    """One row per number in i, 1 at that place and 0 elsewhere: any shape of integers in 0..n-1 -> (*shape,
    n).

    >>> one_hot(3, Tensor([2, 0]))
    needle.Tensor([[0., 0., 1.],
                   [1., 0., 0.]], dtype=float32)
    """
    places = np.asarray(i)
    whole = places.astype(np.intp)
    if places.dtype.kind not in "iuf" or not np.array_equal(whole, places):
        raise TypeError(f"one_hot needs integers, but got dtype {places.dtype}")
    if places.size and (whole.min() < 0 or whole.max() >= n):
        raise ValueError(f"one_hot needs numbers in 0..{n - 1}, but got {int(whole.min())}..{int(whole.max())}")
    return Tensor.make_const(np.eye(n, dtype=_real(dtype))[whole], requires_grad)


def zeros_like(array: Tensor, *, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the shape and dtype of another Tensor."""
    return Tensor.make_const(np.zeros(array.shape, array.dtype), requires_grad)


def ones_like(array: Tensor, *, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the shape and dtype of another Tensor."""
    return Tensor.make_const(np.ones(array.shape, array.dtype), requires_grad)


def xavier_uniform(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)): -> (fan_in, fan_out). Glorot and Bengio, 2010."""
    _check_fans(fan_in, fan_out)
    a = gain * math.sqrt(6 / (fan_in + fan_out))
    return rand(fan_in, fan_out, low=-a, high=a, **kwargs)


def xavier_normal(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """N(0, s^2) with s = gain sqrt(2 / (fan_in + fan_out)): -> (fan_in, fan_out). Glorot and Bengio, 2010."""
    _check_fans(fan_in, fan_out)
    return randn(fan_in, fan_out, std=gain * math.sqrt(2 / (fan_in + fan_out)), **kwargs)


def kaiming_uniform(fan_in: int, fan_out: int, nonlinearity: str = "relu", **kwargs: Any) -> Tensor:
    """U(-b, b) with b = sqrt(2) sqrt(3 / fan_in): -> (fan_in, fan_out). He et al., 2015."""
    _check_fans(fan_in, fan_out, nonlinearity)
    bound = math.sqrt(2) * math.sqrt(3 / fan_in)
    return rand(fan_in, fan_out, low=-bound, high=bound, **kwargs)


def kaiming_normal(fan_in: int, fan_out: int, nonlinearity: str = "relu", **kwargs: Any) -> Tensor:
    """N(0, s^2) with s = sqrt(2) / sqrt(fan_in): -> (fan_in, fan_out). He et al., 2015."""
    _check_fans(fan_in, fan_out, nonlinearity)
    return randn(fan_in, fan_out, std=math.sqrt(2) / math.sqrt(fan_in), **kwargs)


def _check_fans(fan_in: int, fan_out: int, nonlinearity: str = "relu") -> None:
    if fan_in < 1 or fan_out < 1:
        raise ValueError(f"fan_in and fan_out must be at least 1, but got ({fan_in}, {fan_out})")
    if nonlinearity != "relu":
        raise ValueError(f"only nonlinearity='relu' is known, but got {nonlinearity!r}")
