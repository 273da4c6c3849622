"""What should arrive at one tensor in a backward pass, and what a wrong sum of it looks like."""

from __future__ import annotations

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

    def addition(self, place: int) -> str:
        """What a wrong sum looks like."""
        given = [p[place] for p, _, _ in self.parts if p[place] is not None]
        grad = self.tensor.grad
        ours = in_float64(parts_of(getattr(grad, "cached_data", grad))[place])
        total, bound = self.total(place, ours.shape)
        allowed = 4 * bound + TINY
        guesses = [("twice the sum", 2 * total), ("zero", 0 * total)]
        if len(given) > 1:
            guesses.insert(0, ("only the contribution that comes last counts", given[-1][0]))  # type: ignore[index]
            guesses.insert(0, ("only the contribution that comes first counts", given[0][0]))  # type: ignore[index]
            guesses += [(f"contribution {k + 1} of {len(given)} is missing", total - p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
            guesses += [(f"contribution {k + 1} of {len(given)} counts twice", total + p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
        for words, value in guesses:
            if bool((np.abs(ours - value) <= allowed).all()):
                return words
        return ""
