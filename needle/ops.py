"""Every operation of needle: its class (compute and gradient rule) and its function, side by side.

How to read a rule. ``vjp(self, g, y, needs, *xs)`` gets g = dL/dy, the result y and the inputs xs, and
returns dL/dx for each input. It is called with ndarrays or with Tensors, so it uses what means the same on
both: the operators, the helpers below, and ``SomeOp(...).on(x)``. An augmented assignment (``t -= m``) works
in place on an array and makes a new Tensor otherwise; it is used only on what the rule itself has just made.

Which dtype a result has. ``Tensor(array)`` keeps the dtype of its source; what an op makes of it is decided where the
op is entered, by this table, and nowhere else. *Default* is float32, as in needle.init and needle.nn.

| operands                                           | result                                                     |
|----------------------------------------------------|------------------------------------------------------------|
| floats                                             | the wider of them                                          |
| a float, and integers or bools                     | the float's dtype, however wide the integers are           |
| a float and a Python or NumPy number               | the float's dtype                                          |
| integers or bools, in + - * ** relu max sum @,     | as in NumPy: an integer dtype, which wraps around          |
| abs min clip maximum minimum where concatenate     |                                                            |
| stack linear conv, and where elements only move    |                                                            |
| integers or bools, and a Python float              | default                                                    |
| integers or bools, in / and in every other formula | default: exp log tanh sigmoid sqrt logsumexp logsoftmax    |
|                                                    | mean var, the norms, the loss (the norms: the dtype of the |
|                                                    | weight)                                                    |
| float16                                            | float16; whatever adds up (sum, mean, var, @, linear, conv,|
|                                                    | the norms, logsumexp, logsoftmax, the loss, and the        |
|                                                    | gradients of all of them) does so in float32 and is        |
|                                                    | rounded once                                               |
| anything, compared                                 | bool                                                       |
| argmax, argmin                                     | int64                                                      |

An op has one dtype for all of its operands, from the start: beside a float bias a linear multiplies floats, and no integers that wrap around.
A gradient has the dtype of its tensor if that is a float; an integer tensor takes its gradient as it comes.

Adding an op is one block here, and a row in the table of whoever checks it.
"""

from __future__ import annotations

import math
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from needle.autograd import (
    Tensor,
    TensorOp,
    TensorTuple,
    TensorTupleOp,
    Value,
    _integer,
    _integers,
    _numbers,
    _numpy,
    _operand,
    _real,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike, NDArray

    Array = NDArray[Any]
    Axes = int | Sequence[int] | None

_sum = np.add.reduce
_max = np.maximum.reduce


# ---------------------------------------------------------------------------------------------------- helpers


def _value(x: Any) -> Any:
    """The ndarray of x in either mode."""
    return x.cached_data if isinstance(x, Value) else x


def _fixed(like: Any, data: Any) -> Any:
    """Data that takes no part in differentiation: a constant Tensor beside Tensors, an ndarray beside
    ndarrays.
    """
    return Tensor.make_const(np.asarray(data)) if isinstance(like, Tensor) else data


def _number(scalar: Any) -> Any:
    """A Python number: unlike a NumPy scalar it adopts the dtype of the array beside it."""
    if isinstance(scalar, _numpy) and scalar.size == 1:
        scalar = scalar.item()
    if not isinstance(scalar, _numbers):
        raise TypeError(f"a scalar operand must be a real number, but got {scalar!r}")
    return scalar


_DEFAULT = np.dtype(np.float32)
_HALF = np.dtype(np.float16)


def _float(x: Any) -> Any:
    """x as an operand of a formula with fractions."""
    return x if x.dtype.kind == "f" else x.astype(_DEFAULT)


def _wide(x: Any) -> Any:
    """x as an operand of a formula that adds up: a float, and not float16."""
    return x if x.dtype.kind == "f" and x.dtype is not _HALF else x.astype(_DEFAULT)


def _beside(x: Any, scalar: float) -> Any:
    """x as an operand beside a Python number."""
    return _float(x) if type(scalar) is float else x


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands of different dtypes: beside a float, integers and bools take its dtype. The rest is NumPy's."""
    if a.dtype.kind == "f":
        return a, b if b.dtype.kind == "f" else b.astype(a.dtype)
    return a.astype(b.dtype) if b.dtype.kind == "f" else a, b


def _axes(axes: Axes, ndim: int, op: str) -> tuple[int, ...]:
    """Axes as a tuple of numbers in 0..ndim-1; None means all."""
    if axes is None:
        return tuple(range(ndim))
    given = (axes,) if isinstance(axes, _integers) else tuple(axes)
    for axis in given:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{op}: axis {axis} does not exist in {ndim} dimensions; use {-ndim}..{ndim - 1}")
    places = tuple(int(axis) % ndim for axis in given)
    if len(set(places)) != len(places):
        raise ValueError(f"{op}: axes {given} name an axis twice")
    return places


def _index(value: Any, what: str) -> int:
    """A whole number, negative ones too."""
    return _integer(value, what, -(2**31))


def _own(axes: Axes) -> int | tuple[int, ...] | None:
    """Axes to keep: not a list, which its owner may change."""
    return axes if axes is None or isinstance(axes, _integers) else tuple(axes)


def _kept(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The shape with 1 in place of the axes."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _sum_kept(x: Any, axes: tuple[int, ...]) -> Any:
    """Sum over the axes and keep them with size 1."""
    if isinstance(x, Tensor):
        return reshape(summation(x, axes), _kept(x.shape, axes))
    return _add_up(x, axes).reshape(_kept(x.shape, axes))


def _reduced(g: Any, shape: tuple[int, ...]) -> Any:
    """Undo broadcasting: sum g over the axes along which ``shape`` was repeated."""
    if g.shape == shape:
        return g
    lead = len(g.shape) - len(shape)
    axes = tuple(i for i, n in enumerate(g.shape) if i < lead or (shape[i - lead] == 1 and n != 1))
    total = Summation(axes).on(g)
    return total if total.shape == shape else Reshape(shape).on(total)


def _swapped(x: Any) -> Any:
    """The last two axes swapped."""
    if isinstance(x, Tensor):
        return transpose(x)
    return x.T if x.ndim == 2 else x.swapaxes(-1, -2)


_ZERO = np.zeros((), np.float32)  # as an operand it is half the price of a Python number


@lru_cache(maxsize=64)
def _scalars(dtype: Any, *values: float) -> list[Array]:
    """Numbers as arrays without dimensions, for the same reason; beside integers they are float64."""
    return [np.array(value, dtype if dtype.kind == "f" else np.float64) for value in values]


@lru_cache(maxsize=8)
def _zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    zeros = np.zeros(shape, dtype)
    zeros.flags.writeable = False
    return zeros


@lru_cache(maxsize=8)
def _rows(n: int, m: int) -> tuple[Array, Array, frozenset[int]]:
    """Of (n, m): where the rows start in the flattened array, (n,) and (n, 1), and the numbers of the columns."""
    starts = np.arange(0, n * m, m)
    return starts, starts.reshape(n, 1), frozenset(range(m))


@lru_cache(maxsize=32)
def _ones(shape: tuple[int, ...], dtype: Any) -> Array:
    ones = np.ones(shape, dtype)
    ones.flags.writeable = False
    return ones


# A product with ones, and a sum across rows, add one number after the other: what is longer is added up in blocks, or the
# mean of 10^6 float32 numbers is off by 2e-4.
_LONG, _BLOCK = 1024, 128
_FEW_CLASSES = 64  # in a row: its maximum is then faster along the columns of a copy
_FEW_ROWS = 32  # so few of so few classes are looked at one by one, by `_rows`
_ZEROS = 32_768  # elements: up to here `relu` has zeros at hand to compare with


def _add_up(a: Array, axes: tuple[int, ...]) -> Any:
    """The sum over the axes. Along numbers that lie side by side NumPy adds in blocks by itself."""
    if len(axes) == a.ndim and a.flags.c_contiguous:
        return _sum(a, axes)
    for axis in axes:
        n = a.shape[axis]
        if n > _LONG and a.strides[axis] != a.itemsize:
            first = np.moveaxis(a, axis, 0)
            blocks = first[: n - n % _BLOCK].reshape(n // _BLOCK, _BLOCK, *first.shape[1:])
            sums = np.concatenate([_sum(blocks, 1), _sum(first[n - n % _BLOCK :], 0, keepdims=True)])
            return _add_up(np.moveaxis(sums, 0, axis), axes)
    return _sum(a, axes)


def _column_sums_like(x: Any) -> Callable[[Any], Any]:
    """What sums the columns of matrices like x: (n, m) -> (m,).

    A product with ones, because it costs a quarter of the sum on small matrices. In both modes, because a mean that is
    rounded in another way on the way back than it was on the way there does not cancel.
    """
    if x.shape[0] > _LONG:
        return Summation((0,)).on
    return _sum_columns if isinstance(x, Tensor) else _ones((x.shape[0],), x.dtype).dot


def _sum_columns(x: Tensor) -> Tensor:
    n, m = x.shape
    if n > _LONG:
        return summation(x, (0,))
    ones = Tensor.make_const(_ones((1, n), x.dtype))
    return reshape(ones @ x, (m,))


def _column_sums(x: Any) -> Any:
    """(n, m) -> (m,)."""
    return _column_sums_like(x)(x)


def _row_of_sums_like(x: Array) -> Callable[[Array], Any]:
    """What sums the columns of matrices like x into a row: (n, m) -> (1, m)."""
    n = len(x)
    return _ones((1, n), x.dtype).dot if n <= _LONG else lambda rows: _column_sums(rows).reshape(1, -1)


def _row_sums_like(x: Any) -> Callable[[Any], Any]:
    """What sums the rows of arrays like x: (..., m) -> (..., 1). As a product, for the same reasons."""
    return _sums_of_rows(x.shape[-1], x.ndim == 2, x.dtype)


@lru_cache(maxsize=32)
def _sums_of_rows(m: int, of_matrices: bool, dtype: Any) -> Callable[[Any], Any]:
    if m > _LONG:
        return lambda rows: _sum_kept(rows, (len(rows.shape) - 1,))
    ones = np.ones((m, 1), dtype)
    if of_matrices:
        return lambda rows: rows.dot(ones)
    return lambda rows: Reshape((*rows.shape[:-1], 1)).on(_as_matrix(rows).dot(ones))


def _row_maxima(x: Any) -> Any:
    """(n, m) -> (n, 1). Of short rows, few by their places and many along the columns of a copy: in a third of the time."""
    n, m = x.shape
    if m > _FEW_CLASSES:
        return _max(x, 1, keepdims=True)
    if n > _FEW_ROWS:
        return _max(x.T.copy(), 0)[:, None]
    return x.take(_rows(n, m)[1] + x.argmax(1, keepdims=True))


def _as_matrix(x: Any) -> Any:
    """(..., m) -> (n, m)."""
    shape = x.shape
    return x if len(shape) == 2 else Reshape((math.prod(shape[:-1]), shape[-1])).on(x)


def _no_broadcast(op: str, a: Any, b: Any) -> ValueError:
    return ValueError(
        f"{op}: shapes {a.shape} and {b.shape} do not broadcast; aligned at the right, sizes must be equal or 1"
    )


def _both(op: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two operands as Tensors; either may be an array or a number, which does not change the dtype of the result."""
    if isinstance(a, Tensor):
        pair = a, a._beside(b)
    elif isinstance(b, Tensor):
        pair = b._beside(a), b
    elif isinstance(a, (*_numpy, *_numbers)):
        return _both(op, Tensor(a, dtype=_DEFAULT if type(a) is float else None, requires_grad=False), b)
    else:
        pair = NotImplemented, b
    for x, given in zip(pair, (a, b), strict=True):
        if x is NotImplemented:
            raise TypeError(f"{op} takes Tensors, arrays of numbers and numbers, but got {type(given).__name__}")
    return pair


class _Shapes:
    """An op whose rule looks at shapes and dtypes, and at no numbers."""

    def looks_at(self, needs: Sequence[bool], tensors: bool) -> tuple[Sequence[bool], bool]:
        return [False] * len(needs), False


class _Written(NamedTuple):
    """How a plan (chain.py) writes an op down where x is a matrix and the operands are float32, as x is, or float64 after a
    layer of that dtype: compute and vjp without the questions.
    """

    ahead: tuple[str, ...]  # x becomes the result y, of operands {0} and {1} of a {layer}; the last line is for a {1}
    back: tuple[str, ...]  # g becomes the gradient of x
    keeps: tuple[str, ...]  # what they look at: "x" or "y", or what the way ahead gives to {these} names
    operands: tuple[str, ...] = ()  # what each operand gets
    once: str = ""  # what {once} is: the same for all x of one shape
    first: tuple[str, ...] = ()  # before that of the operands: what it and the way back share
    matrix: bool = False  # whether {0} is a matrix and {1} a row, and not both of them one-dimensional


class _Product:
    """An op of two factors, and perhaps a bias, whose rule needs of each factor's numbers those of the other."""

    def looks_at(self, needs: Sequence[bool], tensors: bool) -> tuple[Sequence[bool], bool]:
        return (needs[1], needs[0], False)[: len(needs)], False


def _in_one_dtype(sums: Callable[[Any, Array, Array], Any]) -> Callable[[Any, Array, Array], Any]:
    """A method that sums products: of two factors of one dtype, and in half precision in single, rounded once."""

    @wraps(sums)
    def method(self: Any, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        if a.dtype is _HALF and b.dtype is _HALF:
            return sums(self, _wide(a), _wide(b)).astype(_HALF)
        return sums(self, a, b)

    return method


# ------------------------------------------------------------------------------------------------ elementwise


class EWiseAdd(TensorOp):
    """a + b; shapes broadcast."""

    reads_inputs = False
    reads_result = False

    def compute(self, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        try:
            return a + b
        except ValueError:
            raise _no_broadcast("add", a, b) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: da = g, db = g."""
        return _reduced(g, a.shape) if needs[0] else None, _reduced(g, b.shape) if needs[1] else None


_ewise_add = EWiseAdd()


def add(a: Tensor, b: Tensor) -> Tensor:
    """Sum: two broadcastable shapes -> their common shape."""
    return Tensor.make_from_op(_ewise_add, (a, b))


class AddScalar(TensorOp):
    """a + scalar."""

    reads_inputs = False
    reads_result = False

    def __init__(self, scalar: float) -> None:
        self.scalar = _number(scalar)

    def compute(self, a: Array) -> Any:
        return _beside(a, self.scalar) + self.scalar

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g."""
        return (g,)


def add_scalar(a: Tensor, scalar: float) -> Tensor:
    """Sum with a number: any shape -> same shape."""
    return AddScalar(scalar)(a)


class EWiseMul(_Product, TensorOp):
    """a * b; shapes broadcast."""

    reads_result = False

    def compute(self, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        try:
            return a * b
        except ValueError:
            raise _no_broadcast("multiply", a, b) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: da = g b, db = g a."""
        return _reduced(g * b, a.shape) if needs[0] else None, _reduced(g * a, b.shape) if needs[1] else None


_ewise_mul = EWiseMul()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise product: two broadcastable shapes -> their common shape."""
    return Tensor.make_from_op(_ewise_mul, (a, b))


class MulScalar(TensorOp):
    """a * scalar."""

    reads_inputs = False
    reads_result = False

    def __init__(self, scalar: float) -> None:
        self.scalar = _number(scalar)

    def compute(self, a: Array) -> Any:
        return _beside(a, self.scalar) * self.scalar

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g scalar."""
        return (g * self.scalar,)


def mul_scalar(a: Tensor, scalar: float) -> Tensor:
    """Product with a number: any shape -> same shape."""
    return MulScalar(scalar)(a)


def _fractions(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands of a formula with fractions."""
    if a.dtype is not b.dtype:
        a, b = _alike(a, b)
    return _float(a), _float(b)


class EWiseDiv(TensorOp):
    """a / b; shapes broadcast."""

    def looks_at(self, needs: Sequence[bool], tensors: bool) -> tuple[Sequence[bool], bool]:
        """Never a itself."""
        return (False, True), needs[1]

    def compute(self, a: Array, b: Array) -> Any:
        a, b = _fractions(a, b)
        try:
            return a / b
        except ValueError:
            raise _no_broadcast("divide", a, b) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: da = g / b, db = -g (y / b): g / b overflows where b is tiny, also where y is 0."""
        _, b = _fractions(a, b)
        return _reduced(g / b, a.shape) if needs[0] else None, _reduced(-(g * (y / b)), b.shape) if needs[1] else None


_ewise_div = EWiseDiv()


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise quotient: two broadcastable shapes -> their common shape."""
    return _ewise_div(a, b)


class DivScalar(TensorOp):
    """a / scalar."""

    reads_inputs = False
    reads_result = False

    def __init__(self, scalar: float) -> None:
        self.scalar = _number(scalar)

    def compute(self, a: Array) -> Any:
        return _float(a) / self.scalar

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g / scalar."""
        return (g / self.scalar,)


def divide_scalar(a: Tensor, scalar: float) -> Tensor:
    """Quotient by a number: any shape -> same shape."""
    return DivScalar(scalar)(a)


class EWisePow(TensorOp):
    """a ** b; shapes broadcast."""

    def compute(self, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        try:
            return a**b
        except ValueError:
            if a.dtype.kind in "iu" and b.dtype.kind in "iu":
                raise  # NumPy says what is wrong with negative powers of integers
            raise _no_broadcast("power", a, b) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: da = g b a^(b-1), db = g y log a; at a = 0 with b >= 0 their limits, and not 0 * inf.

        For b = 0 da is 0 also where a is nan, or so small that 1 / a overflows.
        """
        g, y, (a, b) = _float(g), _float(y), _fractions(a, b)
        if a.dtype is not b.dtype:  # b - 1 must not be rounded as the narrower of them
            a, b = a.astype(y.dtype), b.astype(y.dtype)
        at_zero = _value(a) == 0
        da = db = None
        if needs[0]:
            inverted = np.abs(_value(a)) > 1 / np.finfo(a.dtype).max  # not where it is nan
            da = _reduced(g * b * a ** (b - 1 + _fixed(a, ~inverted & (_value(b) == 0))), a.shape)
        if needs[1]:
            db = _reduced(g * y * _log.on(a + _fixed(a, at_zero & (_value(b) >= 0))), b.shape)
        return da, db


_ewise_pow = EWisePow()


def power(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise power: two broadcastable shapes -> their common shape."""
    return _ewise_pow(a, b)


class PowerScalar(TensorOp):
    """a ** scalar, for any real scalar."""

    def __init__(self, scalar: float) -> None:
        self.scalar = _number(scalar)

    def compute(self, a: Array) -> Any:
        return _beside(a, self.scalar) ** self.scalar

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g n a^(n-1); 0 for n = 0, also at a = 0."""
        n = self.scalar
        if n == 0:
            return (_fixed(g, np.zeros_like(_value(g))),)
        return (_float(g) * (n * _float(a) ** (n - 1)),)


def power_scalar(a: Tensor, scalar: float) -> Tensor:
    """Power with a number as exponent: any shape -> same shape."""
    return PowerScalar(scalar)(a)


class Negate(TensorOp):
    """-a."""

    reads_inputs = False
    reads_result = False

    def compute(self, a: Array) -> Any:
        return -a

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = -g."""
        return (-g,)


_negate = Negate()


def negate(a: Tensor) -> Tensor:
    """Negative: any shape -> same shape."""
    return _negate(a)


class Log(TensorOp):
    """Natural logarithm."""

    def compute(self, a: Array) -> Any:
        return np.log(_float(a))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g / a."""
        return (g / _float(a),)


_log = Log()


def log(a: Tensor) -> Tensor:
    """Natural logarithm: any shape -> same shape."""
    return _log(a)


class Exp(TensorOp):
    """e to the power of a."""

    reads_inputs = False

    def compute(self, a: Array) -> Any:
        return np.exp(_float(a))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g y."""
        return (g * y,)


_exp = Exp()


def exp(a: Tensor) -> Tensor:
    """Exponential: any shape -> same shape."""
    return _exp(a)


class ReLU(TensorOp):
    """max(a, 0), with gradient 0 at 0; where a is nan it passes, as in torch."""

    reads_inputs = False

    def compute(self, a: Array) -> Any:
        # Against zeros of its own shape the maximum takes a third of the time that it takes against a number.
        return np.maximum(a, _zeros(a.shape, a.dtype) if a.size <= _ZEROS else a.dtype.type(0))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g where y, which is not negative, is not 0, else 0."""
        da = _fixed(g, (_value(y) != _ZERO).astype(g.dtype))  # faster than g times the mask as it is
        da *= g
        return (da,)

    written = _Written(
        ("x = _maximum(x, {once})",),
        ("dx = (y != _ZERO).astype(g.dtype)", "g = _multiply(dx, g, dx)", "del dx"),
        ("y",),
        once="_zeros(x.shape, x.dtype) if x.size <= _ZEROS else 0",
    )


_relu = ReLU()


def relu(a: Tensor) -> Tensor:
    """Rectifier max(a, 0): any shape -> same shape."""
    return Tensor.make_from_op(_relu, (a,))


class Tanh(TensorOp):
    """Hyperbolic tangent."""

    reads_inputs = False

    def compute(self, a: Array) -> Any:
        return np.tanh(_float(a))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g (1 - y^2)."""
        return (g * (1 - y * y),)

    written = _Written(("x = _tanh(x)",), ("g = g * (1 - y * y)",), ("y",))


_tanh = Tanh()


def tanh(a: Tensor) -> Tensor:
    """Hyperbolic tangent: any shape -> same shape."""
    return _tanh(a)


class Sigmoid(TensorOp):
    """1 / (1 + exp(-a)), without overflow and precise in both tails."""

    reads_inputs = False

    def compute(self, a: Array) -> Any:
        dtype = _float(a).dtype
        a = _wide(a)
        e = np.exp(-np.abs(a))
        return (np.where(a >= 0, 1, e) / (1 + e)).astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g y (1 - y)."""
        return (g * (y * (1 - y)),)


_sigmoid = Sigmoid()


def sigmoid(a: Tensor) -> Tensor:
    """Logistic function 1 / (1 + exp(-a)): any shape -> same shape."""
    return _sigmoid(a)


class Softplus(TensorOp):
    """ln(1 + exp(a)) as max(a, 0) + ln(1 + exp(-|a|)), without overflow."""

    reads_result = False

    def compute(self, a: Array) -> Any:
        dtype = _float(a).dtype
        a = _wide(a)
        return (np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a)))).astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g / (1 + exp(-a))."""
        return (g * _sigmoid.on(a),)


_softplus = Softplus()


def softplus(a: Tensor) -> Tensor:
    """Softplus, ln(1 + exp(a)): any shape -> same shape."""
    return _softplus(a)


class Abs(TensorOp):
    """|a|, with gradient 0 at 0."""

    reads_result = False

    def compute(self, a: Array) -> Any:
        return np.abs(a)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g where a > 0, -g where a < 0, else 0."""
        g, a = _float(g), _value(a)
        return (g * _fixed(g, (a > 0).astype(g.dtype) - (a < 0)),)


_absolute = Abs()


def absolute(a: Tensor) -> Tensor:
    """Absolute value: any shape -> same shape."""
    return _absolute(a)


class Sqrt(TensorOp):
    """Square root."""

    reads_inputs = False

    def compute(self, a: Array) -> Any:
        return np.sqrt(_float(a))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g / (2 y)."""
        return (g / (2 * y),)


_sqrt = Sqrt()


def sqrt(a: Tensor) -> Tensor:
    """Square root: any shape -> same shape."""
    return _sqrt(a)


class Clip(TensorOp):
    """a, but at least low and at most high; None is no limit. Where a is a limit, the gradient passes."""

    reads_result = False

    def __init__(self, low: float | None, high: float | None) -> None:
        self.low, self.high = _limit("low", low), _limit("high", high)
        if low is None and high is None:
            raise TypeError("clip needs a limit: low, high or both")

    def compute(self, a: Array) -> Any:
        for limit in (self.low, self.high):
            a = _beside(a, limit) if limit is not None else a
        low, high = self.low, self.high
        if a.dtype.kind in "iu":  # NumPy refuses a limit out of range of the dtype, also one that limits nothing
            low = None if low is not None and low < np.iinfo(a.dtype).min else low
            high = None if high is not None and high > np.iinfo(a.dtype).max else high
        return a.copy() if low is None and high is None else np.clip(a, low, high)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g where low <= a <= high, else 0."""
        g, a = _float(g), _value(a)
        passes = a == a  # not where it is nan
        if self.low is not None:
            passes = passes & (a >= self.low)
        if self.high is not None:
            passes = passes & (a <= self.high)
        return (Where(passes).on(g, _zero(g)),)


def _limit(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, _numpy) and value.size == 1:
        value = value.item()
    if not isinstance(value, _numbers):
        raise TypeError(
            f"clip: {name} must be a number, got {type(value).__name__}: "
            "for limits that differ from element to element write needle.minimum(needle.maximum(x, low), high)"
        )
    if math.isnan(value):
        raise ValueError(f"clip: {name} must not be nan")
    return value


def clip(a: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """a, but at least low and at most high (None = no limit): any shape -> same shape."""
    return Clip(low, high)(a)


class Maximum(TensorOp):
    """The larger of a and b; shapes broadcast, and where both are equal they share the gradient equally."""

    reads_result = False
    _name = "maximum"
    _better: Any = np.maximum
    _loses: Any = np.less

    def compute(self, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        try:
            return self._better(a, b)
        except ValueError:
            raise _no_broadcast(self._name, a, b) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: g goes to the one that was taken, and half of it to each where they are equal."""
        shapes = a.shape, b.shape
        g, (a, b) = _float(g), _alike(_value(a), _value(b))
        shared = g * _fixed(g, np.where(a == b, 0.5, 1).astype(g.dtype))
        da = db = None
        if needs[0]:
            da = _reduced(Where(self._loses(a, b)).on(_zero(g), shared), shapes[0])
        if needs[1]:
            db = _reduced(Where(self._loses(b, a)).on(_zero(g), shared), shapes[1])
        return da, db


_maximum = Maximum()


def maximum(a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """The larger of each two elements: two broadcastable shapes -> their common shape."""
    return _maximum(*_both("maximum", a, b))


class Minimum(Maximum):
    """The smaller of a and b; shapes broadcast, and where both are equal they share the gradient equally."""

    _name = "minimum"
    _better = np.minimum
    _loses = np.greater


_minimum = Minimum()


def minimum(a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """The smaller of each two elements: two broadcastable shapes -> their common shape."""
    return _minimum(*_both("minimum", a, b))


class Where(_Shapes, TensorOp):
    """a where the condition, an array of bools that nobody writes to, is true, and b elsewhere; shapes broadcast."""

    def __init__(self, condition: Array) -> None:
        self.condition = condition

    def compute(self, a: Array, b: Array) -> Any:
        if a.dtype is not b.dtype:
            a, b = _alike(a, b)
        try:
            return np.where(self.condition, a, b)
        except ValueError:
            raise ValueError(
                f"where: a condition of shape {self.condition.shape} and shapes {a.shape} and {b.shape} do not "
                "broadcast; aligned at the right, sizes must be equal or 1"
            ) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: g goes to the one that was taken."""
        g = _float(g)
        return (
            _reduced(self.on(g, _zero(g)), a.shape) if needs[0] else None,
            _reduced(self.on(_zero(g), g), b.shape) if needs[1] else None,
        )


def _zero(like: Any) -> Any:
    return _fixed(like, np.zeros((), like.dtype))


def where(condition: Tensor | Array | bool, a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """a where the condition is true, b elsewhere: three broadcastable shapes -> their common shape.

    No gradient flows to the condition, which holds bools: ``where(x > 0, x, 0.0)``.
    """
    chosen = np.array(_value(condition))  # a copy: its owner may change it before the gradient is asked for
    if chosen.dtype.kind != "b":
        raise TypeError(f"where: the condition must be bools, but got dtype {chosen.dtype}: compare, as in x != 0")
    return Where(chosen)(*_both("where", a, b))


class Cast(_Shapes, TensorOp):
    """The same numbers in another dtype."""

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = _real(dtype, "cast: a Tensor")

    def compute(self, a: Array) -> Any:
        return a.astype(self.dtype)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g in the dtype of a; integers would lose its fractions."""
        return (g.astype(a.dtype) if a.dtype.kind == "f" else g,)


def cast(a: Tensor, dtype: DTypeLike) -> Tensor:
    """Convert to another dtype: any shape -> same shape."""
    return Cast(dtype)(a)


# ------------------------------------------------------------------------------------------------------ shape


class Transpose(_Shapes, TensorOp):
    """Swap a pair of axes; None = the last two."""

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        self.axes = None if axes is None else tuple(axes)
        if self.axes is not None and len(self.axes) != 2:
            raise ValueError(f"transpose swaps a pair of axes, but got axes={self.axes}")

    def compute(self, a: Array) -> Any:
        if self.axes is None:
            if a.ndim < 2:
                raise ValueError(f"transpose needs at least 2 dimensions, but the shape is {a.shape}")
            return a.swapaxes(-1, -2)
        for axis in self.axes:
            _axes(axis, a.ndim, "transpose")
        return a.swapaxes(*self.axes)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = the same swap of g."""
        return (self.on(g),)


def transpose(a: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Swap a pair of axes (None = the last two): (..., n, m) -> (..., m, n)."""
    return Transpose(axes)(a)


class Reshape(_Shapes, TensorOp):
    """The same elements in another shape; one size may be -1."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        self.shape = (int(shape),) if isinstance(shape, _integers) else tuple(shape)

    def compute(self, a: Array) -> Any:
        try:
            return a.reshape(self.shape)
        except ValueError:
            raise ValueError(f"reshape: the {a.size} elements of shape {a.shape} do not fill {self.shape}") from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g in the shape of a."""
        return (Reshape(a.shape).on(g),)


def reshape(a: Tensor, shape: int | Sequence[int]) -> Tensor:
    """Give another shape to the same elements: any shape -> shape."""
    return Reshape(shape)(a)


class BroadcastTo(_Shapes, TensorOp):
    """Repeat along new leading axes and axes of size 1."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        self.shape = (int(shape),) if isinstance(shape, _integers) else tuple(shape)

    def compute(self, a: Array) -> Any:
        try:
            return np.broadcast_to(a, self.shape)
        except ValueError:
            raise ValueError(
                f"broadcast_to: shape {a.shape} does not broadcast to {self.shape}; "
                "aligned at the right, sizes must be equal or 1"
            ) from None

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g summed over the axes that were repeated."""
        return (_reduced(g, a.shape),)


def broadcast_to(a: Tensor, shape: int | Sequence[int]) -> Tensor:
    """Repeat along new leading axes and axes of size 1: any broadcastable shape -> shape."""
    return BroadcastTo(shape)(a)


class GetItem(_Shapes, TensorOp):
    """a[index], for every index that NumPy takes."""

    def __init__(self, index: Any) -> None:
        self.index = tuple(map(_index_of, index)) if isinstance(index, tuple) else _index_of(index)

    def compute(self, a: Array) -> Any:
        return a[self.index]

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = zeros with g added at the index."""
        return (PutItem(a.shape, self.index).on(g),)


def _index_of(part: Any) -> Any:
    """A part of an index to keep: an array is copied, because its owner may change it before the gradient is asked for.

    A list, a tuple in a tuple, a range and all else that has a length is an array to NumPy, and may name a place twice.
    """
    if hasattr(part, "__len__"):
        part = np.array(part, dtype=None if len(np.shape(part)) == 0 or len(part) else np.intp)
    return part


def get_item(a: Tensor, index: Any) -> Tensor:
    """Index or slice: any shape -> the shape that NumPy gives to a[index]."""
    return GetItem(index)(a)


class PutItem(_Shapes, TensorOp):
    """Zeros of a shape with a added at an index: the gradient of GetItem, and padding and dilation."""

    def __init__(self, shape: Sequence[int], index: Any) -> None:
        self.shape = tuple(shape)
        self.index = tuple(map(_index_of, index)) if isinstance(index, tuple) else _index_of(index)

    def compute(self, a: Array) -> Any:
        out = np.zeros(self.shape, a.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if any(isinstance(part, np.ndarray) for part in parts):
            wide = out.astype(_DEFAULT) if a.dtype is _HALF else out
            np.add.at(wide, self.index, a)  # an array of numbers may name a place twice
            out = wide.astype(a.dtype, copy=False)
        else:
            out[self.index] = a
        return out

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g at the index."""
        return (GetItem(self.index).on(g),)


def put_item(a: Tensor, shape: Sequence[int], index: Any) -> Tensor:
    """Zeros with a added at an index: the shape of zeros[index] -> shape."""
    return PutItem(shape, index)(a)


class Flip(_Shapes, TensorOp):
    """Reverse the order along axes; None = all."""

    def __init__(self, axes: Axes = None) -> None:
        self.axes = _own(axes)

    def compute(self, a: Array) -> Any:
        return np.flip(a, _axes(self.axes, a.ndim, "flip"))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = the same flip of g."""
        return (self.on(g),)


def flip(a: Tensor, axes: Axes = None) -> Tensor:
    """Reverse the order along axes (None = all): any shape -> same shape."""
    return Flip(axes)(a)


class Dilate(_Shapes, TensorOp):
    """Put ``dilation`` zeros after each element along the axes."""

    def __init__(self, axes: Axes, dilation: int) -> None:
        dilation = _integer(dilation, "dilate: dilation", 0)
        self.axes = _own(axes)
        self.dilation = dilation

    def _places(self, shape: Sequence[int]) -> tuple[slice, ...]:
        axes = _axes(self.axes, len(shape), "dilate")
        return tuple(slice(None, None, self.dilation + 1 if i in axes else None) for i in range(len(shape)))

    def compute(self, a: Array) -> Any:
        axes = _axes(self.axes, a.ndim, "dilate")
        shape = [n * (self.dilation + 1) if i in axes else n for i, n in enumerate(a.shape)]
        return PutItem(shape, self._places(a.shape)).compute(a)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g at the places of the elements."""
        return (GetItem(self._places(a.shape)).on(g),)


def dilate(a: Tensor, axes: Axes, dilation: int) -> Tensor:
    """Put ``dilation`` zeros after each element along axes of size n: n -> n * (dilation + 1)."""
    return Dilate(axes, dilation)(a)


# ------------------------------------------------------------------------------------------------- reductions


class Summation(_Shapes, TensorOp):
    """Sum over axes (None = all), which are dropped."""

    def __init__(self, axes: Axes = None) -> None:
        self.axes = _own(axes)

    def compute(self, a: Array) -> Any:
        axes = _axes(self.axes, a.ndim, "summation")
        return _add_up(a, axes) if a.dtype is not _HALF else np.asarray(_add_up(_wide(a), axes)).astype(_HALF)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g repeated along the axes."""
        kept = _kept(a.shape, _axes(self.axes, len(a.shape), "summation"))
        return (BroadcastTo(a.shape).on(Reshape(kept).on(g)),)


def summation(a: Tensor, axes: Axes = None) -> Tensor:
    """Sum over axes (None = all): any shape -> the shape without the axes."""
    return Summation(axes)(a)


class Max(TensorOp):
    """Largest element over axes (None = all), which are dropped; ties share the gradient equally."""

    _name = "max"
    _extreme: Any = _max

    def __init__(self, axes: Axes = None) -> None:
        self.axes = _own(axes)

    def compute(self, a: Array) -> Any:
        axes = _axes(self.axes, a.ndim, self._name)
        if not math.prod(a.shape[i] for i in axes):
            raise ValueError(f"{self._name} over axes {axes} needs at least one element, but the shape is {a.shape}")
        return self._extreme(a, axes)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g / k at each of the k extreme elements, else 0."""
        axes = _axes(self.axes, len(a.shape), self._name)
        kept = _kept(a.shape, axes)
        taken = _value(a) == _value(y).reshape(kept)
        share = taken / _sum(taken, axes, keepdims=True)
        g = _float(g)
        return (Reshape(kept).on(g) * _fixed(g, share.astype(g.dtype)),)


def amax(a: Tensor, axes: Axes = None) -> Tensor:
    """Largest element over axes (None = all): any shape -> the shape without the axes."""
    return Max(axes)(a)


class Min(Max):
    """Smallest element over axes (None = all), which are dropped; ties share the gradient equally."""

    _name = "min"
    _extreme = np.minimum.reduce


def amin(a: Tensor, axes: Axes = None) -> Tensor:
    """Smallest element over axes (None = all): any shape -> the shape without the axes."""
    return Min(axes)(a)


def argmax(a: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where along an axis (None = in the flattened tensor) the largest element is, the first of them: a constant.

    Any shape -> the shape without the axis, int64.
    """
    return _place_of("argmax", np.argmax, a, axis, keepdims)


def argmin(a: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where along an axis (None = in the flattened tensor) the smallest element is, the first of them: a constant.

    Any shape -> the shape without the axis, int64.
    """
    return _place_of("argmin", np.argmin, a, axis, keepdims)


def _place_of(op: str, find: Any, a: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    if axis is not None and not isinstance(axis, _integers):
        raise TypeError(f"{op}: axis must be an integer or None, got axis={axis!r}")
    axes = _axes(axis, a.ndim, op)
    if not math.prod(a.shape[i] for i in axes):
        raise ValueError(f"{op} over axes {axes} needs at least one element, but the shape is {a.shape}")
    return Tensor.make_const(np.asarray(find(a.cached_data, axis, keepdims=keepdims), np.int64))


class Var(TensorOp):
    """Sum of the squared deviations from the mean over axes (None = all), which are dropped, by n - correction.

    From centred values. NumPy's default is needle's: correction=0, the variance of the numbers themselves. (torch's is
    correction=1, the estimate of the variance of what they were drawn from.)
    """

    reads_result = False

    def __init__(self, axes: Axes = None, correction: float = 0) -> None:
        self.axes = _own(axes)
        self.correction = _number(correction)
        if not 0 <= self.correction < math.inf:
            raise ValueError(f"var: correction must be finite and not negative, got correction={correction}")

    def _centred(self, a: Any) -> tuple[Any, tuple[int, ...], Any]:
        """a without its mean, the axes, and what the sum of squares is divided by."""
        axes = _axes(self.axes, len(a.shape), "var")
        n = math.prod(a.shape[i] for i in axes)
        if n <= self.correction:
            raise ValueError(
                f"var over axes {axes} needs more than correction={self.correction} elements, but the shape is {a.shape}"
            )
        return a - Reshape(_kept(a.shape, axes)).on(Summation(axes).on(a)) / n, axes, n - self.correction

    def compute(self, a: Array) -> Any:
        dtype = _float(a).dtype
        centred, axes, n = self._centred(_wide(a))
        return np.asarray(_add_up(np.asarray(centred * centred), axes) / n).astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = 2 g (a - mean) / (n - correction)."""
        centred, axes, n = self._centred(_wide(a))
        return (Reshape(_kept(a.shape, axes)).on(_wide(g)) * (2 / n) * centred,)


def var(a: Tensor, axes: Axes = None, correction: float = 0) -> Tensor:
    """Variance over axes (None = all), by n - correction: any shape -> the shape without the axes."""
    return Var(axes, correction)(a)


class LogSumExp(TensorOp):
    """log(sum(exp(a))) over axes (None = all), which are dropped; shifted by the maximum, so that nothing
    overflows.
    """

    def __init__(self, axes: Axes = None) -> None:
        self.axes = _own(axes)

    def compute(self, a: Array) -> Any:
        axes = _axes(self.axes, a.ndim, "logsumexp")
        if not math.prod(a.shape[i] for i in axes):
            raise ValueError(f"logsumexp over axes {axes} needs at least one element, but the shape is {a.shape}")
        dtype = _float(a).dtype
        a = _wide(a)
        top = _max(a, axes, keepdims=True)
        top = np.where(np.isfinite(top), top, 0)  # inf - inf would be nan
        total = _add_up(np.exp(a - top), axes)
        with np.errstate(divide="ignore"):  # log(0) = -inf is right where everything is -inf
            return np.asarray(np.log(total) + top.reshape(np.shape(total))).astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g exp(a - y), the softmax; y depends on a too, which the second derivative needs."""
        if a.dtype is not y.dtype or a.dtype is _HALF:  # y was rounded, or a has to be converted
            a = _wide(a)
            y = self.on(a)
        kept = Reshape(_kept(a.shape, _axes(self.axes, len(a.shape), "logsumexp")))
        return (kept.on(g) * _exp.on(a - kept.on(y)),)


def logsumexp(a: Tensor, axes: Axes = None) -> Tensor:
    """log(sum(exp(a))) over axes (None = all): any shape -> the shape without the axes."""
    return LogSumExp(axes)(a)


class LogSoftmax(TensorOp):
    """a - logsumexp(a) over axis 1 of a matrix."""

    def compute(self, a: Array) -> Any:
        if a.ndim != 2 or not a.shape[1]:
            raise ValueError(f"logsoftmax needs shape (batch, classes) with at least one class, but got {a.shape}")
        dtype = _float(a).dtype
        a = _wide(a)
        shifted = a - _max(a, 1, keepdims=True)
        return (shifted - np.log(_sum_kept(np.exp(shifted), (1,)))).astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g - softmax(a) * (sum of g over axis 1)."""
        if a.dtype is _HALF:
            g, y = _wide(g), self.on(_wide(a))
        return (g - _exp.on(y) * _sum_kept(g, (1,)),)


_logsoftmax = LogSoftmax()


def logsoftmax(a: Tensor) -> Tensor:
    """Logarithm of the softmax over axis 1: (batch, classes) -> (batch, classes)."""
    return _logsoftmax(a)


class Softmax(TensorOp):
    """e^a / (sum of e^a) along an axis."""

    reads_inputs = False

    def __init__(self, axis: int = -1) -> None:
        self.axis = _index(axis, "softmax: axis")

    def compute(self, a: Array) -> Any:
        (axis,) = _axes(self.axis, a.ndim, "softmax")
        if not a.shape[axis]:
            raise ValueError(f"softmax needs at least one element along axis {self.axis}, but the shape is {a.shape}")
        dtype = _float(a).dtype
        a = _wide(a)
        e = np.exp(a - _max(a, axis, keepdims=True))
        e /= _sum_kept(e, (axis,))
        return e.astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = y (g - sum of g y along the axis)."""
        if y.dtype is _HALF:
            g, y = _wide(g), _wide(y)
        return (y * (g - _sum_kept(g * y, _axes(self.axis, len(y.shape), "softmax"))),)


def softmax(a: Tensor, axis: int = -1) -> Tensor:
    """e^a / (sum of e^a along the axis): any shape -> same shape, positive numbers that add up to 1 along the axis.

    ValueError if there is no such axis, or nothing along it.

    >>> softmax(Tensor([0.0, 0.0]))
    needle.Tensor([0.5, 0.5], requires_grad=True)
    """
    return Softmax(axis)(a)


# --------------------------------------------------------------------------------------------------- products


class MatMul(_Product, TensorOp):
    """Matrix product of the last two axes; the leading ones broadcast."""

    reads_result = False

    @_in_one_dtype
    def compute(self, a: Array, b: Array) -> Any:
        try:
            if a.ndim == b.ndim == 2:
                return a.dot(b)
            if a.ndim >= 2 and b.ndim >= 2:
                return np.matmul(a, b)
        except ValueError:
            pass
        raise ValueError(f"matmul needs (n, k) @ (k, m), but got {a.shape} @ {b.shape}")

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, b: Any) -> tuple[Any, ...]:
        """Rule: da = g b^T, db = a^T g, summed over batch axes that were repeated."""
        if g.dtype is _HALF:
            g, a, b = _wide(g), _wide(a), _wide(b)
        return (
            _reduced(_matmul.on(g, _swapped(b)), a.shape) if needs[0] else None,
            _reduced(_matmul.on(_swapped(a), g), b.shape) if needs[1] else None,
        )


_matmul = MatMul()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product, batch axes broadcast: (..., n, k) @ (..., k, m) -> (..., n, m)."""
    return _matmul(a, b)


class PrecisionWarning(UserWarning):
    """float64 data went into a float32 layer. Given once in a process, at the first place."""


_DOUBLE = np.dtype(np.float64)
_warned = False


def _look_at_dtypes(x: Array, weight: Array) -> None:
    """Warn, once, of what makes a whole float32 model compute in float64: no error, as in the course, but slow."""
    global _warned
    if _warned or x.dtype is not _DOUBLE or weight.dtype is not _DEFAULT:
        return
    import sys  # here, because this happens once at most
    import warnings

    _warned = True
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("needle."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(
        f"float64 data of shape {x.shape} goes into a layer with float32 weights, and all that follows is computed in "
        "float64, in twice the time: convert the data once, as in x.astype('float32') before a loader gets them",
        PrecisionWarning,
        stacklevel=depth,
    )


class Linear(_Product, TensorOp):
    """x W + b in one node."""

    reads_result = False

    def compute(self, x: Array, weight: Array, bias: Array | None = None) -> Any:
        if x.dtype is not weight.dtype:
            _look_at_dtypes(x, weight)
            x, weight = _alike(x, weight)
        if x.dtype is _HALF and weight.dtype is _HALF:
            y = self.compute(_wide(x), _wide(weight), bias)
            narrow = bias is None or bias.dtype.kind != "f"
            return y.astype(_HALF if narrow else np.result_type(_HALF, bias), copy=False)
        try:
            _, out = weight.shape
            y = x.dot(weight)
        except ValueError:
            out = -1
        if out < 0 or not x.ndim:
            raise ValueError(f"linear needs (..., in) @ (in, out), but got {x.shape} @ {weight.shape}")
        if bias is not None:
            if bias.shape != (1, out) and bias.shape != (out,):
                raise ValueError(
                    f"linear needs a bias of shape (1, out) or (out,) for weight {weight.shape}, but got {bias.shape}"
                )
            if y.dtype is not bias.dtype:
                before = y.dtype
                y, bias = _alike(y, bias)
                dtype = np.result_type(y, bias)
                if dtype != before:  # a wider bias, or a float: in the dtype of the result from the start
                    return self.compute(x.astype(dtype), weight.astype(dtype), bias)
            y = np.add(y, bias if y.ndim > 1 else bias.reshape(-1), y)
        return y

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], x: Any, weight: Any, bias: Any = None) -> tuple[Any, ...]:
        """Rule: dx = g W^T, dW = x^T g, db = sum of g over the batch."""
        if g.dtype is _HALF:
            g, x, weight = _wide(g), _wide(x), _wide(weight)
        matrices = g.ndim == 2
        rows = g if matrices else _as_matrix(g)
        dx = dw = db = None
        if needs[0]:
            dx = rows.dot(weight.T)
            if not matrices:
                dx = Reshape(x.shape).on(dx)
        if needs[1]:
            dw = (x if matrices else _as_matrix(x)).T.dot(rows)
        if bias is None:
            return dx, dw
        if needs[2] and isinstance(rows, Tensor):
            db = reshape(_sum_columns(rows), bias.shape)
        elif needs[2]:
            # As in _column_sums; a row of ones as a matrix gives the shape (1, out) at once.
            n = rows.shape[0]
            if n > _LONG:
                return dx, dw, _column_sums(rows).reshape(bias.shape)
            db = _ones((1, n) if bias.ndim == 2 else (n,), rows.dtype).dot(rows)
        return dx, dw, db

    written = _Written(
        ("x = x.dot({0}.cached_data)", "_add(x, {1}.cached_data, x)"),
        ("g = g.dot({0}.cached_data.T)",),
        ("x",),
        ("x.T.dot(g)", "row_of_sums(g)"),
        matrix=True,
    )


_linear = Linear()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map x W + b: (..., in), (in, out), (1, out) or (out,) or None -> (..., out)."""
    return Tensor.make_from_op(_linear, (x, weight) if bias is None else (x, weight, bias))


def _padded(shape: Sequence[int], padding: int) -> tuple[tuple[int, ...], Any]:
    """The shape of padded images, and the index of the images in it."""
    n, h, w, c = shape
    p = padding
    return (n, h + 2 * p, w + 2 * p, c), (slice(None), slice(p, p + h), slice(p, p + w))


def _windows(x: Array, size: Sequence[int], padding: int) -> Array:
    """Every window of padded images: (n, h, w, c) -> (n, h', w', c, kh, kw), a view."""
    padded = PutItem(*_padded(x.shape, padding)).compute(x) if padding else x
    return np.lib.stride_tricks.sliding_window_view(padded, tuple(size), axis=(1, 2))


class Conv(_Product, TensorOp):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning) with stride and zero
    padding.
    """

    def __init__(self, stride: int = 1, padding: int = 0) -> None:
        self.stride = _integer(stride, "conv: stride", 1)
        self.padding = _integer(padding, "conv: padding", 0)

    def compute(self, x: Array, kernel: Array) -> Any:
        if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
            raise ValueError(
                f"conv needs images (n, h, w, c) and a kernel (kh, kw, c, o), but got {x.shape}, {kernel.shape}"
            )
        shape, _ = _padded(x.shape, self.padding)
        if kernel.shape[0] > shape[1] or kernel.shape[1] > shape[2] or not kernel.shape[0] * kernel.shape[1]:
            raise ValueError(f"conv: the kernel {kernel.shape[:2]} does not fit into the padded image {shape[1:3]}")
        _look_at_dtypes(x, kernel)
        return self._sums(x, kernel)

    @_in_one_dtype
    def _sums(self, x: Array, kernel: Array) -> Any:
        windows = _windows(x, kernel.shape[:2], self.padding)[:, :: self.stride, :: self.stride]
        return np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], x: Any, kernel: Any) -> tuple[Any, ...]:
        """Linear in each of x, kernel and g: the rule of each of the three ops consists of the other two."""
        stride, padding = self.stride, self.padding
        return (
            ConvInput(x.shape, stride, padding).on(g, kernel) if needs[0] else None,
            ConvKernel(kernel.shape, stride, padding).on(x, g) if needs[1] else None,
        )


class _ConvBack(_Product):
    """What Conv passes back, in the shape of what it was given."""

    def __init__(self, shape: Sequence[int], stride: int, padding: int) -> None:
        self.shape, self.stride, self.padding = tuple(shape), stride, padding


class ConvInput(_ConvBack, TensorOp):
    """What Conv passes back to its images: each pixel collects from the windows that it was in."""

    @_in_one_dtype
    def compute(self, g: Array, kernel: Array) -> Any:
        shape, inside = _padded(self.shape, self.padding)
        s, (_, rows, columns, _) = self.stride, g.shape
        dx = np.zeros(shape, g.dtype)
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                dx[:, i : i + s * rows : s, j : j + s * columns : s] += np.tensordot(g, kernel[i, j], (3, 1))
        return dx[inside] if self.padding else dx

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any, kernel: Any) -> tuple[Any, ...]:
        """Rule: da = conv(g, kernel), dkernel as in Conv with g as its images."""
        stride, padding = self.stride, self.padding
        return (
            Conv(stride, padding).on(g, kernel) if needs[0] else None,
            ConvKernel(kernel.shape, stride, padding).on(g, a) if needs[1] else None,
        )


class ConvKernel(_ConvBack, TensorOp):
    """What Conv passes back to its kernel: each place of it collects from all windows."""

    @_in_one_dtype
    def compute(self, x: Array, g: Array) -> Any:
        windows = _windows(x, self.shape[:2], self.padding)[:, :: self.stride, :: self.stride]
        return np.tensordot(windows, g, axes=((1, 2, 0), (1, 2, 0))).transpose(1, 2, 0, 3)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], x: Any, a: Any) -> tuple[Any, ...]:
        """Rule: dx as in Conv with g as its kernel, da = conv(x, g)."""
        stride, padding = self.stride, self.padding
        return (
            ConvInput(x.shape, stride, padding).on(a, g) if needs[0] else None,
            Conv(stride, padding).on(x, g) if needs[1] else None,
        )


def conv(x: Tensor, kernel: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolution of images: (n, h, w, c), (kh, kw, c, o) -> (n, h', w', o).

    h' = (h + 2 padding - kh) // stride + 1, and w' likewise.
    """
    return Conv(stride, padding)(x, kernel)


# ----------------------------------------------------------------------------------------------------- tuples


class MakeTensorTuple(_Shapes, TensorTupleOp):
    """Several tensors as one TensorTuple."""

    def compute(self, *args: Array) -> tuple[Array, ...]:
        return args

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], *xs: Any) -> tuple[Any, ...]:
        """Each input gets its element of g."""
        return tuple(g)


_make_tuple = MakeTensorTuple()


def make_tuple(*args: Tensor) -> TensorTuple:
    """Several tensors of any shapes -> one TensorTuple."""
    return _make_tuple(*args)


class TupleGetItem(_Shapes, TensorOp):
    """One element of a TensorTuple."""

    def __init__(self, index: int) -> None:
        self.index = index

    def compute(self, a: tuple[Array, ...]) -> Any:
        return a[self.index]

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """The element gets g, the others nothing (None)."""
        place = range(len(a))[self.index]  # which may be counted from the end
        return (tuple(g if i == place else None for i in range(len(a))),)


def tuple_get_item(value: TensorTuple, index: int) -> Tensor:
    """One element of a TensorTuple -> its shape."""
    if isinstance(value.op, MakeTensorTuple):
        element: Tensor = value.inputs[index]
        return element
    return TupleGetItem(index)(value)


class FusedAddScalars(_Shapes, TensorTupleOp):
    """(a + c0, a + c1)."""

    def __init__(self, c0: float, c1: float) -> None:
        self.c0 = _number(c0)
        self.c1 = _number(c1)

    def compute(self, a: Array) -> tuple[Any, ...]:
        return _beside(a, self.c0) + self.c0, _beside(a, self.c1) + self.c1

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = g[0] + g[1]."""
        return (g[0] + g[1],)


def fused_add_scalars(x: Tensor, c0: float, c1: float) -> TensorTuple:
    """Sums with two numbers: any shape -> two of the same shape."""
    return FusedAddScalars(c0, c1)(x)


class Stack(_Shapes, TensorOp):
    """Tensors of equal shape along a new axis."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def compute(self, args: Sequence[Array]) -> Any:
        shapes = [a.shape for a in args]
        if not shapes or any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"stack needs one or more tensors of equal shape, but got shapes {shapes}")
        _axes(self.axis, len(shapes[0]) + 1, "stack")
        floats = [a.dtype for a in args if a.dtype.kind == "f"]
        return np.stack(args, self.axis, dtype=np.result_type(*floats) if floats else None)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], args: Any) -> tuple[Any, ...]:
        """Each tensor gets its slice of g."""
        return (tuple(Split(self.axis).on(g)),)


def stack(args: Sequence[Tensor] | TensorTuple, axis: int = 0) -> Tensor:
    """Some k tensors of one shape -> one with a new axis of size k."""
    return Stack(axis)(args if isinstance(args, TensorTuple) else make_tuple(*args))


class Split(_Shapes, TensorTupleOp):
    """The slices of a tensor along an axis, which is dropped: the inverse of Stack."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def compute(self, a: Array) -> tuple[Any, ...]:
        (axis,) = _axes(self.axis, a.ndim, "split")
        return tuple(np.moveaxis(a, axis, 0))

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], a: Any) -> tuple[Any, ...]:
        """Rule: da = the slices of g, stacked."""
        return (Stack(self.axis).on(g) if len(y) else _fixed(a, np.zeros_like(_value(a))),)


def split(a: Tensor, axis: int = 0) -> TensorTuple:
    """The slices along an axis of size k -> k tensors without that axis."""
    return Split(axis)(a)


class Concatenate(_Shapes, TensorOp):
    """Tensors one behind the other along an axis; all other sizes are equal."""

    def __init__(self, axis: int = 0) -> None:
        if not isinstance(axis, _integers):
            raise TypeError(f"concatenate: axis must be an integer, got axis={axis!r}: flatten() what is to be one row")
        self.axis = axis

    def compute(self, *args: Array) -> Any:
        shapes = [a.shape for a in args]
        if not shapes or not shapes[0] or any(len(shape) != len(shapes[0]) for shape in shapes):
            raise ValueError(f"concatenate needs one or more tensors of equal, not zero, rank, but got shapes {shapes}")
        (axis,) = _axes(self.axis, len(shapes[0]), "concatenate")
        if len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) > 1:
            raise ValueError(f"concatenate needs shapes that differ along axis {axis} alone, but got shapes {shapes}")
        floats = [a.dtype for a in args if a.dtype.kind == "f"]
        return np.concatenate(args, axis, dtype=np.result_type(*floats) if floats else None)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], *xs: Any) -> tuple[Any, ...]:
        """Each tensor gets its part of g."""
        (axis,) = _axes(self.axis, len(g.shape), "concatenate")
        parts, start = [], 0
        for x, need in zip(xs, needs, strict=True):
            stop = start + x.shape[axis]
            parts.append(GetItem((slice(None),) * axis + (slice(start, stop),)).on(g) if need else None)
            start = stop
        return tuple(parts)


def concatenate(args: Sequence[Tensor] | TensorTuple, axis: int = 0) -> Tensor:
    """Some tensors one behind the other along an axis of sizes n, m, ... -> one with an axis of size n + m + ..."""
    return Concatenate(axis)(*map(_operand, args))


# ----------------------------------------------------------------------------------------------- fused layers


class _KeepsNormalised:
    """What the two normalisations share: x as they have normalised it is kept for the gradient."""

    saved: Any  # of the only call: x normalised, or only centred, and what it was scaled by
    _calls: int

    def _keep(self, *saved: Array) -> None:
        """An op that is called a second time serves two nodes: it can keep for neither, and both normalise again."""
        self._calls += 1
        self.saved = saved if self._calls == 1 else None
        self.reads_inputs = self.saved is None

    def looks_at(self, needs: Sequence[bool], tensors: bool) -> tuple[Sequence[bool], bool]:
        return (tensors or self.saved is None, needs[0], False), False


def _normalisable(x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """x as something to normalise, the weight as a factor, and the dtype of the result."""
    x, _ = _alike(x, weight)
    floats = [a.dtype for a in (x, weight, bias) if a.dtype.kind == "f"]
    dtype = np.result_type(*floats) if floats else _DEFAULT
    x = _wide(x)
    return x if x.dtype.itemsize >= dtype.itemsize else x.astype(dtype), _float(weight), dtype


class BatchNorm(_KeepsNormalised, TensorOp):
    """Normalise every column over the batch, then scale and shift; ``mean`` and ``var`` of the last call are
    kept.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance, from centred values. After a
    call, ``op.mean`` and ``op.var`` hold the batch statistics as ndarrays of shape (d,); the first call hands them to
    ``follow(mean, var)``.
    """

    reads_result = False

    def __init__(self, eps: float = 1e-5, follow: Callable[[Array, Array], None] | None = None) -> None:
        self.eps = _checked_eps(eps, "batch_norm")
        self._follow = follow
        self._calls, self.saved = 0, None

    def _statistics(self, x: Any) -> tuple[Any, ...]:
        n, eps, one = _scalars(x.dtype, x.shape[0], self.eps, 1)
        column_sums = _column_sums_like(x)
        mean = column_sums(x) / n
        centred = x - mean
        var = column_sums(centred * centred) / n
        return centred, one / (var + eps) ** 0.5, mean, var

    def compute(self, x: Array, weight: Array, bias: Array) -> Any:
        shape = x.shape
        if len(shape) != 2 or not shape[0] or not weight.shape == bias.shape == shape[1:]:
            raise ValueError(
                f"batch_norm needs (batch, d) with batch >= 1, weight (d,) and bias (d,), "
                f"but got {x.shape}, {weight.shape}, {bias.shape}"
            )
        dtype = None
        if not x.dtype is weight.dtype is bias.dtype is _DEFAULT:
            x, weight, dtype = _normalisable(x, weight, bias)
        centred, inv, self.mean, self.var = self._statistics(x)
        scale = inv * weight
        self._keep(centred, inv, scale)
        if self._follow is not None and self._calls == 1:  # not when data is computed once more
            self._follow(self.mean, self.var)
        y = centred * scale
        y += bias
        return y if dtype is None else y.astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        """The mean is subtracted last: dx then sums to zero exactly where it should, whatever was rounded
        before.
        """
        if g.dtype is _HALF:
            g = _wide(g)
        if self.saved is None or isinstance(x, Tensor):
            centred, inv = self._statistics(_normalisable(x, weight, bias)[0])[:2]
            scale = inv * weight
        else:
            centred, inv, scale = self.saved
        column_sums = _column_sums_like(g)
        dw = column_sums(g * centred) * inv
        dx = self._of_x(g, dw, centred, inv, scale) if needs[0] else None
        return dx, dw, column_sums(g) if needs[2] else None

    def _of_x(self, g: Any, dw: Any, centred: Any, inv: Any, scale: Any) -> Any:
        n, minus_n = _scalars(g.dtype, g.shape[0], -g.shape[0])
        dx = centred * (dw * inv / minus_n)
        dx += g
        dx -= _column_sums_like(g)(dx) / n
        dx *= scale
        return dx

    written = _Written(
        (
            "if x.shape[0] < 2: {layer}._ops(x)",  # which refuses it
            "{centred}, {inv}, mean, var = {op}._statistics(x)",
            "{scale} = {inv} * {0}.cached_data",
            "{layer}._follow(mean, var)",
            "x = {centred} * {scale}",
            "x += {1}.cached_data",
        ),
        ("g = {op}._of_x(g, dw, centred, inv, scale)", "del dw"),
        ("centred", "inv", "scale"),
        ("dw", "column_sums(g)"),
        first=("dw = column_sums(g * centred) * inv",),
    )


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch normalisation with the statistics of the batch: (batch, d), (d,), (d,) -> (batch, d)."""
    return BatchNorm(eps)(x, weight, bias)


class LayerNorm(_KeepsNormalised, TensorOp):
    """Normalise every row over its features, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance over the last axis, from
    centred values.
    """

    reads_result = False

    def __init__(self, eps: float = 1e-5) -> None:
        self.eps = _checked_eps(eps, "layer_norm")
        self._calls, self.saved = 0, None

    def _normalised(self, x: Any) -> tuple[Any, Any]:
        n, eps, one = _scalars(x.dtype, x.shape[-1], self.eps, 1)
        row_sums = _row_sums_like(x)
        xh = x - row_sums(x) / n
        inv = one / (row_sums(xh * xh) / n + eps) ** 0.5
        xh *= inv
        return xh, inv

    def compute(self, x: Array, weight: Array, bias: Array) -> Any:
        if not x.ndim or not x.shape[-1] or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
            raise ValueError(
                f"layer_norm needs (..., d) with d >= 1, weight (d,) and bias (d,), "
                f"but got {x.shape}, {weight.shape}, {bias.shape}"
            )
        dtype = None
        if not x.dtype is weight.dtype is bias.dtype is _DEFAULT:
            x, weight, dtype = _normalisable(x, weight, bias)
        xh, inv = self._normalised(x)
        self._keep(xh, inv)
        y = xh * weight
        y += bias
        return y if dtype is None else y.astype(dtype, copy=False)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        """As in BatchNorm, the mean is subtracted last."""
        if g.dtype is _HALF:
            g = _wide(g)
        if self.saved is None or isinstance(x, Tensor):
            xh, inv = self._normalised(_normalisable(x, weight, bias)[0])
        else:
            xh, inv = self.saved
        dx = self._of_x(g, weight, xh, inv) if needs[0] else None
        rows = _as_matrix(g)
        column_sums = _column_sums_like(rows)
        dw = column_sums(_as_matrix(g * xh)) if needs[1] else None
        return dx, dw, column_sums(rows) if needs[2] else None

    def _of_x(self, g: Any, weight: Any, xh: Any, inv: Any) -> Any:
        n, minus_n = _scalars(g.dtype, g.shape[-1], -g.shape[-1])
        row_sums = _row_sums_like(g)
        gx = g * weight
        dx = xh * (row_sums(gx * xh) / minus_n)
        dx += gx
        dx -= row_sums(dx) / n
        dx *= inv
        return dx

    written = _Written(
        ("{xh}, {inv} = {op}._normalised(x)", "x = {xh} * {0}.cached_data", "x += {1}.cached_data"),
        ("g = {op}._of_x(g, {0}.cached_data, xh, inv)",),
        ("xh", "inv"),
        ("column_sums(g * xh)", "column_sums(g)"),
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalisation over the last axis: (..., d), (d,), (d,) -> (..., d)."""
    return LayerNorm(eps)(x, weight, bias)


def _checked_eps(eps: float, op: str) -> float:
    if not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps must be a positive finite number, got eps={eps}")
    return eps


class SoftmaxCrossEntropy(TensorOp):
    """mean(logsumexp(z) - z_label) over the batch, in one node; no gradient flows to the labels."""

    saved: Any = None

    def compute(self, logits: Array, labels: Array) -> Any:
        places = _label_places(logits.shape, labels)
        usual = logits.dtype is _DEFAULT
        x = logits if usual else _wide(logits)
        z = x - _row_maxima(x)
        of_labels = z.take(places)
        e = np.exp(z, z)
        s = _row_sums_like(e)(e)
        self.saved = (logits, places, e, s)
        losses = np.log(s).reshape(-1)
        losses -= of_labels
        mean = _column_sums_like(losses)(losses) / len(losses)
        return mean if usual or logits.dtype is not _HALF else mean.astype(_HALF)

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], logits: Any, labels: Any) -> tuple[Any, ...]:
        """Rule: dz = (softmax(z) - onehot) g / n."""
        if g.dtype is _HALF:
            g = _wide(g)
        saved = self.saved
        if saved is not None and saved[0] is logits:
            _, places, e, s = saved
        else:
            logits = _wide(logits)
            z = _value(logits)
            places = _label_places(z.shape, _value(labels))
            e = _exp.on(logits - _fixed(logits, _max(z, 1, keepdims=True)))
            s = _row_sums_like(e)(e)
        usual = e.dtype is _DEFAULT and not isinstance(g, Tensor) and g.item() == 1  # the gradient of the loss itself
        share: Any = _scalars(e.dtype, 1 / s.shape[0])[0] if usual else g / _scalars(e.dtype, s.shape[0])[0]
        if isinstance(share, Tensor):
            onehot = np.zeros(e.shape, e.dtype)
            onehot.reshape(-1)[places] = 1
            return e * (share / s) - Tensor.make_const(onehot) * share, None
        dz = e * (share / s)
        dz = dz if dz.flags.c_contiguous else dz.copy()
        dz.reshape(-1)[places] -= share
        return dz, None


_INDEX = np.dtype(np.intp)


def _label_places(shape: tuple[int, ...], labels: Array) -> Any:
    """Where the logit of each label stands in the flattened logits; refuses what is not a label."""
    try:
        n, classes = shape
        if n <= _FEW_ROWS and classes <= _FEW_CLASSES and labels.dtype is _INDEX and labels.shape == (n,):
            starts, _, numbers = _rows(n, classes)
            if n and numbers.issuperset(labels.tolist()):
                return starts + labels
        elif n and labels.dtype.kind in "iu" and labels.shape == (n,):
            return np.ravel_multi_index((np.arange(n), labels.astype(_INDEX, copy=False)), shape)
    except (ValueError, TypeError):
        pass
    if len(shape) != 2 or not shape[0] or not shape[1]:
        raise ValueError(f"softmax_cross_entropy needs logits of shape (batch, classes), not empty, but got {shape}")
    if labels.shape != shape[:1]:
        raise ValueError(
            f"softmax_cross_entropy needs labels of shape {shape[:1]} for logits {shape}, but got {labels.shape}"
        )
    if labels.dtype.kind not in "iuf":
        raise TypeError(f"softmax_cross_entropy needs integer labels, but got dtype {labels.dtype}")
    for label in labels.tolist():
        if not float(label).is_integer():
            raise ValueError(f"softmax_cross_entropy needs integer labels, but got {label}")
        if not 0 <= label < shape[1]:
            raise ValueError(f"softmax_cross_entropy needs labels in 0..{shape[1] - 1}, but got {int(label)}")
    return _label_places(shape, labels.astype(np.intp))


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the softmax: (batch, classes), integer labels (batch,) -> ()."""
    labels = labels if isinstance(labels, Tensor) else Tensor(labels)
    return Tensor.make_from_op(SoftmaxCrossEntropy(), (logits, labels.detach() if labels.requires_grad else labels))
