"""Layers with a parameter that nothing uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from oracle.cases.bounds import Width
from oracle.cases.layers.layer import Layer, Pass, Shape, Side, Site
from oracle.operations.drawn import Draw
from oracle.operations.tape import Var


class Unused(Layer, frozen=True):
    """A layer that hands its input on and owns a parameter it never uses."""

    size: Width = 1

    chance: ClassVar[int] = 1
    offered: ClassVar[bool] = False
    used: ClassVar[bool] = False

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.applied(lambda x: x)

    def finish(self, side: Side, module: Any, linears: list[Any]) -> None:
        module.weight = side.nn.Parameter(side.zeros(self.size))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return x

    def parameters(self, width: int) -> dict[str, Shape]:
        return {"weight": (self.size,)}

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        return cls(d.of((1, 3))), at.width

    @classmethod
    def example(cls, width: int) -> Layer:
        return cls(3)
