"""What operands are drawn like: shapes and attributes, by way of a `Draw`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Shape = tuple[int, ...]
Drawn = tuple[list[Shape], dict[str, Any]]  # shapes of the operands, attributes

NUMBERS = (2.0, -1.0, 0.5, 1.0, 0.0, -3.0)
POWERS = (2.0, 3.0, 1.0, 0.5, -1.0, -2.0, 1.5, 0.0, -0.5)


class Draw(Protocol):
    """Who draws; see `oracle.cases.drawing`."""

    def shape(self, min_rank: int = 0, max_rank: int = 4) -> Shape:
        """A small shape, with size-1, zero-size and, rarely, long dimensions."""

    def size(self) -> int:
        """A dimension of such a shape."""

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""

    def maybe(self) -> bool:
        """True or False."""

    def of(self, values: Sequence[Any]) -> Any:
        """One of the values."""

    def number(self, values: Sequence[float]) -> float:
        """One of the values, or another number from 0.25 to 4."""

    def distinct(self, below: int, most: int) -> list[int]:
        """Different whole numbers from 0, at least one of them."""


def one_in(d: Draw, n: int) -> bool:
    """True once in n times."""
    return bool(d.of((False,) * (n - 1) + (True,)))


def one(d: Draw) -> Drawn:
    """Any shape."""
    return [d.shape()], {}


def two(d: Draw) -> Drawn:
    """Two shapes that broadcast."""
    wide = d.shape()
    pair = []
    for _ in range(2):
        dims = tuple(1 if d.maybe() and d.maybe() else n for n in wide)
        pair.append(dims[d.whole(0, len(dims)) :] if d.maybe() else dims)
    return pair, {}


def an_axis(d: Draw, rank: int) -> int:
    """An axis of a shape of this rank, from either end."""
    return d.whole(-rank, rank - 1)


def scalar(values: Sequence[float]) -> Callable[[Draw], Drawn]:
    """Any shape, and a number c."""
    return lambda d: ([d.shape()], {"c": d.number(values)})


def some_axes(d: Draw, rank: int, allow_none: bool = True) -> Any:
    """None, one axis or several; some of them negative."""
    kind = d.whole(0 if allow_none else 1, 2 if rank else 0)
    if kind == 0:
        return None
    chosen = d.distinct(rank, 1 if kind == 1 else rank)
    signed = tuple(a - rank if d.maybe() else a for a in chosen)
    return signed[0] if kind == 1 else signed


def over_axes(min_size: int = 0) -> Callable[[Draw], Drawn]:
    """Any shape, and axes of it; now and then none are named, and now and then the empty tuple, which reduces nothing."""

    def drawn(d: Draw) -> Drawn:
        shape = tuple(max(n, min_size) for n in d.shape())
        axes = () if one_in(d, 6) else some_axes(d, len(shape))
        return [shape], {} if axes is None and d.maybe() else {"axes": axes}

    return drawn
