"""The tape that definitions are written on: float64 values, their adjoints, and the noise of float32 rounding.

Every array has two leading axes, ``(replicas, steps)``: replica 0 is exact; the others get noise of the size of float32
rounding at every operand edge, forward and backward, so that the spread of the replicas *measures* how much a correct
float32 program may differ. ``steps`` stacks the independent (synchronised) training steps of one case, so that one pass
serves all of them.
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
REPLICAS = 8  # `BEYOND_NOISE` was calibrated with 8; change both or neither
# Rule G's limit, in units of the noise that seven replicas show. Calibrated: the largest share of it that correct needles
# use is in reports/calibration.md, and the noise of a sum is scaled to it (ANY_ORDER).
BEYOND_NOISE = 16.0
COHERENT = 3  # noisy replicas of a training run or a program in which all rows round alike
LEAD = 2  # the number of leading axes: (replicas, steps)


@dataclass(frozen=True)
class Rounding:
    """How numbers of a dtype round: its unit roundoff, and its smallest normal number."""

    unit: float
    tiny: float


SINGLE = Rounding(U, TINY)

LARGE = 1 << 13  # numbers, from which on a copy costs more than three operations in place of one
_POOL_SIZE = 1 << 20
_PIECE = _POOL_SIZE // 8  # of a lap, where an array needs more noise than there is in the pool
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
        return self._alike(self._next((self.replicas - 1, *shape)).copy())

    def scale(self, x: Array) -> None:
        """x of that shape times noise, in place."""
        noise = self._next(x.shape)
        if not self.coherent or x.ndim <= 1 + LEAD:
            x *= noise
        elif x.size < LARGE:
            x *= self._alike(noise.copy())
        else:  # without a copy of the noise: memory is what takes the time
            alone, last = self.replicas - 1 - self.coherent, x[-1]
            x[:alone] *= noise[:alone]
            x[alone:-1] *= noise[alone:-1, :, :1]
            last *= noise[-1][(slice(None), *[slice(1)] * (last.ndim - 1))]

    def _next(self, shape: Shape) -> Array:
        """Independent noise: a view of the pool."""
        count, start = math.prod(shape), self._cursor
        end = start + count
        if end <= _POOL_SIZE:
            flat, self._cursor = _POOL[start:end], end
        else:
            flat = self._beyond(count)
        return flat.reshape(shape)

    def _alike(self, noise: Array) -> Array:
        """The same noise for all rows in the replicas where they round alike, and for all elements in the last one."""
        if self.coherent and noise.ndim > 1 + LEAD:
            rows, last = noise[-self.coherent :], noise[-1]
            rows[:, :, 1:] = rows[:, :, :1]
            last[...] = last[(slice(None), *[slice(1)] * (last.ndim - 1))]
        return noise

    def _beyond(self, count: int) -> Array:
        """Noise where the pool ends: a new lap, or as many pieces of laps as it takes. (To draw so much anew takes longer than all that
        is made of it.)
        """
        if count > _POOL_SIZE:
            return np.concatenate([self._next((min(_PIECE, count - at),)) for at in range(0, count, _PIECE)])
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
    rounding: Rounding = SINGLE  # of the dtype that a program has it in

    @property
    def shape(self) -> Shape:
        return self.value.shape[LEAD:]


Vjp = Callable[[Array], "Sequence[Array | None]"]


@dataclass(eq=False)
class Tape:
    """Records operations and walks them backward once."""

    noise: Noise | None
    special: bool = False  # operands may be nan or infinite; they stay what they are
    rounding: Rounding = SINGLE  # of the dtype in which a program computes at this place
    records: list[tuple[Var, tuple[Var, ...], Vjp]] = field(default_factory=list)

    def noisy(self, x: Array) -> Array:
        """x with fresh rounding noise in replicas 1…; replica 0 untouched."""
        if self.noise is None:
            return x
        out = np.empty((self.noise.replicas, *x.shape[1:]))
        exact, perturbed = x[0], out[1:]  # no temporary arrays of that size: most of the time goes into memory
        underflow = UNDERFLOW if self.rounding is SINGLE else self.rounding.tiny / self.rounding.unit
        out[0] = exact
        size = np.abs(exact)
        size[(size > 0) & (size < underflow)] = underflow
        if x.shape[0] == 1:
            replicas, perturbed[...] = exact, size
        else:
            # the amplitude is that of the larger of the replica and the exact value, so that a replica which has
            # fallen into another regime (a variance near 0) does not underestimate
            replicas = x[1:]
            np.abs(replicas, out=perturbed)
            np.maximum(perturbed, size, out=perturbed)
        if self.rounding is not SINGLE:
            perturbed *= self.rounding.unit / U
        self.noise.scale(perturbed)
        perturbed += replicas
        return np.where(np.isfinite(x), out, x) if self.special else out

    def coarse(self, x: Array, of: Var) -> Array:
        """x as numbers in the dtype of a Var, where that is narrower than what is computed in."""
        if of.rounding.unit <= self.rounding.unit:
            return x
        around, self.rounding = self.rounding, of.rounding
        noisy, self.rounding = self.noisy(x), around
        return noisy

    def roughened(self, y: Array, magnitude: Array, weight: float) -> Array:
        """y with extra noise ``weight · u · magnitude · ξ``, ξ uniform in ±2, in replicas 1…."""
        if self.noise is None or weight <= 0:
            return y
        e = self.noise.draw(y.shape[1:])
        if y.shape[0] == 1:
            y = np.repeat(y, self.noise.replicas, axis=0)
        # what adds up in float16 does so in float32
        e *= weight * min(self.rounding.unit / U, 1.0) * magnitude[:1]
        y[1:] += e
        return y

    def moved(self, x: Array, to: Callable[[Array], Array]) -> Array:
        """The elements of x at other places."""
        return to(x)

    def term(self, x: Any, others: int) -> Any:
        """x as a term of a sum beside this many others."""
        return x

    def scattered(self, x: Array, shape: Shape, where: Any) -> Array:
        """The elements of x added up at places of zeros of this shape: sums, which round as those of `summed` where several meet."""

        def added(x: Array) -> Array:
            out = np.zeros(x.shape[:LEAD] + shape)
            np.add.at(out, (slice(None),) * LEAD + where, x)
            return out

        out = added(x)
        if self.noise is None:
            return out
        several = added(np.ones((1, 1, *x.shape[LEAD:])))
        several[several == 1] = 0
        return self.roughened(out, several * added(np.abs(x[:1])), ANY_ORDER) if several.any() else out

    def variance(self, x: Array, centred: Array, mean: Array, axes: tuple[int, ...]) -> Array:
        """The mean of the squares of x − mean over axes. Welford's update, which torch has, errs by the rounding of the mean times
        the deviation from it.
        """
        var = mean_of(self, self.noisy(centred) ** 2, axes)
        if self.noise is None:
            return var
        deviation = np.abs(centred[:1] * x[:1])
        n = math.prod(x.shape[axis] for axis in axes)
        return self.roughened(var, deviation.sum(axis=axes, keepdims=True) / n, 1.0)

    def either(self, usual: Callable[[], Array], careful: Callable[[], Array]) -> Array:
        """A value that one program computes in a ``careful`` way and another as ``usual``: noise is that of the usual way,
        which is larger, and bounds are those of the other.
        """
        return usual()

    def constant(self, c: float, shape: Shape) -> Array:
        """c, rounded for each element; ``shape`` has the axis of the steps."""
        return self.noisy(np.full((1, *shape), c))

    def emit(self, value: Array, operands: Sequence[Var], vjp: Vjp) -> Var:
        """Record one operation. ``vjp(g)`` gives one contribution per operand (None where none is needed)."""
        out = Var(value, needs=any(v.needs for v in operands), rounding=self.rounding)
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
            self.rounding = out.rounding
            for var, contribution in zip(operands, vjp(out.adjoint), strict=True):
                if contribution is not None and var.needs:
                    self._add(var, contribution)

    def _add(self, var: Var, contribution: Array) -> None:
        contribution = self.coarse(contribution, var)  # it takes its gradient in its own dtype
        if var.uses > 1:
            contribution = self.noisy(contribution)
        var.adjoint = contribution if var.adjoint is None else var.adjoint + contribution


# -- what definitions are written with: arrays with leading axes -----------------------------------------------------


def require(holds: bool, text: str) -> None:
    """ValueError where what a definition is given lies outside its domain."""
    if not holds:
        raise ValueError(text)


def axes_of(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes of the array proper, as axes of the array with its leading axes."""
    if axes is None:
        axes = tuple(range(rank))
    elif isinstance(axes, int):
        axes = (axes,)
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} is out of range for {rank} dimensions")
    found = tuple(LEAD + axis % rank for axis in axes)
    require(len(set(found)) == len(found), f"axes {tuple(axes)} name an axis twice")
    return found


def expand(x: Array, shape: Shape) -> Array:
    """x broadcast to ``shape`` behind its own leading axes."""
    own = x.shape[LEAD:]
    if own == shape:
        return x
    aligned = x.reshape(x.shape[:LEAD] + (1,) * (len(shape) - len(own)) + own)
    return np.broadcast_to(aligned, x.shape[:LEAD] + shape)


def expand_rows(v: Array, shape: Shape) -> Array:
    return np.broadcast_to(v, v.shape[:LEAD] + shape)


def reduced(t: Tape, g: Array, shape: Shape) -> Array:
    """g summed over what broadcasting had expanded, down to ``shape``."""
    wide = g.shape[LEAD:]
    if wide == shape:
        return g
    extra = len(wide) - len(shape)
    axes = tuple(LEAD + i for i in range(len(wide)) if i < extra or (shape[i - extra] == 1 and wide[i] != 1))
    return summed(t, g, axes).reshape(g.shape[:LEAD] + shape)


def summed(t: Tape, x: Array, axes: tuple[int, ...], keepdims: bool = False, *, as_mean: bool = False) -> Array:
    """Sum, with the rounding of every order and blocking as extra noise, see `ANY_ORDER`.

    ``as_mean``: it may be on its way to a mean, which is subtracted again: the extra noise of `mean_of`, if that is more.
    """
    n = math.prod(x.shape[a] for a in axes)
    y: Array = x.sum(axis=axes, keepdims=keepdims)
    weight = max(ANY_ORDER * n, 0.5 * math.sqrt(n) if as_mean else 0)
    if n > 1 and t.noise is not None:
        y = t.roughened(y, np.abs(x[:1]).sum(axis=axes, keepdims=keepdims), weight)
    return y


def mean_of(t: Tape, x: Array, axes: tuple[int, ...]) -> Array:
    """Mean (axes kept). Rounding is systematic on identical rows: extra noise √n · u · mean|x|, which up to 256 terms is
    more than that of every order.
    """
    n = math.prod(x.shape[a] for a in axes)
    y: Array = x.sum(axis=axes, keepdims=True) / n
    if t.noise is None:
        return y
    weight = max(ANY_ORDER, 0.5 / math.sqrt(n))
    return t.roughened(y, np.abs(x[:1]).sum(axis=axes, keepdims=True), weight)


def product(t: Tape, a: Array, b: Array) -> Array:
    """Matrix product of noisy operands, with the rounding of every order and blocking of its sums, see `ANY_ORDER`."""
    y: Array = np.matmul(t.noisy(a), t.noisy(b))
    k = a.shape[-1]
    if k > 1 and t.noise is not None:
        y = t.roughened(y, np.matmul(np.abs(a[:1]), np.abs(b[:1])), ANY_ORDER * k)
    return y


def swapped(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def moved(t: Tape, x: Var, there: Callable[[Array], Array], back: Callable[[Array], Array]) -> Var:
    """An operation that only moves elements: exact both ways."""
    return t.emit(t.moved(x.value, there), (x,), lambda g: (t.moved(g, back),))


def constant(t: Tape, x: Var, c: float) -> Array:
    """c, rounded for each element of x."""
    return t.constant(c, x.value.shape[1:])
