"""What should arrive at one tensor in a backward pass, and what a wrong sum of it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.operations.tape import TINY, U
from oracle.rules.node import Parts, Shape, Within, in_float64, parts_of

SHARED = "it shares its array with another tensor, to which something is added in place"


@dataclass(frozen=True)
class Explanation:
    """A mistake that would give needle's numbers."""

    key: str  # the same in every case
    words: str


@dataclass
class Arrival:
    """What should arrive at one tensor: the contributions of all its uses."""

    tensor: Any
    parts: list[tuple[Parts, int, int]] = field(default_factory=list)  # contribution, node, operand
    known: bool = True

    def total(self, place: int, shape: Shape) -> Within:
        """The sum of all contributions, and its bound."""
        given = [p[place] for p, _, _ in self.parts if p[place] is not None]
        if not given:
            return np.zeros(shape), np.zeros(shape)
        if len(given) == 1:
            return given[0]  # type: ignore[return-value]
        value = sum(c for c, _ in given)  # type: ignore[misc]
        bound = sum(e for _, e in given) + len(given) * U * sum(np.abs(c) for c, _ in given)  # type: ignore[misc]
        return np.asarray(value), np.asarray(bound)

    def owed(self) -> bool:
        """Whether anything but zero should have arrived."""
        return any(
            bool((np.abs(p[0]) > p[1] + TINY).any()) for parts, _, _ in self.parts for p in parts if p is not None
        )

    def addition(self, place: int, kinds: Sequence[str], others: Sequence[Any] = ()) -> tuple[Explanation, ...]:
        """What a wrong sum looks like: all that fits. ``kinds`` has the classes of the nodes that contribute, ``others`` what has
        arrived at other tensors, to which several things are added.

        Not which contribution came first: that is for the walk to know.
        """
        given = [(p[place], kinds[i]) for p, i, j in self.parts if p[place] is not None and j >= 0]
        grad = self.tensor.grad
        ours = in_float64(parts_of(getattr(grad, "cached_data", grad))[place])
        total, bound = self.total(place, ours.shape)
        allowed = 4 * bound + TINY
        guesses = [("twice the sum", "", 2 * total), ("nothing arrives", "", 0 * total)]
        parts = [(part[0], kind) for part, kind in given if part is not None]
        values, n = [p for p, _ in parts], len(parts)
        if n > 1:
            guesses += [
                ("only one contribution counts", f"only one of {n} contributions counts: that of {k}", p)
                for p, k in parts
            ]
            guesses += [
                ("a contribution counts twice", f"of {n} contributions, that of {k} counts twice", total + p)
                for p, k in parts
            ]
            guesses.append(("contributions are averaged", f"{n} contributions are averaged", total / n))
            guesses.append(("the largest contribution wins", "", np.max(values, axis=0)))
            guesses.append(("the smallest contribution wins", "", np.min(values, axis=0)))
            guesses += [
                ("contributions are subtracted from each other", "", sign * (2 * p - total))
                for p in values
                for sign in (1, -1)
            ]
            guesses.append(("contributions are multiplied", "", np.prod(values, axis=0)))
        if n > 2:
            guesses += [
                ("a contribution is missing", f"of {n} contributions, that of {k} is missing", total - p)
                for p, k in parts
            ]
        fitting = [(key, words or key) for key, words, v in guesses if bool((np.abs(ours - v) <= allowed).all())]
        if n == 1 and any(o.size == ours.size and np.array_equal(o.reshape(-1), ours.reshape(-1)) for o in others):
            fitting.append((SHARED, SHARED))
        return tuple(Explanation(key, words) for key, words in dict.fromkeys(fitting))
