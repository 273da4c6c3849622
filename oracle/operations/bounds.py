"""Arrays that carry a first-order bound of their rounding error: what turns a definition into rule OP. NumPy alone.

A ``Bounded`` is computed with like an ndarray. Every operation passes on the errors of its operands and adds its own
rounding: one unit for + − · / √, up to four ulp for exp, log, tanh and powers, and for sums and products of matrices all
summands at their worst, so that any order of summation is right. Whatever can underflow may be off by the smallest
normal number, for it may be scaled up later. `BoundTape` runs a definition on such arrays; no definition knows about
it. What a Bounded does not know is an error, never a bound that is silently wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.operations.tape import TINY, Tape, U

Array = npt.NDArray[Any]
Error = Array | None  # None is exact

LIMIT = 2.0  # of all bounds: terms of second order, and another way to write the same formula
FUNCTION = 4 * U  # NumPy's vector loops for exp, log and tanh err by up to 4 ulp, which is 8 U with the limit


class Bounded:
    """float64 values, how far a float32 program may be from each, and a number that none of them can fall below."""

    __slots__ = ("e", "low", "v")

    def __init__(self, v: Array, e: Error = None, low: float = -math.inf) -> None:
        self.v, self.e, self.low = v, e, low

    # -- what an array has

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.v.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.v.ndim

    @property
    def error(self) -> Array:
        """The bound, as an array."""
        return np.zeros(self.v.shape) if self.e is None else self.e

    def moved(self, f: Callable[[Array], Array]) -> Bounded:
        """The elements at other places, and their errors with them."""
        return Bounded(f(self.v), None if self.e is None else f(self.e), self.low)

    def reshape(self, *shape: Any) -> Bounded:
        """As that of an ndarray."""
        return self.moved(lambda x: x.reshape(*shape))

    def __getitem__(self, at: Any) -> Bounded:
        return self.moved(lambda x: x[at])

    def __ge__(self, other: Any) -> Array:
        return np.asarray(self.v >= other)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        """The sum in any order."""
        v = np.asarray(self.v.sum(axis=axis, keepdims=keepdims))
        k = self.v.size / max(v.size, 1)
        e = _plus(self.e, (k / 2 + 1) * U * np.abs(self.v)).sum(axis=axis, keepdims=keepdims)
        return Bounded(v, np.asarray(e), 0.0 if self.low >= 0 else -math.inf)

    def max(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        """The largest, which is off by no more than the one that is off most."""
        e = None if self.e is None else self.e.max(axis=axis, keepdims=keepdims)
        return Bounded(self.v.max(axis=axis, keepdims=keepdims), e, self.low)

    # -- arithmetic

    def __neg__(self) -> Bounded:
        return Bounded(-self.v, self.e)

    def __add__(self, other: Any) -> Bounded:
        b, d, low = _parts(other)
        v = self.v + b
        return Bounded(v, _plus(self.e, d, U * np.abs(v)), self.low + low)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Bounded:
        b, d, _ = _parts(other)
        v = self.v - b
        return Bounded(v, _plus(self.e, d, U * np.abs(v)))

    def __rsub__(self, other: Any) -> Bounded:
        return (-self).__add__(other)

    def __mul__(self, other: Any) -> Bounded:
        b, d, low = _parts(other)
        v = self.v * b
        own = U * np.abs(v) + TINY  # what underflows may be scaled up later
        if other is self:
            return Bounded(v, own if self.e is None else self.e * (2 * np.abs(b) + self.e) + own, 0.0)
        if self.e is not None:
            own += self.e * np.abs(b) if d is None else self.e * (np.abs(b) + d)
        if d is not None:
            own += np.abs(self.v) * d
        return Bounded(v, own, 0.0 if self.low >= 0 and low >= 0 else -math.inf)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Bounded:
        return _quotient(self.v, self.e, self.low, *_parts(other))

    def __rtruediv__(self, other: Any) -> Bounded:
        return _quotient(*_parts(other), self.v, self.e, self.low)

    def __pow__(self, n: Any) -> Bounded:
        return self * self if isinstance(n, float | int) and n == 2 else _power(self, n)

    def __rpow__(self, a: Any) -> Bounded:
        return _power(a, self)

    # -- functions of NumPy

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        f = _FUNCTIONS.get(ufunc) if method == "__call__" and not kwargs else None
        return NotImplemented if f is None else f(*args)

    def __array_function__(self, f: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if f is np.where:
            c, *both = args
            (x, e, _), (y, d, _) = map(_parts, both)
            return Bounded(np.where(c, x, y), np.where(c, 0.0 if e is None else e, 0.0 if d is None else d))
        if f is np.zeros_like:
            return np.zeros(self.shape)
        if f is np.stack:
            parts = [x if isinstance(x, Bounded) else Bounded(x) for x in args[0]]
            return Bounded(*(f(a, *args[1:], **kwargs) for a in ([x.v for x in parts], [x.error for x in parts])))
        return args[0].moved(lambda x: f(x, *args[1:], **kwargs)) if f in _MOVES else NotImplemented


def _parts(x: Any) -> tuple[Any, Any, float]:
    """Value, error, and what it cannot fall below; a number of Python's is rounded to float32 first."""
    if isinstance(x, Bounded):
        return x.v, x.e, x.low
    if isinstance(x, float | int):
        off = abs(x - float(np.float32(x)))
        return x, off or None, float(x)
    return x, None, -math.inf


def _plus(*errors: Any) -> Any:
    return functools.reduce(np.add, [e for e in errors if e is not None])


def _quotient(a: Any, e: Any, above: float, b: Any, d: Any, low: float) -> Bounded:
    v = a / b
    own = U * np.abs(v) + TINY
    floor = 0.0 if above >= 0 and low >= 0 else -math.inf
    if e is None and d is None:
        return Bounded(v, own, floor)
    # where the divisor may be 0 nothing is known: the bound is infinite
    least = np.abs(b) if d is None else np.maximum(np.abs(b) - d, max(low, 0))
    return Bounded(v, own + _plus(e, None if d is None else np.abs(v) * d) / least, floor)


def _power(a: Any, n: Any) -> Bounded:
    """a ** n, which is e^(n·ln a): the rounding of n counts ln a times, the relative one of a n times."""
    (x, e, _), (p, d, _) = _parts(a), _parts(n)
    v = x**p
    relative: Any = FUNCTION
    if d is not None:
        relative = relative + d * np.where(x > 0, np.abs(np.log(np.where(x > 0, x, 1))), 0.0)
    if e is not None:
        relative = relative + np.abs(p) * e / np.abs(x)
    return Bounded(v, np.abs(v) * relative + TINY)


def _increasing(f: Callable[[Any], Any], own: float, least: float = -math.inf) -> Callable[[Any], Bounded]:
    """The error of the operand moves the result by what it moves f, which itself errs by ``own`` and is above ``least``."""

    def bounded(x: Bounded) -> Bounded:
        v = f(x.v)
        e = own * np.abs(v) + TINY
        if x.e is not None:
            e += np.maximum(f(x.v + x.e) - v, v - f(np.maximum(x.v - x.e, x.low)))
        return Bounded(v, e, max(least, float(f(x.low))) if x.low > 0 else least)

    return bounded


def _matmul(a: Any, b: Any) -> Bounded:
    (x, e, _), (y, d, _) = _parts(a), _parts(b)
    p, q = np.abs(x), np.abs(y)
    own = (x.shape[-1] / 2 + 1) * U * (p @ q) + x.shape[-1] * TINY
    return Bounded(x @ y, _plus(own, None if e is None else e @ q, None if d is None else p @ d))


_MOVES = (np.swapaxes, np.broadcast_to, np.squeeze, np.take, np.flip, np.pad)
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.add: lambda a, b: b + a,  # these four: an ndarray to the left of a Bounded
    np.subtract: lambda a, b: b.__rsub__(a),
    np.multiply: lambda a, b: b * a,
    np.true_divide: lambda a, b: b.__rtruediv__(a),
    np.exp: _increasing(np.exp, FUNCTION, 0.0),
    np.log: _increasing(np.log, FUNCTION),
    np.log1p: _increasing(np.log1p, FUNCTION),
    np.tanh: _increasing(np.tanh, FUNCTION, -1.0),
    np.sqrt: _increasing(np.sqrt, U, 0.0),
    np.absolute: lambda x: Bounded(np.abs(x.v), x.e, 0.0),
    np.minimum: lambda x, y: Bounded(np.minimum(x.v, y), x.e),
    np.maximum: lambda x, y: Bounded(np.maximum(x.v, y), x.e, float(y)),
    np.matmul: _matmul,
}


class BoundTape(Tape):
    """A tape on which definitions carry bounds; no replicas, no noise."""

    def __init__(self) -> None:
        super().__init__(noise=None)

    def noisy(self, x: Any) -> Any:
        """x as a Bounded: the rounding is that of the operations on it."""
        return x if isinstance(x, Bounded) else Bounded(x)

    def roughened(self, y: Any, magnitude: Any, weight: float) -> Any:
        """y: a sum has all of its rounding already."""
        return y

    def moved(self, x: Any, to: Callable[[Array], Array]) -> Any:
        """Elements at other places take their errors along."""
        return x.moved(to) if isinstance(x, Bounded) else to(x)

    def term(self, x: Any, others: int) -> Any:
        """It may be the first of them, and every other rounds what it is in."""
        x = self.noisy(x)
        return Bounded(x.v, _plus(x.e, others / 2 * U * np.abs(x.v)), x.low)

    def scattered(self, x: Any, shape: tuple[int, ...], where: Any) -> Any:
        """Sums, with all summands at their worst."""
        x = self.noisy(x)
        most = super().scattered(np.ones(x.shape), shape, where).max(initial=0)
        e = _plus(x.e, (most / 2 + 1) * U * np.abs(x.v))
        return Bounded(super().scattered(x.v, shape, where), super().scattered(e, shape, where))

    def either(self, usual: Callable[[], Any], careful: Callable[[], Any]) -> Any:
        """The careful way, which a node of needle's takes."""
        return careful()

    def variance(self, x: Any, centred: Any, mean: Any, axes: tuple[int, ...]) -> Any:
        """An error of the mean is the same in all of x − mean, whose sum is 0: to first order it cancels."""
        size, off, n = np.abs(centred.v), mean.error, math.prod(centred.shape[axis] for axis in axes)
        v = (size * size).sum(axes, keepdims=True) / n
        e = (n / 2 + 5) * U * v + off * off + 2 * off * U * size.sum(axes, keepdims=True) / n + TINY
        return Bounded(v, e, 0.0)

    def constant(self, c: float, shape: tuple[int, ...]) -> Any:
        """c, rounded once."""
        return Bounded(np.full((1, *shape), c), np.full((1, *shape), abs(c - float(np.float32(c)))))
