"""A row: an expression of some library, the same in torch, and what is claimed of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.check.drawing import KINDS

AGREES, CONVENTION, DIFFERS = "agrees", "differs by convention", "differs"

# Where functions of one number go wrong: ends of ranges, kinks, cancellation near 0 and 1, underflow of squares.
EDGES = (
    -1e30, -1e4, -200.0, -100.0, -90.0, -30.0, -12.0, -6.0, -3.0, -2.0, -1.5, -1.0, -0.999, -0.5, -0.1, -1e-3, -1e-5, -1e-8, -1e-20,
    0.0, 1e-20, 1e-8, 1e-5, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.0001, 1.5, 2.0, 2.5, 3.0, 6.0, 9.0, 12.0, 20.5, 30.0, 90.0, 100.0, 200.0, 1e4, 1e30,
)  # fmt: skip
POSITIVE = tuple(x for x in EDGES if x > 0)
INSIDE = tuple(x for x in EDGES if abs(x) < 1)
TAME = tuple(x for x in EDGES if abs(x) <= 30)  # where nothing overflows
# of two numbers, each with each
FEW = (-200.0, -3.0, -1.0, -0.5, -1e-8, 0.0, 1e-20, 1e-3, 0.5, 1.0, 2.0, 3.0, 90.0, 1e4)
POSITIVE_FEW = tuple(x for x in FEW if x > 0)


@dataclass(frozen=True)
class Pair:
    """A row. ``inputs`` are shapes (as `check.op` draws them) or arrays, by the names that both expressions use."""

    chapter: str
    library: str
    ours: str  # the library's expression
    torch: str  # torch's
    claim: str = AGREES
    why: str = ""  # of a difference, in words
    right: str = ""  # an expression of mpmath in x (or a, b): the right value of an elementwise function
    inputs: tuple[tuple[str, Any], ...] = ()
    kinds: tuple[str, ...] = KINDS
    edges: tuple[float, ...] = ()  # numbers that are tried beside drawn ones; each with each if there are two inputs
    elementwise: bool = False  # what holds of all elements holds of one
    gradient: bool = True
    steps: int = 0  # of an optimizer: the expressions make one

    @property
    def key(self) -> tuple[str, ...]:
        """No two rows have the same."""
        return self.library, self.ours, self.torch, *self.kinds

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(name for name, _ in self.inputs)

    def __post_init__(self) -> None:
        if (self.claim == AGREES) == bool(self.why):
            raise ValueError(f"{self.ours}: a difference has a reason, and nothing else has, but got {self.why!r}")
        for name, value in self.inputs:
            if isinstance(value, str | float | int):
                raise TypeError(f"{self.ours}: {name} is a shape or an array, but got {value!r}")


class Chapter:
    """Rows that have the same inputs, unless they say otherwise: ``x=(4, 7)`` is a shape to be drawn, a list an array."""

    def __init__(self, title: str, **usual: Any) -> None:
        self.title, self.usual = title, usual if _inputs(usual) else {"x": (4, 7), **usual}
        self.pairs: list[Pair] = []

    def agrees(self, library: str, ours: str, torch: str, **more: Any) -> None:
        """They agree."""
        self._add(library, ours, torch, AGREES, "", more)

    def convention(self, library: str, ours: str, torch: str, why: str, **more: Any) -> None:
        """Both are right, for something else is meant."""
        self._add(library, ours, torch, CONVENTION, why, more)

    def differs(self, library: str, ours: str, torch: str, why: str, **more: Any) -> None:
        """The value of one of them is wrong."""
        self._add(library, ours, torch, DIFFERS, why, more)

    def _add(self, library: str, ours: str, torch: str, claim: str, why: str, more: Mapping[str, Any]) -> None:
        given = {**self.usual, **more} if not _inputs(more) else {**_settings(self.usual), **more}
        inputs = tuple((k, _array(v)) for k, v in _inputs(given).items())
        pair = Pair(self.title, library, ours, torch, claim, why, inputs=inputs, **_settings(given))
        if any(pair.key == other.key for other in self.pairs):
            raise ValueError(f"{pair.key} stands in the table twice")
        self.pairs.append(pair)


_SETTINGS = ("kinds", "edges", "elementwise", "gradient", "steps", "right")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k in _SETTINGS}


def _inputs(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k not in _SETTINGS}


def _array(value: Any) -> Any:
    """A list as float32 or whole numbers; a shape as it is."""
    if not isinstance(value, Sequence) or isinstance(value, tuple):
        return value
    a = np.array(value)
    return a.astype(np.float32) if a.dtype.kind == "f" else a
