"""Layers that hand on what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from oracle.cases.layers.layer import Layer, Pass, Side
from oracle.operations import shapes
from oracle.operations.tape import Var


class Identity(Layer, frozen=True):
    """``nn.Identity``."""

    chance: ClassVar[int] = 1

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.Identity()

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return x


class Flatten(Layer, frozen=True):
    """``nn.Flatten``."""

    chance: ClassVar[int] = 1

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.Flatten()

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        # torch.flatten hands flat rows on as they are; the adjoint must be that of this layer alone, as in needle
        return t.applied(lambda x: x.view_as(x))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return shapes.reshape(p.tape, x, shape=x.shape)
