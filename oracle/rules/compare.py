"""When two arrays count as different: presence, shape and dtype before any value. NumPy alone."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.operations.tape import BEYOND_NOISE, TINY, U
from oracle.rules.verdict import Divergence

Array = npt.NDArray[Any]
Key = tuple[str, str]  # quantity and name of a tensor

G_LIMIT = BEYOND_NOISE
VALIDATED = 1e-4  # limit, in units of rule G's, for the truth's exact replica against torch float64
EXACT = 5e-324  # a tolerance that nothing but the very same number is within


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
        """Values of the truth, each (replicas or 1, steps or 1, *shape): (replicas, steps, elements). To be read alone: that of a single
        one is no copy.
        """
        if len(values) == 1 and values[0].shape[1] == steps:
            return values[0].reshape((*values[0].shape[:2], self.size))
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


def tolerance(
    truth: Array, joined: Joined | None = None, units: float | Array = U, least: float | Array = TINY
) -> Array:
    """Rule G's tolerance for truth (replicas, steps, *shape), or for several tensors joined: (steps, *shape).

    ``units`` and ``least``: what each of the tensors rounds by, and may lose near zero.
    """
    exact = truth[0]
    size = np.abs(exact)
    # the largest |replica − exact|, without an array of all of them; the exact one is its own replica
    noise = np.maximum(truth.max(axis=0) - exact, exact - truth.min(axis=0))
    if joined is not None:
        common = joined.spread(0.01 * (joined.largest(noise) + units * joined.largest(size)))
        units, least = (v if isinstance(v, float) else joined.spread(v) for v in (units, least))
    else:
        axes = tuple(range(1, exact.ndim))
        largest = size.max(axis=axes, keepdims=True, initial=0)
        common = 0.01 * (noise.max(axis=axes, keepdims=True, initial=0) + units * largest)
    return np.asarray(noise + common + units * size + least)


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


def worst(share: Array) -> tuple[int, ...]:
    """Index of the largest element."""
    return unravelled(int(np.argmax(share)), share.shape)


def unravelled(at: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of the at-th element."""
    return tuple(int(i) for i in np.unravel_index(at, shape))


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
