"""What should arrive at one tensor in a backward pass, and what a wrong sum of it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.operations.tape import TINY, U
from oracle.rules.node import Parts, Shape, Within, in_float64, parts_of


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

    def addition(self, place: int, kinds: Sequence[str]) -> tuple[str, ...]:
        """What a wrong sum looks like: all that fits. ``kinds`` has the classes of the nodes that contribute.

        Not which contribution came first: that is for the walk to know.
        """
        given = [(p[place], kinds[i]) for p, i, j in self.parts if p[place] is not None and j >= 0]
        grad = self.tensor.grad
        ours = in_float64(parts_of(getattr(grad, "cached_data", grad))[place])
        total, bound = self.total(place, ours.shape)
        allowed = 4 * bound + TINY
        guesses = [("twice the sum", 2 * total), ("nothing arrives", 0 * total)]
        parts = [(part[0], kind) for part, kind in given if part is not None]
        if len(parts) > 1:
            guesses += [(f"only one of {len(parts)} contributions counts: that of {kind}", p) for p, kind in parts]
            guesses += [(f"of {len(parts)} contributions, that of {kind} counts twice", total + p) for p, kind in parts]
            guesses.append((f"{len(parts)} contributions are averaged", total / len(parts)))
        if len(parts) > 2:
            guesses += [(f"of {len(parts)} contributions, that of {kind} is missing", total - p) for p, kind in parts]
        return tuple(dict.fromkeys(words for words, value in guesses if bool((np.abs(ours - value) <= allowed).all())))
