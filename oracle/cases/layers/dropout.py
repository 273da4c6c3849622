"""Layers that draw random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from oracle.cases.bounds import Fraction
from oracle.cases.layers.layer import Array, Layer, Pass, Shape, Side, Site, given
from oracle.operations import elementwise
from oracle.operations.drawn import Draw
from oracle.operations.tape import Var


class Dropout(Layer, frozen=True):
    """``nn.Dropout``; None leaves the keyword out."""

    p: Fraction | None = None

    draws: ClassVar[bool] = True
    plain: ClassVar[Mapping[str, Any]] = {"p": 0.5}

    @property
    def probability(self) -> float:
        """The one in force: the documented default is 0.5."""
        return 0.5 if self.p is None else self.p

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.Dropout(**given(p=self.p))

    def torch(self, t: Any, width: int, body: Callable[[str], Any]) -> Any:
        return t.Dropout(self.probability)

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return elementwise.dropout(p.tape, x, mask=p.masks[path], p=self.probability) if training else x

    def mask(self, rng: np.random.RandomState, shape: Shape) -> Array:
        return rng.random_sample(shape) <= 1 - self.probability

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        return cls(d.of((None, 0.1, 0.5, 0.9, 0.0, 1.0))), at.width
