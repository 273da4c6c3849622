"""Layers that hold layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union

from oracle.cases.bounds import require
from oracle.cases.layers import activations, dropout, norms, passive, products, programs, unused
from oracle.cases.layers.activations import ReLU, Sigmoid, Tanh
from oracle.cases.layers.layer import Check, Layer, Pass, Side, Site
from oracle.cases.layers.norms import BatchNorm, LayerNorm
from oracle.operations import OPERATIONS, elementwise
from oracle.operations.drawn import Draw
from oracle.operations.tape import Var


class _Chain(Layer, frozen=True):
    """Layers one behind the other."""

    body: tuple[AnyLayer, ...]

    offered: ClassVar[bool] = False
    bodies: ClassVar[Mapping[str, str]] = {"": "body"}
    hands_on: ClassVar[bool] = True

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return body("body")

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return p.body(self.body, x, f"{path}.", training and not self.quiet)

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        return check.body(self.body, width, f"{path}.", training and not self.quiet)

    @classmethod
    def possible(cls, at: Site) -> bool:
        return at.nested

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        body, out = at.body(3, training=not cls.quiet)
        return cls(body), out


class Sequential(_Chain, frozen=True):
    """``nn.Sequential``, nested."""

    @classmethod
    def example(cls, width: int) -> Layer:
        return cls((Tanh(), LayerNorm()))


class Residual(Layer, frozen=True):
    """``nn.Residual``: body(x) + x; the body keeps the width."""

    body: tuple[AnyLayer, ...]

    chance: ClassVar[int] = 3
    bodies: ClassVar[Mapping[str, str]] = {"": "body"}

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.Residual(body("body"))

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        return t.applied(lambda x, body: body(x) + x, body("body"))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        return elementwise.add(p.tape, p.body(self.body, x, f"{path}.", training), x)

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        out = check.body(self.body, width, f"{path}.", training)
        require(out == width, f"model[{path}]: Residual body must keep the width {width}, but gives {out}")
        return width

    @classmethod
    def possible(cls, at: Site) -> bool:
        return at.nested

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        body, out = at.body(3)
        return cls(body if out == at.width else (*body, at.linear(out, at.width))), at.width

    @classmethod
    def example(cls, width: int) -> Layer:
        return cls((LayerNorm(), ReLU()))


JOINS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


class Branch(Layer, frozen=True):
    """Two bodies on the same input, joined element by element; both give the same width."""

    left: tuple[AnyLayer, ...]
    right: tuple[AnyLayer, ...]
    join: Literal["add", "subtract", "multiply"] = "add"

    offered: ClassVar[bool] = False
    bodies: ClassVar[Mapping[str, str]] = {"left.": "left", "right.": "right"}

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        join = JOINS[self.join]
        return n.applied(lambda x, left, right: join(left(x), right(x)), body("left"), body("right"))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        left = p.body(self.left, x, f"{path}.left.", training)
        right = p.body(self.right, x, f"{path}.right.", training)
        return OPERATIONS[self.join].definition(p.tape, left, right)

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        left = check.body(self.left, width, f"{path}.left.", training)
        right = check.body(self.right, width, f"{path}.right.", training)
        require(left == right, f"model[{path}]: both branches must give the same width, got {left} and {right}")
        return left

    @classmethod
    def possible(cls, at: Site) -> bool:
        return at.nested

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        left, first = at.body(2)
        right, second = at.body(2)
        if first != second:
            right = (*right, at.linear(second, first))
        return cls(left, right, d.of(tuple(JOINS))), first

    @classmethod
    def example(cls, width: int) -> Layer:
        return cls((Tanh(),), (Sigmoid(),), "multiply")

    def described(self, many: Any) -> str:
        return f"Branch({many(self.left)} {self.join} {many(self.right)})"


class Eval(_Chain, frozen=True):
    """A nested Sequential that stays in evaluation mode while the rest trains."""

    chance: ClassVar[int] = 1
    called: ClassVar[str] = "Sequential"
    quiet: ClassVar[bool] = True

    @classmethod
    def example(cls, width: int) -> Layer:
        return cls((BatchNorm(),))


def _kinds_of(*families: ModuleType) -> dict[str, type[Layer]]:
    return {
        name: kind
        for family in families
        for name, kind in vars(family).items()
        if isinstance(kind, type) and issubclass(kind, Layer) and kind.__module__ == family.__name__ and name[0] != "_"
    }


# name -> class, family by family, in the order in which they stand there; a name with an underscore is no layer
LAYERS = _kinds_of(products, activations, passive, norms, dropout, unused, sys.modules[__name__], programs)
if TYPE_CHECKING:
    AnyLayer = Layer
else:
    AnyLayer = Union[tuple(LAYERS.values())]  # noqa: UP007 - of as many as there are; what msgspec reads where a layer is expected
