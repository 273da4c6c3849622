"""The rules: when does a tensor of ours count as wrong? NumPy alone.

- G: within 16 × the noise measured on that tensor by the replicas of the truth;
- L: an optimizer's update, from our own gradients and the old state, in float64, within 2 × a first-order bound;
- exact: bits that must not change.

Rule T (torch's own optimizer) and rule P (the peer against the truth) use the same functions; see `oracle.engine`.
Every rule looks at presence, shape and dtype before it looks at values, and counts what it compared.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle import case as c
from oracle.operations.bounds import Bounded
from oracle.operations.tape import TINY, U
from oracle.trace import QUANTITIES, Failure

Array = npt.NDArray[Any]

G_LIMIT = 16.0
L_LIMIT = 2.0
T_LIMIT = 3.0
DOMAIN = 1e15
COIN = 0.5  # rounding that moves a value by as much decides what comes of it
LOGIT_DOMAIN = 1e6
EXACT = 5e-324  # a tolerance that nothing but the very same number is within


@dataclass(frozen=True)
class Suspect:
    """Who is to blame for a divergence, by what is known; see `oracle.locate`."""

    what: str  # "Tanh backward", "Dropout forward in training mode", "SGD velocity update"
    place: str = ""  # where in the model: a layer, a node of the tape, a parameter
    known: str = ""  # what agrees
    words: str = ""  # what needle seems to do instead
    line: str = ""  # where in needle that is defined: "needle/ops.py:351"
    operator: str = ""  # rule OP's own verdict, if it has one
    tensor: str = ""  # the verdict of the first bad tensor, where it is another one
    key: str = ""  # equal for one fault, wherever it shows; ``what`` if empty

    @property
    def text(self) -> str:
        """One line."""
        parts = [self.what + (f" ({self.line})" if self.line else "")]
        parts += [p for p in (self.place, self.words, self.known) if p]
        if self.tensor:
            parts.append(f"the first bad tensor alone would point at {self.tensor}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Divergence:
    """The first place where needle parts from what it must equal."""

    step: int
    quantity: str
    name: str
    rule: str  # "G", "L", "T", "OP", "exact", "shape", "dtype", "missing", "unexpected", "exception", "nonfinite"
    message: str  # one line, complete in itself
    index: tuple[int, ...] | None = None
    ours: float | str | None = None
    peer: float | str | None = None
    truth: float | str | None = None
    dtype: str | None = None
    error: float | None = None
    allowed: float | None = None
    failure: Failure | None = None
    suspect: Suspect | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by step, then by the order in which quantities arise."""
        place = QUANTITIES.index(self.quantity) if self.quantity in QUANTITIES else len(QUANTITIES)
        return self.step, place

    @property
    def place(self) -> str:
        """Like ``velocity 0.weight[0, 0]``."""
        at = "" if not self.index else f"[{', '.join(map(str, self.index))}]"
        return f"{self.quantity} {self.name}{at}".replace("loss loss", "loss")


@dataclass
class Tally:
    """What was compared, and how near it came to the limits (1.0 = at the limit)."""

    tensors: int = 0
    elements: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # "G gradient" -> largest share of the tolerance
    where: dict[str, str] = field(default_factory=dict)

    def count(self, key: str, share: float, tensors: int, elements: int, where: str = "") -> None:
        """Add comparisons of one kind."""
        self.tensors += tensors
        self.elements += elements
        if math.isfinite(share) and share > self.largest.get(key, -1.0):
            self.largest[key] = share
            self.where[key] = where

    def add(self, other: Tally) -> None:
        """Add another tally."""
        self.tensors += other.tensors
        self.elements += other.elements
        for key, share in other.largest.items():
            if share > self.largest.get(key, -1.0):
                self.largest[key], self.where[key] = share, other.where.get(key, "")


Key = tuple[str, str]  # quantity and name of a tensor


class Joined:
    """Tensors of the same steps side by side, ``(…, steps, elements)``: a rule is then a few calls for all of them."""

    def __init__(self, keys: Sequence[Key], shapes: Sequence[tuple[int, ...]]) -> None:
        self.keys, self.shapes = keys, shapes
        self.sizes = [math.prod(shape) for shape in shapes]
        self.starts = [end - size for end, size in zip(itertools.accumulate(self.sizes), self.sizes, strict=True)]
        self.size = sum(self.sizes)

    def steps(self, rows: Sequence[Sequence[Array]]) -> Array:
        """One row of tensors per step: (steps, elements), of the dtype of the tensors."""
        if not self.size:
            return np.zeros((len(rows), 0))
        return np.concatenate([a for row in rows for a in row], axis=None).reshape(len(rows), self.size)

    def replicas(self, values: Sequence[Array], steps: int) -> Array:
        """Values of the truth, each (replicas or 1, steps or 1, *shape): (replicas, steps, elements)."""
        joined = np.empty((max(v.shape[0] for v in values), steps, self.size))
        for value, start, size in zip(values, self.starts, self.sizes, strict=True):
            joined[:, :, start : start + size] = value.reshape((*value.shape[:2], size))
        return joined

    def largest(self, elements: Array) -> Array:
        """The maximum of each tensor: (…, elements) -> (…, tensors)."""
        largest: Array = np.maximum.reduceat(elements, self.starts, axis=-1)
        return largest

    def spread(self, tensors: Array) -> Array:
        """One number per tensor, for each of its elements: (…, tensors) -> (…, elements)."""
        return np.repeat(tensors, self.sizes, axis=-1)

    def tensor(self, element: int) -> int:
        """Which tensor an element belongs to."""
        return bisect.bisect_right(self.starts, element) - 1

    def place(self, tensor: int) -> slice:
        """Where the elements of a tensor are."""
        start = self.starts[tensor]
        return slice(start, start + self.sizes[tensor])

    def part(self, elements: Array, tensor: int) -> Array:
        """One step's array of one tensor, in its own shape, out of (elements,)."""
        return elements[self.place(tensor)].reshape(self.shapes[tensor])


def tolerance(truth: Array, joined: Joined | None = None) -> Array:
    """Rule G's tolerance for truth (replicas, steps, *shape), or for several tensors joined: (steps, *shape)."""
    exact = truth[0]
    size = np.abs(exact)
    # the largest |replica − exact|, without an array of all of them; the exact one is its own replica
    noise = np.maximum(truth.max(axis=0) - exact, exact - truth.min(axis=0))
    if joined is not None:
        common = joined.spread(joined.largest(noise) + U * joined.largest(size))
    else:
        axes = tuple(range(1, exact.ndim))
        common = noise.max(axis=axes, keepdims=True, initial=0) + U * size.max(axis=axes, keepdims=True, initial=0)
    return np.asarray(noise + 0.01 * common + U * size + TINY)


def share_of(ours: Array, truth: Array, allowed: Array) -> Array:
    """|ours − truth| as a share of what is allowed; inf where ours is not a number."""
    with np.errstate(all="ignore"):
        share: Array = np.abs(ours - truth)
        share /= allowed
    share[np.isnan(share)] = np.inf
    return share


def made_by_both(ours: Array, peer: Array, truth: Array) -> Array:
    """Where the peer makes at least half of our error, in the same direction: one error, not two.

    It is rounding that is the same in every float32 program, as when 63 equal small numbers are added to a large one and
    each addition errs in the same direction; noise that is independent measures less than that. A fault of ours is no
    error of the peer.
    """
    with np.errstate(all="ignore"):
        return np.asarray(np.abs(ours - peer) <= np.abs(ours - truth) / 2)


def share_g(ours: Array, truth: Array) -> Array:
    """|ours − truth| as a share of what rule G allows, (steps, *shape); inf where ours is not a number."""
    return share_of(ours, truth[0], G_LIMIT * tolerance(truth))


def all_below(limit: float, v: Array) -> bool:
    """Whether every number is smaller than that, without its sign; written so that nan is not."""
    return bool(v.max(initial=0) < limit and v.min(initial=0) > -limit)


def out_of_domain(truth: Mapping[str, Mapping[str, Array]], logits: str | None, softmax: bool = True) -> Array:
    """Steps in which the truth is too large to be judged: |truth| >= 1e15, |logits| >= 1e6, or not finite; or in which
    rounding alone decides about a layer's output. ``logits`` names the last layer, and ``softmax`` says what follows it.
    """
    steps = _undetermined(truth, logits if softmax else None)
    if all(all_below(LOGIT_DOMAIN, v) for values in truth.values() for v in values.values()):  # nearly always
        return steps
    for quantity, values in truth.items():
        for name, value in values.items():
            # np.abs(nan) < limit is false: a replica that is not a number ends the domain too
            size = np.abs(value).max(axis=(0, *range(2, value.ndim)), initial=0)
            bad = ~(size < (LOGIT_DOMAIN if name == logits and quantity in ("activation", "evaluation") else DOMAIN))
            steps = steps | bad
    return steps


def _undetermined(truth: Mapping[str, Mapping[str, Array]], logits: str | None) -> Array:
    """Steps in which a layer's output is nothing but amplified rounding: the noise moves it by 1/2 or more, and by an eighth
    of its largest element or more. For logits 1/2 is enough: probabilities then change by two thirds.

    A column that is constant, normalised and scaled up, is 0 in theory, and in float32 any number. What a softmax, a tanh
    or another norm makes of it is decided by the last bits, as if by a coin; no number of replicas throws all coins.
    """
    steps: Array = np.zeros(1, dtype=bool)
    for quantity in ("activation", "evaluation"):
        for name, value in truth.get(quantity, {}).items():
            if value.shape[0] == 1:
                continue
            exact, axes = value[0], tuple(range(1, value.ndim - 1))
            noise = np.maximum(value.max(axis=0) - exact, exact - value.min(axis=0)).max(axis=axes, initial=0)
            if noise.max(initial=0) >= COIN:
                size = 0 if name == logits else np.abs(exact).max(axis=axes, initial=0)
                steps = steps | ((noise >= COIN) & (noise >= size / 8))
    return steps


# -- rule L -----------------------------------------------------------------------------------------------------------


@dataclass
class Update:
    """What an optimizer must give, in float64, each with the bound E of its error: quantity -> (value, E)."""

    values: dict[str, tuple[Array, Array]]


def expected_update(
    case: c.TrainCase, lr: Array, p: Array, g: Array, old: Mapping[str, Array], t: Array, k: float | Array
) -> Update:
    """Rule L for one parameter over all steps: the update, run on arrays that carry error bounds.

    Arrays are (steps, *shape); lr and t (steps, 1, …); k: roundings of g, 4 of them those of a gradient as it is.
    """
    spec, decay = case.optimizer, float(case.optimizer.weight_decay or 0.0)
    grad, rate = Bounded(g, (k - 4) * U * np.abs(g)), _rounded(lr)
    d = grad + Bounded(p) * decay if decay else grad
    if isinstance(spec, c.SGD):
        beta = float(spec.momentum or 0.0)
        u = Bounded(old["velocity"]) * beta + d * (1 - beta)
        return _update(velocity=u, parameter=p - rate * u)
    b1 = 0.9 if spec.beta1 is None else float(spec.beta1)
    b2 = 0.999 if spec.beta2 is None else float(spec.beta2)
    eps = 1e-8 if spec.eps is None else float(spec.eps)
    m = Bounded(old["first moment"]) * b1 + d * (1 - b1)
    v = Bounded(old["second moment"], low=0.0) * b2 + d * d * (1 - b2)
    root = np.sqrt(v / _rounded(1 - b2**t))
    return _update(first_moment=m, second_moment=v, parameter=p - rate * (m / _rounded(1 - b1**t)) / (root + eps))


def _rounded(x: Array) -> Bounded:
    """Numbers of the optimizer's own, which are not negative; float32 may round them."""
    return Bounded(x, U * x, 0.0)


def _update(**quantities: Bounded) -> Update:
    return Update({name.replace("_", " "): (x.v, x.error) for name, x in quantities.items()})


def roundings_apart(value: Array, right: Array) -> Array:
    """How far apart numbers are, in roundings of the right ones; 0 where either is no finite number or zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        apart = np.abs(value / right - 1) / U
    return np.where(np.isfinite(apart), apart, 0.0)


def clip_factor(norm: Array, max_norm: float) -> Array:
    """min(1, max_norm / (norm + 1e-6))."""
    return np.minimum(1.0, max_norm / (norm + 1e-6))


# -- looking for the first difference ---------------------------------------------------------------------------------


def worst(share: Array) -> tuple[int, ...]:
    """Index of the largest element."""
    return unravelled(int(np.argmax(share)), share.shape)


def unravelled(at: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of the at-th element."""
    return tuple(int(i) for i in np.unravel_index(at, shape))


def same_bits(a: Array, b: Array) -> bool:
    """Equal element by element; two nan are equal."""
    return (a.shape == b.shape and bool((a == b).all())) or np.array_equal(a, b, equal_nan=True)


def scalar(array: Array | None, index: tuple[int, ...]) -> float | str | None:
    """An element as a plain number."""
    if array is None:
        return None
    try:
        value = array[index]
    except IndexError:
        return f"shape {array.shape}"
    return value if isinstance(value, str) else float(value)


def check_form(
    step: int, quantity: str, name: str, ours: Array | None, shape: Sequence[int], dtype: str | np.dtype[Any]
) -> Divergence | None:
    """Presence, shape and dtype."""
    if ours is None:
        return Divergence(step, quantity, name, "missing", f"needle has no {quantity} {name}")
    if tuple(ours.shape) != tuple(shape):
        message = f"needle's {quantity} {name} has shape {tuple(ours.shape)}, not {tuple(shape)}"
        return Divergence(step, quantity, name, "shape", message, ours=str(tuple(ours.shape)), truth=str(tuple(shape)))
    if ours.dtype != dtype:
        message = f"needle's {quantity} {name} has dtype {ours.dtype}, not {dtype}"
        return Divergence(step, quantity, name, "dtype", message, ours=str(ours.dtype), truth=str(dtype))
    return None


def numeric(
    step: int,
    quantity: str,
    name: str,
    rule: str,
    at: tuple[int, ...],
    ours: Array,
    peer: Array | None,
    truth: Array,
    allowed: Array,
) -> Divergence:
    """A Divergence at one element of one step's arrays."""
    error = abs(float(ours[at]) - float(truth[at]))
    message = f"{quantity} {name} is off by {error:.3g}, allowed {float(allowed[at]):.3g} (rule {rule})"
    return Divergence(
        step, quantity, name, rule, message, index=at, ours=scalar(ours, at), peer=scalar(peer, at),
        truth=scalar(truth, at), dtype=str(ours.dtype), error=error, allowed=float(allowed[at]),
    )  # fmt: skip
