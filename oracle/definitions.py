"""What every operation means, in float64 and with measured noise: the truth needle is judged by.

Written from the mathematical definitions, in NumPy alone. Every array has two leading axes, ``(replicas, steps)``:
replica 0 is exact; the others get noise of the size of float32 rounding at every operand edge, forward and
backward, so that the spread of the replicas *measures* how much a correct float32 program may differ.
``steps`` stacks the independent (synchronised) training steps of one case, so that one pass serves all of them.

An operation is one function ``f(t, *operands, **attributes) -> Var``; it computes the value and records the
vector-Jacobian product. ``OPS`` is the table of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

U = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # smallest normal float32
UNDERFLOW = TINY / U  # what falls below TINY may be lost (torch flushes it), and be scaled up later
# A sum of k terms errs by at most k · u · Σ|terms|, whatever its order and blocking (Higham, Accuracy and Stability of
# Numerical Algorithms, section 4.2), and the CPU chooses both: 16 (the limit of rule G) × k/32 × ξ, ξ uniform in ±2.
ANY_ORDER = 1 / 32
REPLICAS = 8  # the limit of rule G (16) was calibrated with 8; change both or neither
LEAD = 2  # the number of leading axes: (replicas, steps)

_POOL_SIZE = 1 << 20
_POOL = np.random.RandomState(20240229).uniform(-2 * U, 2 * U, _POOL_SIZE)


class Noise:
    """Uniform noise in ±2u, sliced from one pre-drawn pool; the same seed gives the same noise.

    In the last ``coherent`` replicas all rows of a matrix get the same noise, as identical rows do in a real kernel:
    a column that is constant then stays constant, and the norms stay in the regime in which the real system is. In the very
    last one all elements do, for the sake of constant rows and of sums of equal products.
    """

    def __init__(self, seed: int, replicas: int = REPLICAS, coherent: int = 0) -> None:
        self.replicas = replicas
        self.coherent = coherent
        self._cursor = seed % _POOL_SIZE

    def draw(self, shape: Shape) -> Array:
        """Noise for the perturbed replicas, of the shape (steps, *shape): float64 ``(replicas - 1, steps, *shape)``."""
        count = (self.replicas - 1) * math.prod(shape)
        end = self._cursor + count
        if end <= _POOL_SIZE:
            flat, self._cursor = _POOL[self._cursor : end], end
        else:
            flat = self._beyond(count)
        noise = flat.reshape((self.replicas - 1, *shape))
        if self.coherent and len(shape) >= 1 + LEAD:
            rows = noise[-self.coherent :, :, :1]
            noise = np.concatenate([noise[: -self.coherent], np.broadcast_to(rows, (self.coherent, *shape))])
            noise[-1] = noise[-1].reshape(shape[0], -1)[:, :1].reshape(shape[0], *[1] * (len(shape) - 1))
        return noise

    def _beyond(self, count: int) -> Array:
        """Noise where the pool ends: a new lap, or a block of its own."""
        if count > _POOL_SIZE:
            block = np.random.RandomState(self._cursor).uniform(-2 * U, 2 * U, count)
            self._cursor = (self._cursor + 7919) % _POOL_SIZE
            return block
        # a fresh, odd offset: two laps over the pool must not line up
        self._cursor = (self._cursor * 31 + 17) % (_POOL_SIZE - count + 1)
        block = _POOL[self._cursor : self._cursor + count]
        self._cursor += count
        return block


@dataclass(eq=False)
class Var:
    """A value of the tape: float64 of shape ``(replicas or 1, steps or 1, *shape)``, and its adjoint once known."""

    value: Array
    needs: bool = True
    adjoint: Array | None = None
    uses: int = 0

    @property
    def shape(self) -> Shape:
        return self.value.shape[LEAD:]


Vjp = Callable[[Array], "Sequence[Array | None]"]


@dataclass(eq=False)
class Tape:
    """Records operations and walks them backward once."""

    noise: Noise | None
    special: bool = False  # operands may be nan or infinite; they stay what they are
    records: list[tuple[Var, tuple[Var, ...], Vjp]] = field(default_factory=list)

    def noisy(self, x: Array) -> Array:
        """x with fresh rounding noise in replicas 1…; replica 0 untouched."""
        if self.noise is None:
            return x
        e = self.noise.draw(x.shape[1:])
        out = np.empty((self.noise.replicas, *x.shape[1:]))
        exact, perturbed = x[0], out[1:]  # no temporary arrays: most of the time goes into memory
        out[0] = exact
        size = np.abs(exact)
        np.maximum(size, UNDERFLOW, out=size, where=size > 0)
        if x.shape[0] == 1:
            np.multiply(e, size, out=perturbed)
            perturbed += exact
        else:
            # the amplitude is that of the larger of the replica and the exact value, so that a replica which has
            # fallen into another regime (a variance near 0) does not underestimate
            np.abs(x[1:], out=perturbed)
            np.maximum(perturbed, size, out=perturbed)
            perturbed *= e
            perturbed += x[1:]
        return np.where(np.isfinite(x), out, x) if self.special else out

    def roughened(self, y: Array, magnitude: Array, weight: float) -> Array:
        """y with extra noise ``weight · u · magnitude · ξ``, ξ uniform in ±2, in replicas 1…."""
        if self.noise is None or weight <= 0:
            return y
        e = self.noise.draw(y.shape[1:])
        if y.shape[0] == 1:
            y = np.repeat(y, self.noise.replicas, axis=0)
        y[1:] += e * (weight * magnitude[:1])
        return y

    def emit(self, value: Array, operands: Sequence[Var], vjp: Vjp) -> Var:
        """Record one operation. ``vjp(g)`` gives one contribution per operand (None where none is needed)."""
        out = Var(value, needs=any(v.needs for v in operands))
        for v in operands:
            v.uses += 1
        if out.needs:
            self.records.append((out, tuple(operands), vjp))
        return out

    def backward(self, seeds: Sequence[tuple[Var, Array]]) -> None:
        """Fill in ``adjoint`` of every Var that reaches a seed; what was recorded is gone afterwards."""
        for var, g in seeds:
            self._add(var, g)
        while self.records:
            out, operands, vjp = self.records.pop()
            if out.adjoint is None:
                continue
            for var, contribution in zip(operands, vjp(out.adjoint), strict=True):
                if contribution is not None and var.needs:
                    self._add(var, contribution)

    def _add(self, var: Var, contribution: Array) -> None:
        if var.uses > 1:
            contribution = self.noisy(contribution)
        var.adjoint = contribution if var.adjoint is None else var.adjoint + contribution


# -- helpers on arrays with leading axes ------------------------------------------------------------------------------


def _axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes of the array proper, as axes of the array with its leading axes."""
    if axes is None:
        axes = tuple(range(rank))
    elif isinstance(axes, int):
        axes = (axes,)
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} is out of range for {rank} dimensions")
    return tuple(LEAD + axis % rank for axis in axes)


def _expand(x: Array, shape: Shape) -> Array:
    """x broadcast to ``shape`` behind its own leading axes."""
    own = x.shape[LEAD:]
    if own == shape:
        return x
    aligned = x.reshape(x.shape[:LEAD] + (1,) * (len(shape) - len(own)) + own)
    return np.broadcast_to(aligned, x.shape[:LEAD] + shape)


def _reduced(t: Tape, g: Array, shape: Shape) -> Array:
    """g summed over what broadcasting had expanded, down to ``shape``."""
    wide = g.shape[LEAD:]
    if wide == shape:
        return g
    extra = len(wide) - len(shape)
    axes = tuple(LEAD + i for i in range(len(wide)) if i < extra or (shape[i - extra] == 1 and wide[i] != 1))
    return _sum(t, g, axes).reshape(g.shape[:LEAD] + shape)


def _sum(t: Tape, x: Array, axes: tuple[int, ...], keepdims: bool = False, *, as_mean: bool = False) -> Array:
    """Sum, with the rounding of every order and blocking as extra noise, see `ANY_ORDER`.

    ``as_mean``: it may be on its way to a mean, which is subtracted again: the extra noise of `_mean`, if that is more.
    """
    n = math.prod(x.shape[a] for a in axes)
    y = x.sum(axis=axes, keepdims=keepdims)
    weight = max(ANY_ORDER * n, 0.5 * math.sqrt(n) if as_mean else 0)
    if n > 1 and t.noise is not None:
        y = t.roughened(y, np.abs(x[:1]).sum(axis=axes, keepdims=keepdims), weight)
    return np.asarray(y)


def _mean(t: Tape, x: Array, axes: tuple[int, ...]) -> Array:
    """Mean (axes kept). Rounding is systematic on identical rows: extra noise √n · u · mean|x|, which up to 256 terms is
    more than that of every order.
    """
    n = math.prod(x.shape[a] for a in axes)
    y = x.sum(axis=axes, keepdims=True) / n
    weight = max(ANY_ORDER, 0.5 / math.sqrt(n))
    return t.roughened(y, np.abs(x[:1]).sum(axis=axes, keepdims=True), weight)


def _product(t: Tape, a: Array, b: Array) -> Array:
    """Matrix product of noisy operands, with the rounding of every order and blocking of its sums, see `ANY_ORDER`."""
    y: Array = np.matmul(t.noisy(a), t.noisy(b))
    k = a.shape[-1]
    if k > 1 and t.noise is not None:
        y = t.roughened(y, np.matmul(np.abs(a[:1]), np.abs(b[:1])), ANY_ORDER * k)
    return y


def _swap(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


# -- elementwise ------------------------------------------------------------------------------------------------------


def _broadcast(t: Tape, a: Var, b: Var) -> tuple[Array, Array]:
    shape = np.broadcast_shapes(a.shape, b.shape)
    # a small operand is perturbed after broadcasting: a kernel rounds every element of the result on its own
    return t.noisy(_expand(a.value, shape)), t.noisy(_expand(b.value, shape))


def add(t: Tape, a: Var, b: Var) -> Var:
    """a + b."""
    x, y = _broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        return [_reduced(t, t.noisy(g), v.shape) if v.needs else None for v in (a, b)]

    return t.emit(x + y, (a, b), vjp)


def subtract(t: Tape, a: Var, b: Var) -> Var:
    """a - b."""
    x, y = _broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        da = _reduced(t, t.noisy(g), a.shape) if a.needs else None
        return da, _reduced(t, -t.noisy(g), b.shape) if b.needs else None

    return t.emit(x - y, (a, b), vjp)


def multiply(t: Tape, a: Var, b: Var) -> Var:
    """a · b."""
    x, y = _broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array | None]:
        def one(v: Var, other: Var) -> Array | None:
            factor = t.noisy(_expand(other.value, g.shape[LEAD:]))
            return _reduced(t, t.noisy(g) * factor, v.shape)

        return one(a, b) if a.needs else None, one(b, a) if b.needs else None

    return t.emit(x * y, (a, b), vjp)


def divide(t: Tape, a: Var, b: Var) -> Var:
    """a / b."""
    x, y = _broadcast(t, a, b)

    def vjp(g: Array) -> Sequence[Array]:
        x, y = _broadcast(t, a, b)
        by_y = t.noisy(g) / y
        return _reduced(t, by_y, a.shape), _reduced(t, -t.noisy(by_y) * t.noisy(x / y), b.shape)

    return t.emit(x / y, (a, b), vjp)


def power(t: Tape, a: Var, b: Var) -> Var:
    """a ** b, for a > 0."""
    x, y = _broadcast(t, a, b)
    out = x**y

    def vjp(g: Array) -> Sequence[Array]:
        x, y = _broadcast(t, a, b)
        da = t.noisy(g) * y * t.noisy(x ** (y - 1))
        db = t.noisy(g) * t.noisy(out) * t.noisy(np.log(x))
        return _reduced(t, da, a.shape), _reduced(t, db, b.shape)

    return t.emit(out, (a, b), vjp)


def _elementwise(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array, Array], Array]) -> Var:
    """f(x) with derivative df(x, f(x)); both see noisy operands."""
    y = f(t.noisy(x.value))
    return t.emit(y, (x,), lambda g: (t.noisy(g) * df(t.noisy(x.value), t.noisy(y)),))


def _by_input(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array], Array]) -> Var:
    """f(x) with derivative df(x)."""
    return t.emit(f(t.noisy(x.value)), (x,), lambda g: (t.noisy(g) * df(t.noisy(x.value)),))


def _by_output(t: Tape, x: Var, f: Callable[[Array], Array], df: Callable[[Array], Array]) -> Var:
    """f(x) with derivative df(f(x)), from the saved output."""
    y = f(t.noisy(x.value))
    return t.emit(y, (x,), lambda g: (t.noisy(g) * df(t.noisy(y)),))


def _constant(t: Tape, x: Var, c: float) -> Array:
    """c, rounded for each element of x."""
    return t.noisy(np.full((1, *x.value.shape[1:]), c))


def negate(t: Tape, x: Var) -> Var:
    """-x."""
    return t.emit(-t.noisy(x.value), (x,), lambda g: (-t.noisy(g),))


def log(t: Tape, x: Var) -> Var:
    """ln x."""
    return _by_input(t, x, np.log, lambda x: 1 / x)


def exp(t: Tape, x: Var) -> Var:
    """eˣ."""
    return _by_output(t, x, np.exp, lambda y: y)


def tanh(t: Tape, x: Var) -> Var:
    """tanh x; its derivative comes from the saved output: 1 − y²."""
    return _by_output(t, x, np.tanh, lambda y: 1 - y * y)


def _logistic(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def sigmoid(t: Tape, x: Var) -> Var:
    """1 / (1 + e⁻ˣ); its derivative comes from the saved output: y(1 − y)."""
    return _by_output(t, x, _logistic, lambda y: y * (1 - y))


def relu(t: Tape, x: Var, kink: Array | None = None) -> Var:
    """max(x, 0), gradient 0 at 0. ``kink`` (steps, *shape) dictates the branch; the sign of x by default."""
    mask = (x.value[:1] > 0 if kink is None else kink[None]).astype(np.float64)
    return t.emit(t.noisy(x.value) * mask, (x,), lambda g: (t.noisy(g) * mask,))


def add_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x + c."""
    return t.emit(t.noisy(x.value) + _constant(t, x, c), (x,), lambda g: (t.noisy(g),))


def mul_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x · c."""
    return t.emit(t.noisy(t.noisy(x.value) * c), (x,), lambda g: (t.noisy(g) * _constant(t, x, c),))


def divide_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x / c."""
    return t.emit(t.noisy(t.noisy(x.value) / c), (x,), lambda g: (t.noisy(g) * _constant(t, x, 1 / c),))


def power_scalar(t: Tape, x: Var, *, c: float) -> Var:
    """x ** c."""

    def slope(x: Array) -> Array:
        # c = 0 has derivative 0 everywhere, also where x ** -1 is infinite
        return np.zeros_like(x) if c == 0 else t.noisy(c * t.noisy(x ** (c - 1)))

    return _by_input(t, x, lambda x: t.noisy(x**c), slope)


def fused_add_scalars(t: Tape, x: Var, *, c: float, c1: float) -> Var:
    """(x + c) · (x + c1): both elements of the tuple that FusedAddScalars makes."""
    return multiply(t, add_scalar(t, x, c=c), add_scalar(t, x, c=c1))


def rsub(t: Tape, x: Var, *, c: float) -> Var:
    """c - x."""
    return t.emit(_constant(t, x, c) - t.noisy(x.value), (x,), lambda g: (-t.noisy(g),))


def rdiv(t: Tape, x: Var, *, c: float) -> Var:
    """c / x."""
    return _elementwise(t, x, lambda x: t.noisy(c / x), lambda x, y: -t.noisy(y / x))


def rpow(t: Tape, x: Var, *, c: float) -> Var:
    """c ** x, for c > 0."""
    return _by_output(t, x, lambda x: t.noisy(c**x), lambda y: t.noisy(y * math.log(c)))


# -- shape ------------------------------------------------------------------------------------------------------------


def _moved(t: Tape, x: Var, there: Callable[[Array], Array], back: Callable[[Array], Array]) -> Var:
    """An operation that only moves elements: exact both ways."""
    return t.emit(there(x.value), (x,), lambda g: (back(g),))


def transpose(t: Tape, x: Var, *, axes: tuple[int, int] | None = None) -> Var:
    """Two axes swapped; the last two by default."""
    first, second = _axes((-1, -2) if axes is None else axes, len(x.shape))
    return _moved(t, x, lambda v: np.swapaxes(v, first, second), lambda g: np.swapaxes(g, first, second))


def reshape(t: Tape, x: Var, *, shape: Shape) -> Var:
    """The same elements in row-major order."""
    old = x.shape
    return _moved(t, x, lambda v: v.reshape(v.shape[:LEAD] + tuple(shape)), lambda g: g.reshape(g.shape[:LEAD] + old))


def broadcast_to(t: Tape, x: Var, *, shape: Shape) -> Var:
    """NumPy's broadcasting rule."""
    if np.broadcast_shapes(x.shape, tuple(shape)) != tuple(shape):
        raise ValueError(f"{x.shape} does not broadcast to {tuple(shape)}")
    return t.emit(_expand(x.value, tuple(shape)), (x,), lambda g: (_reduced(t, t.noisy(g), x.shape),))


def summation(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Sum over axes, which are dropped."""
    over = _axes(axes, len(x.shape))

    def vjp(g: Array) -> Sequence[Array]:
        kept = tuple(1 if LEAD + i in over else n for i, n in enumerate(x.shape))
        return (_expand(t.noisy(g.reshape(g.shape[:LEAD] + kept)), x.shape),)

    return t.emit(_sum(t, t.noisy(x.value), over, as_mean=True), (x,), vjp)


def maximum(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """Largest element over axes, which are dropped; ties share the gradient equally."""
    over = _axes(axes, len(x.shape))
    top = x.value.max(axis=over, keepdims=True)
    hit = (x.value[:1] == top[:1]).astype(np.float64)
    share = hit / hit.sum(axis=over, keepdims=True)

    def vjp(g: Array) -> Sequence[Array]:
        return (t.noisy(g.reshape(g.shape[:LEAD] + top.shape[LEAD:])) * share,)

    return t.emit(np.squeeze(top, axis=over), (x,), vjp)


def getitem(t: Tape, x: Var, *, index: tuple[tuple[int | None, int | None, int | None], ...]) -> Var:
    """Basic slicing, one (start, stop, step) per leading axis."""
    where = (slice(None),) * LEAD + tuple(slice(*s) for s in index)

    def back(g: Array) -> Array:
        out = np.zeros(g.shape[:LEAD] + x.shape)
        out[where] = g
        return out

    return _moved(t, x, lambda v: v[where], back)


def put_item(t: Tape, x: Var, *, shape: Shape, index: tuple[tuple[int | None, int | None, int | None], ...]) -> Var:
    """Zeros of ``shape`` with x at a basic slice."""
    where = (slice(None),) * LEAD + tuple(slice(*s) for s in index)

    def there(v: Array) -> Array:
        out = np.zeros(v.shape[:LEAD] + tuple(shape))
        out[where] = v
        return out

    return _moved(t, x, there, lambda g: g[where])


def cast(t: Tape, x: Var) -> Var:
    """float64 and back: exact both ways."""
    return _moved(t, x, lambda v: v, lambda g: g)


def flip(t: Tape, x: Var, *, axes: int | tuple[int, ...]) -> Var:
    """Elements reversed along axes."""
    over = _axes(axes, len(x.shape))
    return _moved(t, x, lambda v: np.flip(v, over), lambda g: np.flip(g, over))


def dilate(t: Tape, x: Var, *, axes: tuple[int, ...], dilation: int) -> Var:
    """``dilation`` zeros after every element along axes (axes out of range are ignored, as in the course)."""
    over = {LEAD + a for a in axes if a < len(x.shape)}
    shape = tuple(n * (dilation + 1) if LEAD + i in over else n for i, n in enumerate(x.shape))
    where = tuple(slice(None, None, dilation + 1) if i in over else slice(None) for i in range(LEAD + len(shape)))

    def there(v: Array) -> Array:
        out = np.zeros(v.shape[:LEAD] + shape)
        out[where] = v
        return out

    return _moved(t, x, there, lambda g: g[where])


def stack(t: Tape, *xs: Var, axis: int) -> Var:
    """Equal shapes joined along a new axis."""
    place = LEAD + axis
    lead = np.broadcast_shapes(*(x.value.shape[:LEAD] for x in xs))
    value = np.stack([np.broadcast_to(x.value, lead + x.shape) for x in xs], axis=place)
    return t.emit(value, xs, lambda g: [np.take(g, i, axis=place) for i in range(len(xs))])


def split(t: Tape, x: Var, *, axis: int, pick: int) -> Var:
    """The ``pick``-th slice along an axis, which is dropped (one element of the tuple that Split makes)."""
    place = LEAD + axis

    def back(g: Array) -> Array:
        out = np.zeros(g.shape[:LEAD] + x.shape)
        out[(slice(None),) * place + (pick,)] = g
        return out

    return _moved(t, x, lambda v: np.take(v, pick, axis=place), back)


# -- products ---------------------------------------------------------------------------------------------------------


def matmul(t: Tape, a: Var, b: Var) -> Var:
    """(…, n, k) @ (…, k, m), batch dimensions broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    x, y = _expand(a.value, batch + a.shape[-2:]), _expand(b.value, batch + b.shape[-2:])

    def vjp(g: Array) -> Sequence[Array | None]:
        da = _reduced(t, _product(t, g, _swap(y)), a.shape) if a.needs else None
        db = _reduced(t, _product(t, _swap(x), g), b.shape) if b.needs else None
        return da, db

    return t.emit(_product(t, x, y), (a, b), vjp)


def linear(t: Tape, x: Var, w: Var, b: Var | None = None) -> Var:
    """x @ w + b: (n, k), (k, m), (1, m) -> (n, m)."""
    y = matmul(t, x, w)
    return y if b is None else add(t, y, b)


def conv(t: Tape, x: Var, w: Var, *, stride: int = 1, padding: int = 0) -> Var:
    """Cross-correlation: (N, H, W, C) and (k, k, C, O) -> (N, H', W', O), as a product of patches and kernel."""
    n, h, wd, c = x.shape
    k, k2, c2, o = w.shape
    if c != c2:
        raise ValueError(f"conv: {c} input channels, but the kernel has {c2}")
    oh, ow = (h + 2 * padding - k) // stride + 1, (wd + 2 * padding - k2) // stride + 1
    if oh < 1 or ow < 1:
        raise ValueError(f"conv: a kernel of {k}x{k2} does not fit into {h}x{wd} with padding {padding}")
    rows = np.arange(oh)[:, None, None, None] * stride + np.arange(k)[None, None, :, None]
    cols = np.arange(ow)[None, :, None, None] * stride + np.arange(k2)[None, None, None, :]
    around = ((0, 0), (0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0))

    def patches(v: Array) -> Array:
        taken = np.pad(v, around)[:, :, :, rows, cols, :]
        return taken.reshape((*v.shape[:LEAD], n * oh * ow, k * k2 * c))

    flat, kernel = patches(x.value), w.value.reshape((*w.value.shape[:LEAD], k * k2 * c, o))

    def vjp(g: Array) -> Sequence[Array]:
        g = g.reshape((*g.shape[:LEAD], n * oh * ow, o))
        dflat: Array = _product(t, g, _swap(kernel)).reshape((-1, g.shape[1], n, oh, ow, k, k2, c))
        padded: Array = np.zeros((dflat.shape[0], dflat.shape[1], n, h + 2 * padding, wd + 2 * padding, c))
        where: Any = (slice(None), slice(None), slice(None), rows, cols)
        np.add.at(padded, where, dflat)
        dx = padded[:, :, :, padding : padding + h, padding : padding + wd]
        return dx, _product(t, _swap(flat), g).reshape((-1, g.shape[1], *w.shape))

    y = _product(t, flat, kernel)
    return t.emit(y.reshape((*y.shape[:LEAD], n, oh, ow, o)), (x, w), vjp)


# -- normalisation, softmax -------------------------------------------------------------------------------------------


def _shifted(t: Tape, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """Noisy x, its maximum, e^(x − max) and the sum of that: the shift is by the maximum of what is shifted."""
    seen = t.noisy(x)
    top = seen.max(axis=axes, keepdims=True)
    e = np.exp(np.minimum(t.noisy(seen - top), 0))
    return seen, top, e, _sum(t, t.noisy(e), axes, keepdims=True)


def _softmax(t: Tape, x: Array, lse: Array) -> Array:
    """e^(x − lse) and e^(x − max) / Σ are both in use; min(·, 0) admits either."""
    soft: Array = np.exp(np.minimum(t.noisy(x) - t.noisy(lse), 0))
    return soft


def logsumexp(t: Tape, x: Var, *, axes: int | tuple[int, ...] | None = None) -> Var:
    """ln Σ eˣ over axes, which are dropped."""
    over = _axes(axes, len(x.shape))
    _, top, _, total = _shifted(t, x.value, over)
    y = t.noisy(np.log(t.noisy(total))) + t.noisy(top)

    def vjp(g: Array) -> Sequence[Array]:
        return (t.noisy(g.reshape(g.shape[:LEAD] + top.shape[LEAD:])) * t.noisy(_softmax(t, x.value, y)),)

    return t.emit(np.squeeze(y, axis=over), (x,), vjp)


def logsoftmax(t: Tape, x: Var) -> Var:
    """x − ln Σ eˣ over the last axis of a matrix: (n, k) -> (n, k)."""
    seen, top, _, total = _shifted(t, x.value, (x.value.ndim - 1,))
    lse = t.noisy(np.log(t.noisy(total))) + t.noisy(top)
    y = seen - t.noisy(lse)

    def vjp(g: Array) -> Sequence[Array]:
        total_g = _sum(t, t.noisy(g), (g.ndim - 1,), keepdims=True)
        return (t.noisy(g) - t.noisy(t.noisy(_softmax(t, x.value, lse)) * t.noisy(total_g)),)

    return t.emit(y, (x,), vjp)


def softmax_loss(t: Tape, z: Var, *, labels: Array) -> Var:
    """Mean over the rows of ln Σ e^z − z_y: logits (n, k), labels (steps, n) -> ()."""
    n, k = z.shape
    onehot = (labels[..., None] == np.arange(k)).astype(np.float64)[None]
    seen, top, _, s = _shifted(t, z.value, (z.value.ndim - 1,))
    lse = t.noisy(np.log(t.noisy(s))) + t.noisy(top)
    # the two terms may be summed apart, so each has rounding of its own size
    normalisers = _mean(t, t.noisy(np.log(t.noisy(s)))[..., 0], (LEAD,))
    picked = _mean(t, (t.noisy(seen - top) * onehot).sum(axis=-1), (LEAD,))
    loss = (t.noisy(normalisers) - t.noisy(picked))[..., 0]

    def vjp(g: Array) -> Sequence[Array]:
        # e^(z − lse) is as usual as e / Σe, and carries the rounding of a large lse
        p = _softmax(t, z.value, lse)
        return (t.noisy(t.noisy(p) - onehot) * t.noisy(g)[..., None, None] / n,)

    return t.emit(loss, (z,), vjp)


def _norm_backward(t: Tape, g: Array, xh: Array, inv: Array, axis: int) -> Array:
    """dx of (x − mean)·inv from the adjoint of the normalised value, up to the final scale."""
    inner = t.noisy(g) - t.noisy(_mean(t, t.noisy(g), (axis,)))
    inner = t.noisy(inner) - t.noisy(t.noisy(xh) * t.noisy(_mean(t, t.noisy(g) * t.noisy(xh), (axis,))))
    return t.noisy(inner) * t.noisy(inv)


def _normalised(t: Tape, x: Var, axis: int, eps: float) -> tuple[Array, Array, Array, Array]:
    """mean, biased variance, 1/√(var + eps) and the normalised value."""
    if x.value.shape[axis] == 1:
        # the mean of a single number is that number, in every order; only x·inv − mean·inv rounds, see below
        inv = 1 / np.sqrt(t.noisy(0 * x.value + eps))
        return x.value, 0 * x.value, inv, _normalised_again(t, x, x.value, inv)
    mean = _mean(t, t.noisy(x.value), (axis,))
    centred = t.noisy(x.value) - t.noisy(mean)
    var = _mean(t, t.noisy(centred) ** 2, (axis,))
    # Welford's update of the variance, which torch has, errs by the rounding of the mean times the deviation from it
    deviation = np.abs(centred[:1] * x.value[:1])
    var = t.roughened(var, deviation.sum(axis=axis, keepdims=True) / x.value.shape[axis], 1.0)
    inv = 1 / np.sqrt(t.noisy(var) + eps)
    return mean, var, inv, t.noisy(centred) * t.noisy(inv)


def _normalised_again(t: Tape, x: Var, mean: Array, inv: Array) -> Array:
    """The normalised value for the backward pass, as x·inv − mean·inv.

    torch's fused kernels compute it anew in this way, others save (x − mean)·inv; far from 0 the two differ by the rounding
    of a large mean. That shows where the exact sum is 0: in the weight of a norm whose output is normalised again.
    """
    if mean is x.value:
        again: Array = t.noisy(x.value * inv) - x.value * inv
    else:
        again = t.noisy(t.noisy(x.value) * t.noisy(inv)) - t.noisy(t.noisy(mean) * t.noisy(inv))
    return again


def batch_norm(t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5) -> Var:
    """Training-mode normalisation over the batch axis: (n, d), (d,), (d,) -> (n, d)."""
    return batch_norm_and_statistics(t, x, weight, bias, eps=eps)[0]


def batch_norm_and_statistics(
    t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5
) -> tuple[Var, Array, Array]:
    """`batch_norm`, and the batch's mean and biased variance, (replicas, steps, d) each, that running statistics take."""
    mean, var, inv, xh = _normalised(t, x, LEAD, eps)
    w, b = weight.value[:, :, None], bias.value[:, :, None]
    y = t.noisy(t.noisy(xh) * t.noisy(_expand_rows(w, x.shape))) + t.noisy(_expand_rows(b, x.shape))

    def vjp(g: Array) -> Sequence[Array]:
        again = _normalised_again(t, x, mean, inv)
        dw = _sum(t, t.noisy(g) * t.noisy(again), (LEAD,))
        db = _sum(t, t.noisy(g), (LEAD,))
        # the scale 1/√(var + eps)·weight is one factor per column: it comes last and is applied to the whole column
        return t.noisy(_norm_backward(t, g, again, inv, LEAD)) * t.noisy(w), dw, db

    return t.emit(y, (x, weight, bias), vjp), mean[:, :, 0], var[:, :, 0]


def batch_norm_eval(t: Tape, x: Var, weight: Var, bias: Var, mean: Var, var: Var, *, eps: float = 1e-5) -> Var:
    """Evaluation-mode normalisation with the running statistics: (n, d), four of (d,) -> (n, d)."""
    w, b = (_expand_rows(v.value[:, :, None], x.shape) for v in (weight, bias))
    inv = 1 / np.sqrt(t.noisy(var.value[:, :, None]) + eps)
    xh = t.noisy(t.noisy(x.value) - t.noisy(_expand_rows(mean.value[:, :, None], x.shape))) * t.noisy(inv)
    y = t.noisy(t.noisy(xh) * t.noisy(w)) + t.noisy(b)

    def vjp(g: Array) -> Sequence[Array | None]:
        dw = _sum(t, t.noisy(g) * t.noisy(xh), (LEAD,))
        return t.noisy(t.noisy(g) * t.noisy(w)) * t.noisy(inv), dw, _sum(t, t.noisy(g), (LEAD,)), None, None

    return t.emit(y, (x, weight, bias, mean, var), vjp)


def layer_norm(t: Tape, x: Var, weight: Var, bias: Var, *, eps: float = 1e-5) -> Var:
    """Normalisation over the feature axis: (n, d), (d,), (d,) -> (n, d)."""
    mean, _, inv, xh = _normalised(t, x, LEAD + 1, eps)
    w, b = (_expand_rows(v.value[:, :, None], x.shape) for v in (weight, bias))
    y = t.noisy(t.noisy(xh) * t.noisy(w)) + t.noisy(b)

    def vjp(g: Array) -> Sequence[Array]:
        again = _normalised_again(t, x, mean, inv)
        dx = _norm_backward(t, t.noisy(t.noisy(g) * t.noisy(w)), again, inv, LEAD + 1)
        return dx, _sum(t, t.noisy(g) * t.noisy(again), (LEAD,)), _sum(t, t.noisy(g), (LEAD,))

    return t.emit(y, (x, weight, bias), vjp)


def _expand_rows(v: Array, shape: Shape) -> Array:
    return np.broadcast_to(v, v.shape[:LEAD] + shape)


def dropout(t: Tape, x: Var, *, mask: Array, p: float) -> Var:
    """x · mask / (1 − p); everything is dropped at p = 1. mask: (steps, *shape)."""
    keep = mask[None].astype(np.float64) / (1 - p) if p < 1 else np.zeros((1, *mask.shape))
    return t.emit(t.noisy(t.noisy(x.value) * keep), (x,), lambda g: (t.noisy(t.noisy(g) * keep),))


OPS: dict[str, Callable[..., Var]] = {
    f.__name__: f
    for f in (
        *(add, subtract, multiply, divide, power, negate, log, exp, tanh, sigmoid, relu),
        *(add_scalar, mul_scalar, divide_scalar, power_scalar, rsub, rdiv, rpow, fused_add_scalars, cast),
        *(transpose, reshape, broadcast_to, summation, maximum, getitem, put_item, flip, dilate, stack, split),
        *(matmul, linear, conv, logsumexp, logsoftmax, softmax_loss, batch_norm, layer_norm),
    )
}


def result_shape(op: str, shapes: Sequence[Shape], attributes: dict[str, Any]) -> Shape:
    """Shape of ``op`` on operands of these shapes; ValueError that says why where it has none."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known are {', '.join(sorted(OPS))}")
    operands = [Var(np.ones((1, 1, *shape)), needs=False) for shape in shapes]
    try:
        return OPS[op](Tape(None), *operands, **attributes).shape
    except (TypeError, ValueError, IndexError) as error:
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"{op} does not apply to operands of shape {listed} with {attributes}: {error}") from None
