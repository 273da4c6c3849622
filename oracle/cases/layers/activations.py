"""Layers that are one elementwise operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import defstruct

from oracle.cases.layers.layer import Layer, Pass, Side
from oracle.operations import OPERATIONS, elementwise
from oracle.operations.tape import Var


class ReLU(Layer, frozen=True):
    """``nn.ReLU``."""

    chance: ClassVar[int] = 4
    kinked: ClassVar[bool] = True

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.ReLU()

    def torch(self, t: Any, width: int, body: Callable[[str], Any]) -> Any:
        return t.ReLU()

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        p.branch(path, x.value)
        return elementwise.relu(p.tape, x, p.kinks.get(path))


class _Elementwise(Layer, frozen=True):
    """One elementwise operation as a layer. Its subclasses are made from the blocks that name one, see `ACTIVATIONS`."""

    op: ClassVar[str] = ""

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        """A layer that not every course needle has; the function as a module where it has not."""
        return n.either(type(self).__name__, lambda: n.applied(lambda x: n.op(self.op, x)))

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        return t.applied(lambda x: t.op(self.op, x))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return OPERATIONS[self.op].definition(p.tape, x)


def _activation(op: str, name: str) -> type[_Elementwise]:
    space = {"op": op, "__doc__": f"``nn.{name}``."}
    made: Any = defstruct(name, [], bases=(_Elementwise,), namespace=space, module=__name__, frozen=True, tag=name)
    kind: type[_Elementwise] = made
    return kind


# name of the layer -> its class; each is a name of this module too, so that cases can be pickled
ACTIVATIONS = {block.layer: _activation(op, block.layer) for op, block in OPERATIONS.items() if block.layer}
globals().update(ACTIVATIONS)
Tanh, Sigmoid = ACTIVATIONS["Tanh"], ACTIVATIONS["Sigmoid"]
