"""Elementwise operations."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import NUMBERS, POWERS, Draw, Drawn, one, scalar, two
from oracle.operations.operation import meaning, operation, scalar_of
from oracle.operations.tape import LEAD, Array, Tape, Var, constant, expand, moved, reduced, require


def door(function: str, plain: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """``ndl.function(x, c)`` for operands of odd rank, the operator for even ones: two doors to one op, both are tried."""
    return lambda n, x, c: getattr(n, function)(x, c) if len(x.shape) % 2 else plain(x, c)


def by_input(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array], Array]) -> Var:
    """f(x) with derivative df(x)."""
    return t.emit(f(t.noisy(x.value)), (x,), lambda g: (t.noisy(g) * df(t.noisy(x.value)),))


def by_output(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array], Array]) -> Var:
    """f(x) with derivative df(f(x)), from the saved output."""
    y = f(t.noisy(x.value))
    return t.emit(y, (x,), lambda g: (t.noisy(g) * df(t.noisy(y)),))


def by_both(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array, Array], Array]) -> Var:
    """f(x) with derivative df(x, f(x)); both see noisy operands."""
    y = f(t.noisy(x.value))
    return t.emit(y, (x,), lambda g: (t.noisy(g) * df(t.noisy(x.value), t.noisy(y)),))


def _at_the_ends(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """f, which may be infinite or no number at 0 and below: what is there is compared with torch's."""

    def quiet(x: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return f(x)

    return quiet


def broadcast(t: Tape, a: Var, b: Var) -> tuple[Array, Array]:
    shape = np.broadcast_shapes(a.shape, b.shape)
    # a small operand is perturbed after broadcasting: a kernel rounds every element of the result on its own
    return t.noisy(expand(a.value, shape)), t.noisy(expand(b.value, shape))


# -- one operand -------------------------------------------------------------------------------------------------------


@operation(needle=lambda n, x: n.negate(x), torch=lambda t, x: t.neg(x), drawn=one, node="Negate")
def negate(t: Tape, x: Var) -> Var:
    """-x."""
    return t.emit(-t.noisy(x.value), (x,), lambda g: (-t.noisy(g),))


@operation(
    needle=lambda n, x: n.log(x),
    torch=lambda t, x: t.log(x),
    drawn=one,
    node="Log",
    values="positive",
    hard=(1e-20, 1e-30, 1e20, 1e-3),
)
def log(t: Tape, x: Var) -> Var:
    """ln x."""
    return by_input(t, x, np.log, lambda x: 1 / x)


@operation(needle=lambda n, x: n.exp(x), torch=lambda t, x: t.exp(x), drawn=one, node="Exp")
def exp(t: Tape, x: Var) -> Var:
    """eˣ."""
    return by_output(t, x, np.exp, lambda y: y)


@operation(needle=lambda n, x: n.tanh(x), torch=lambda t, x: t.tanh(x), drawn=one, node="Tanh", layer="Tanh")
def tanh(t: Tape, x: Var) -> Var:
    """tanh x; its derivative comes from the saved output: 1 − y²."""
    return by_output(t, x, np.tanh, lambda y: 1 - y * y)


def logistic(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), precise in both tails."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


@operation(
    needle=lambda n, x: n.sigmoid(x), torch=lambda t, x: t.sigmoid(x), drawn=one, node="Sigmoid", layer="Sigmoid"
)
def sigmoid(t: Tape, x: Var) -> Var:
    """1 / (1 + e⁻ˣ); its derivative comes from the saved output: y(1 − y)."""
    return by_output(t, x, logistic, lambda y: y * (1 - y))


@operation(
    needle=lambda n, x: n.softplus(x),
    torch=lambda t, x: t.nn.functional.softplus(x, threshold=40),  # e^89 overflows; by 40 it is x itself in float64 too
    drawn=one,
    node="Softplus",
    layer="Softplus",
)
def softplus(t: Tape, x: Var) -> Var:
    """ln(1 + eˣ)."""
    return by_input(t, x, lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), logistic)


@operation(needle=lambda n, x: n.relu(x), torch=lambda t, x: t.relu(x), drawn=one, node="ReLU")
def relu(t: Tape, x: Var, kink: Array | None = None) -> Var:
    """max(x, 0), gradient 0 at 0; it passes at nan. ``kink`` (steps, *shape) dictates the branch; the sign of x by default."""
    mask = (~(x.value[:1] <= 0) if kink is None else kink[None]).astype(np.float64)
    if t.special:  # which is not 0 times infinity
        return t.emit(np.where(mask > 0, t.noisy(x.value), 0.0), (x,), lambda g: (t.noisy(g) * mask,))
    return t.emit(t.noisy(x.value) * mask, (x,), lambda g: (t.noisy(g) * mask,))


@operation(
    needle=lambda n, x: (abs(x) if len(x.shape) > 1 else x.abs()) if len(x.shape) % 2 else n.absolute(x),
    torch=lambda t, x: t.abs(x),
    drawn=one,
    node="Abs",
)
def absolute(t: Tape, x: Var) -> Var:
    """|x|, gradient 0 at 0."""
    sign = np.sign(x.value[:1])
    return t.emit(t.noisy(x.value) * sign, (x,), lambda g: (t.noisy(g) * sign,))


@operation(
    needle=lambda n, x: x.sqrt() if len(x.shape) % 2 else n.sqrt(x),
    torch=lambda t, x: t.sqrt(x),
    drawn=one,
    node="Sqrt",
    values="positive",
    hard=(1e-20, 1e-30, 1e20, 1e-3),
)
def sqrt(t: Tape, x: Var) -> Var:
    """√x; its derivative comes from the saved output: 1 / 2y."""
    return by_output(t, x, np.sqrt, lambda y: 0.5 / y)


def limited(d: Draw) -> Drawn:
    """Any shape, and one limit or two."""
    low = d.of((-1.0, 0.0, 0.5, -2.0))
    high = d.of((low + 1.0, low, None))
    return [d.shape()], {"high": low + 1.0} if d.maybe() and d.maybe() else {"low": low} | (
        {"high": high} if high is not None else {}
    )


@operation(
    needle=lambda n, x, **a: x.clip(**a) if len(x.shape) % 2 else n.clip(x, **a),
    torch=lambda t, x, low=None, high=None: t.clamp(x, low, high),
    drawn=limited,
    node="Clip",
    values="whole",  # for the sake of the limits themselves
    attributes=lambda op, x: {"low": op.low, "high": op.high},
)
def clip(t: Tape, x: Var, *, low: float | None = None, high: float | None = None) -> Var:
    """x, but at least ``low`` and at most ``high``; the gradient passes where x is a limit, too."""
    require(low is not None or high is not None, "clip: low, high or both are needed")
    lowest, highest = -math.inf if low is None else low, math.inf if high is None else high
    exact = x.value[:1]
    passes = ((exact >= lowest) & (exact <= highest)).astype(np.float64)
    limit = np.clip(exact, lowest, highest)  # nan stays nan
    return t.emit(np.where(passes > 0, t.noisy(x.value), limit), (x,), lambda g: (t.noisy(g) * passes,))


@operation(
    # half of it past the cast, as a copy: a float32 tensor then gets a float64 contribution, which must become float32
    needle=lambda n, x: n.ops.cast((n.ops.cast(x, "float64") + x.clone()) * 0.5, "float32"),
    torch=lambda t, x: x.double().float(),
    drawn=one,
    node="Cast",
    attributes=lambda op, x: {"dtype": op.dtype},
)
def cast(t: Tape, x: Var, *, dtype: Any = None) -> Var:
    """In another precision and back: exact, where the operands are float32; a node's own ``dtype`` may round."""
    there = (lambda v: v) if dtype is None else (lambda v: v.astype(dtype).astype(np.float64))
    return moved(t, x, there, lambda g: g)


def dropout(t: Tape, x: Var, *, mask: Array, p: float) -> Var:
    """x · mask / (1 − p); everything is dropped at p = 1. mask: (steps, *shape)."""
    keep = mask[None].astype(np.float64) / (1 - p) if p < 1 else np.zeros((1, *mask.shape))
    return t.emit(t.noisy(t.noisy(x.value) * keep), (x,), lambda g: (t.noisy(t.noisy(g) * keep),))


# -- one operand and a number ------------------------------------------------------------------------------------------


@operation(
    needle=door("add_scalar", operator.add),
    torch=lambda t, x, c: x + c,
    drawn=scalar(NUMBERS),
    node="AddScalar",
    attributes=scalar_of,
)
def add_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x + c."""
    return t.emit(t.noisy(x.value) + constant(t, x, c), (x,), lambda g: (t.noisy(g),))


@operation(
    needle=door("mul_scalar", lambda x, c: c * x),
    torch=lambda t, x, c: x * c,
    drawn=scalar(NUMBERS),
    node="MulScalar",
    attributes=scalar_of,
)
def mul_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x · c."""
    return t.emit(t.noisy(t.noisy(x.value) * c), (x,), lambda g: (t.noisy(g) * constant(t, x, c),))


@operation(
    needle=door("divide_scalar", operator.truediv),
    torch=lambda t, x, c: x / c,
    drawn=scalar(NUMBERS[:4]),
    node="DivScalar",
    attributes=scalar_of,
)
def divide_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x / c."""
    return t.emit(t.noisy(t.noisy(x.value) / c), (x,), lambda g: (t.noisy(g) * constant(t, x, 1 / c),))


@operation(
    needle=door("power_scalar", operator.pow),
    torch=lambda t, x, c: x**c,
    drawn=scalar(POWERS),
    node="PowerScalar",
    attributes=scalar_of,
    values="positive",
    hard=(0.0, -0.0, -2.0, 1e-20, 1e-3),  # a fraction of them as exponent: nan, 0 or infinite on both sides
)
def power_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x ** c."""

    @_at_the_ends
    def slope(x: Array) -> Array:
        # c = 0 has derivative 0 everywhere, also where x ** -1 is infinite
        return np.zeros_like(x) if c == 0 else t.noisy(c * t.noisy(x ** (c - 1)))

    return by_input(t, x, _at_the_ends(lambda x: t.noisy(x**c)), slope)


@operation(
    needle=door("power_scalar", operator.pow),
    torch=lambda t, x, c: x**c,
    drawn=lambda d: ([d.shape()], {"c": d.of((2.0, 3.0, 1.0, 0.0, -1.0, -2.0, 4.0, 5.0, -3.0))}),
    covers=("PowerScalar",),
    hard=(0.0, -0.0, -2.0, 0.0),
)
def whole_power_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x ** c for a whole c: of numbers of either sign, and of 0."""
    return power_scalar(t, x, c=c)


@operation(
    needle=lambda n, x, c: c - x,
    torch=lambda t, x, c: c - x,
    drawn=scalar(NUMBERS),
    covers=("AddScalar", "Negate"),
)
def rsub(t: Tape, x: Var, *, c: float) -> Var:
    """c - x."""
    return t.emit(constant(t, x, c) - t.noisy(x.value), (x,), lambda g: (-t.noisy(g),))


@operation(
    needle=lambda n, x, c: c / x,
    torch=lambda t, x, c: c / x,
    drawn=scalar(NUMBERS),
    values="nonzero",
)
def rdiv(t: Tape, x: Var, *, c: float) -> Var:
    """c / x."""
    return by_both(t, x, lambda x: t.noisy(c / x), lambda x, y: -t.noisy(y / x))


@operation(needle=lambda n, x, c: c**x, torch=lambda t, x, c: c**x, drawn=scalar((2.0, 0.5, 1.0, 3.0)))
def rpow(t: Tape, x: Var, *, c: float) -> Var:
    """c ** x, for c > 0."""
    require(c > 0, f"rpow: c must be positive, but got {c}")
    return by_output(t, x, lambda x: t.noisy(c**x), lambda y: t.noisy(y * math.log(c)))


# -- two operands ------------------------------------------------------------------------------------------------------


@operation(needle=lambda n, a, b: n.add(a, b), torch=lambda t, a, b: t.add(a, b), drawn=two, node="EWiseAdd")
def add(t: Tape, a: Var, b: Var) -> Var:
    """a + b."""
    x, y = broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        return [reduced(t, t.noisy(g), v.shape) if v.needs else None for v in (a, b)]

    return t.emit(x + y, (a, b), vjp)


@operation(needle=lambda n, a, b: a - b, torch=lambda t, a, b: t.sub(a, b), drawn=two, covers=("EWiseAdd", "Negate"))
def subtract(t: Tape, a: Var, b: Var) -> Var:
    """a - b."""
    x, y = broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        da = reduced(t, t.noisy(g), a.shape) if a.needs else None
        return da, reduced(t, -t.noisy(g), b.shape) if b.needs else None

    return t.emit(x - y, (a, b), vjp)


@operation(needle=lambda n, a, b: n.multiply(a, b), torch=lambda t, a, b: t.mul(a, b), drawn=two, node="EWiseMul")
def multiply(t: Tape, a: Var, b: Var) -> Var:
    """a · b."""
    x, y = broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        def one(v: Var, other: Var) -> Array | None:
            factor = t.noisy(expand(other.value, g.shape[LEAD:]))
            return reduced(t, t.noisy(g) * factor, v.shape)

        return one(a, b) if a.needs else None, one(b, a) if b.needs else None

    return t.emit(x * y, (a, b), vjp)


@operation(
    needle=lambda n, a, b: n.divide(a, b),
    torch=lambda t, a, b: t.div(a, b),
    drawn=two,
    node="EWiseDiv",
    values="nonzero",
)
def divide(t: Tape, a: Var, b: Var) -> Var:
    """a / b."""
    x, y = broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array]:
        x, y = broadcast(t, a, b)
        by_y = t.noisy(g) / y
        return reduced(t, by_y, a.shape), reduced(t, -t.noisy(by_y) * t.noisy(x / y), b.shape)

    return t.emit(x / y, (a, b), vjp)


@operation(
    needle=lambda n, a, b: n.power(a, b),
    torch=lambda t, a, b: t.pow(a, b),
    drawn=two,
    node="EWisePow",
    values="positive",
    hard=(0.0, -0.0, -2.0, 1e-3),
)
def power(t: Tape, a: Var, b: Var) -> Var:
    """a ** b. No slope at exponent 0, nor for the exponent at base 0; no number for a fraction of a negative one."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    base, exponent = expand(a.value[:1], shape), expand(b.value[:1], shape)

    def raised(less: int) -> Array:
        """a ** (b - less), with the rounding of |a| and of b; 0 has no rounding, and whether b is whole is exact."""
        x, y = broadcast(t, a, b)
        odd = np.abs((exponent - less) % 2)
        sign = np.where(base < 0, np.where(odd == 1, -1.0, np.where(odd == 0, 1.0, np.nan)), 1.0)
        return np.abs(x) ** np.where(base == 0, exponent - less, y - less) * sign

    with np.errstate(all="ignore"):
        out = raised(0)

    def vjp(g: Array) -> Sequence[Array]:
        x, y = broadcast(t, a, b)
        with np.errstate(all="ignore"):
            da = t.noisy(g) * y * t.noisy(raised(1))
            db = t.noisy(g) * t.noisy(out) * t.noisy(np.log(x))
        da = np.where(exponent == 0, 0.0, da)
        db = np.where((base == 0) & (exponent >= 0), 0.0, db)
        return reduced(t, da, a.shape), reduced(t, db, b.shape)

    return t.emit(out, (a, b), vjp)


@operation(
    needle=lambda n, a, b: a**b,
    torch=lambda t, a, b: t.pow(a, b),
    drawn=two,
    covers=("EWisePow",),
    values=("real", "whole"),
    ordinary=True,
    plain=(1,),  # there is a logarithm in it
)
def whole_power(t: Tape, a: Var, b: Var) -> Var:
    """a ** b for a whole b: of numbers of either sign, and of 0."""
    return power(t, a, b)


def chosen(t: Tape, a: Var, b: Var, takes_a: Array, of_a: Array, of_b: Array) -> Var:
    """a or b, element by element, and what share of the gradient each gets there: three of shape (1, steps, *shape)."""
    shape = takes_a.shape[LEAD:]
    x, y = t.noisy(expand(a.value, shape)), t.noisy(expand(b.value, shape))

    def vjp(g: Array) -> Sequence[Array | None]:
        shares = zip((a, b), (of_a, of_b), strict=True)
        return [reduced(t, t.noisy(g) * share, v.shape) if v.needs else None for v, share in shares]

    return t.emit(np.where(takes_a, x, y), (a, b), vjp)


def better(t: Tape, a: Var, b: Var, sign: int) -> Var:
    """The larger of a and b (sign 1), or the smaller (-1). Equal ones share the gradient; nan beside a number is taken."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    x, y = sign * expand(a.value[:1], shape), sign * expand(b.value[:1], shape)
    half = np.where(x == y, 0.5, 1.0)
    return chosen(t, a, b, (x >= y) | np.isnan(x), half * ~(x < y), half * ~(y < x))


@operation(
    needle=lambda n, a, b: n.maximum(a, b),
    torch=lambda t, a, b: t.maximum(a, b),
    drawn=two,
    node="Maximum",
    values="whole",  # for the sake of ties
)
def larger(t: Tape, a: Var, b: Var) -> Var:
    """The larger of each two elements; equal ones share the gradient."""
    return better(t, a, b, 1)


@operation(needle=lambda n, a, b: n.minimum(a, b), torch=lambda t, a, b: t.minimum(a, b), drawn=two, node="Minimum")
def smaller(t: Tape, a: Var, b: Var) -> Var:
    """The smaller of each two elements; equal ones share the gradient."""
    return better(t, a, b, -1)


def three(d: Draw) -> Drawn:
    """Three shapes that broadcast, often square ones."""
    if d.maybe():
        n = d.whole(2, 4)
        return [(n, n)] * 3, {}
    (a, b), _ = two(d)
    return [tuple(1 if d.maybe() and d.maybe() else n for n in np.broadcast_shapes(a, b)), a, b], {}


@operation(
    needle=lambda n, x, a, b: n.where(x > 0, a, b),
    torch=lambda t, x, a, b: t.where(x > 0, a, b),
    drawn=three,
    covers=("Where",),
)
def where(t: Tape, x: Var, a: Var, b: Var) -> Var:
    """a where x > 0, b elsewhere; no gradient flows to x."""
    return select(t, a, b, condition=x.value[:1] > 0)


@meaning("Where")
def where_of_a_node(t: Tape, op: Any, a: Var, b: Var) -> Var:
    """A node holds its condition."""
    return select(t, a, b, condition=np.asarray(op.condition)[None, None])


def select(t: Tape, a: Var, b: Var, *, condition: Array) -> Var:
    """a where the condition (1, steps, *shape) holds, b elsewhere."""
    shape = np.broadcast_shapes(a.shape, b.shape, condition.shape[LEAD:])
    share = expand(condition, shape).astype(np.float64)
    return chosen(t, a, b, share > 0, share, 1 - share)
