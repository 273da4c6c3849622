"""What is kept from one question about a case to the next: generators, and the last answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

_GENERATORS: dict[str, np.random.RandomState] = {}


def generator(purpose: str, seed: int) -> np.random.RandomState:
    """The generator of a purpose, seeded anew: to make one takes as long as all that a case draws.

    RandomState: its streams are frozen across NumPy versions.
    """
    if purpose not in _GENERATORS:
        _GENERATORS[purpose] = np.random.RandomState()
    _GENERATORS[purpose].seed(seed)
    return _GENERATORS[purpose]


_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


def remembered(function: Callable[[_Asked], _Answer]) -> Callable[[_Asked], _Answer]:
    """``function(case)``, kept for the case that was asked about last: all the questions about a case come in a row."""
    last: tuple[_Asked, _Answer] | None = None

    @functools.wraps(function)
    def answer(case: _Asked) -> _Answer:
        nonlocal last
        if last is None or last[0] is not case:
            last = case, function(case)
        return last[1]

    return answer
