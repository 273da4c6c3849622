"""Shorter numbers in a failing case: what is 0 can be left out of a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from oracle.check.arrays import Array

Change = Callable[[Sequence[Array]], "list[Array] | None"]


def shorter(arrays: Sequence[Array]) -> Iterator[Change]:
    """Changes to be tried one after the other, each of what the one before has left: a whole array of zeros or ones, then each
    element 0, then each of those that are left 1, or rounded to few digits. A change gives None where nothing changes.
    """
    whole = slice(None)
    for which in range(len(arrays)):
        yield partial(_put, which=which, at=whole, short=lambda x: 0.0)
        yield partial(_put, which=which, at=whole, short=lambda x: 1.0)
    places = [(which, at) for which, a in enumerate(arrays) for at in range(a.size)]
    for which, at in places:
        yield partial(_put, which=which, at=at, short=lambda x: 0.0)
    for which, at in places:
        for short in _SHORT:
            yield partial(_put, which=which, at=at, short=short)


_SHORT: tuple[Callable[[float], float], ...] = (
    lambda x: 1.0,
    round,
    lambda x: float(f"{x:.1g}"),
    lambda x: float(f"{x:.2g}"),
)


def _put(given: Sequence[Array], which: int, at: Any, short: Callable[[float], float]) -> list[Array] | None:
    """A copy with another number in one place."""
    out = [np.array(a) for a in given]
    if out[which].dtype.kind != "f" or (not isinstance(at, slice) and at >= out[which].size):
        return None
    flat = out[which].reshape(-1)
    before = flat[at].copy()
    if not np.isfinite(before).all() or (not isinstance(at, slice) and before == 0):  # nothing is shorter than 0
        return None
    flat[at] = 0.0 if not before.size else short(float(np.ravel(before)[0]))
    return None if np.array_equal(flat[at], before) else out
