"""How does Hypothesis draw what a block asks for?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from oracle.operations.drawn import Drawn, Shape

# A strategy is made once, here and not while drawing: making one costs more than drawing from it.

_SIZES = st.sampled_from([1, 2, 3, 4, 2, 3, 5, 2, 3, 4, 7, 33, 2, 3, 1, 0])
_SHORT = st.sampled_from([2, 3, 1, 2, 3, 4, 2, 3, 2, 1, 5, 2, 3, 2, 3, 0])  # three of them are many numbers
_RANKS = st.sampled_from([0, 1, 2, 3, 2, 1, 4, 3])
_TUPLES = [st.tuples(*[_SIZES if rank < 3 else _SHORT] * rank) for rank in range(5)]
_FLOATS = st.floats(0.25, 4, width=32)

BOOLEANS = st.booleans()


def choice(*weighted: tuple[int, Any]) -> st.SearchStrategy[Any]:
    """One of the values, drawn with integer weights."""
    return st.sampled_from([value for weight, value in weighted for _ in range(weight)])


@functools.cache
def one_in(n: int) -> st.SearchStrategy[bool]:
    """True once in n times."""
    return choice((n - 1, False), (1, True))


@functools.cache
def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Whole numbers from low to high."""
    return st.integers(low, high)


@functools.cache
def _shapes(min_rank: int, max_rank: int) -> st.SearchStrategy[Shape]:
    ranks = _RANKS.map(lambda rank: min(max(rank, min_rank), max_rank))
    return ranks.flatmap(_TUPLES.__getitem__)


@functools.cache
def _distinct(below: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, below - 1), min_size=1, max_size=most, unique=True)


@functools.cache
def _of(values: tuple[Any, ...], types: tuple[type, ...]) -> st.SearchStrategy[Any]:
    """``types`` tells (1, 2) from (1.0, 2.0), which are equal."""
    return st.sampled_from(values)


@functools.cache
def _numbers(values: tuple[float, ...]) -> st.SearchStrategy[float]:
    return st.sampled_from(values) | _FLOATS


class HypothesisDraw:
    """Hypothesis behind the `oracle.operations.drawn.Draw` of the blocks."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self._draw = draw

    def shape(self, min_rank: int = 0, max_rank: int = 4) -> Shape:
        """A small shape, with size-1, zero-size and, rarely, long dimensions."""
        shape: Shape = self._draw(_shapes(min_rank, max_rank))
        return shape

    def size(self) -> int:
        """A dimension of such a shape."""
        return int(self._draw(_SIZES))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return int(self._draw(integers(low, high)))

    def maybe(self) -> bool:
        """True or False."""
        return bool(self._draw(BOOLEANS))

    def of(self, values: Sequence[Any]) -> Any:
        """One of the values."""
        return self._draw(_of(tuple(values), tuple(map(type, values))))

    def number(self, values: Sequence[float]) -> float:
        """One of the values, or another number from 0.25 to 4."""
        return float(self._draw(_numbers(tuple(values))))

    def distinct(self, below: int, most: int) -> list[int]:
        """Different whole numbers from 0, at least one of them."""
        chosen: list[int] = self._draw(_distinct(below, most))
        return chosen


def strategy(drawn: Callable[[Any], Drawn]) -> st.SearchStrategy[Drawn]:
    """What a block says about drawing, as a strategy."""
    return st.composite(lambda draw: drawn(HypothesisDraw(draw)))()
