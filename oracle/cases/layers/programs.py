"""Operations as a layer: a straight-line program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from oracle.cases.bounds import Argument, attributes, require
from oracle.cases.layers.layer import Check, Layer, Part, Pass, Shape, Side, Site
from oracle.operations import OPERATIONS, extent, result_shape
from oracle.operations.drawn import Draw
from oracle.operations.tape import Var


class OpStep(Part, frozen=True, tag="OpStep"):
    """One operation inside `Ops`. ``args`` index the values so far: 0 is the input of the block."""

    op: str
    args: tuple[Argument, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "attributes", attributes(self.op, self.attributes))


class Ops(Layer, frozen=True):
    """A straight-line program of operations on the input of shape (rows, width); its last value is the output."""

    steps: tuple[OpStep, ...]

    chance: ClassVar[int] = 5
    offered: ClassVar[bool] = False
    stands: ClassVar[str] = "last"

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.applied(lambda x: self.values(x, n.op)[-1])

    def values(self, x: Any, call: Callable[..., Any]) -> list[Any]:
        """All values: the input, and what ``call(op, *operands, **attributes)`` makes in each step."""
        values = [x]
        for step in self.steps:
            values.append(call(step.op, *(values[a] for a in step.args), **step.attributes))
        return values

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        values = self.values(x, lambda op, *xs, **given: OPERATIONS[op].definition(p.tape, *xs, **given))
        for i, between in enumerate(values[1:-1]):
            p.between(f"{path}, value {i}", between.value)
        out: Var = values[-1]
        return out

    def shapes(self, rows: int, width: int) -> list[Shape]:
        """Shapes of all values."""
        shapes: list[Shape] = [(rows, width)]
        for i, step in enumerate(self.steps):
            for arg in step.args:
                fits = 0 <= arg < len(shapes)
                require(fits, f"steps[{i}]: args {step.args} must index the {len(shapes)} values so far")
            shapes.append(result_shape(step.op, [shapes[a] for a in step.args], step.attributes))
        return shapes

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        check.parts += len(self.steps)
        shapes = self.shapes(check.rows, width)
        for step, made in zip(self.steps, shapes[1:], strict=True):
            check.numbers += 4 * extent(made)
            if step.op == "matmul":  # of (n, k) and (k, m): n * k * m
                check.products += math.sqrt(math.prod(extent(shapes[a]) for a in step.args) * extent(made))
        out = shapes[-1]
        require(
            len(out) == 2 and out[0] == check.rows and out[1] >= 1,
            f"model[{path}]: Ops must end with shape ({check.rows}, width), but gives {out}",
        )
        return out[1]

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        return at.program(), at.width

    @classmethod
    def example(cls, width: int) -> Layer:
        return Ops((OpStep("tanh", (0,)), OpStep("multiply", (0, 1))))

    def resized(self, old: int, new: int) -> Layer:
        def swapped(name: str, value: Any) -> Any:
            return tuple(new if n == old else n for n in value) if name == "shape" else value

        return Ops(
            tuple(replace(s, attributes={k: swapped(k, v) for k, v in s.attributes.items()}) for s in self.steps)
        )

    def smaller(self) -> Iterator[Layer]:
        for i in range(len(self.steps)):
            yield Ops(self.steps[: i + 1])
            yield Ops(self._without(i))

    def _without(self, gone: int) -> tuple[OpStep, ...]:
        """The program without one step: its users take its first operand instead."""
        target = self.steps[gone].args[0]

        def moved(arg: int) -> int:
            arg = target if arg == gone + 1 else arg
            return arg - (arg > gone + 1)

        return tuple(replace(s, args=tuple(moved(a) for a in s.args)) for i, s in enumerate(self.steps) if i != gone)

    def described(self, many: Any) -> str:
        return f"Ops({' '.join(s.op for s in self.steps)})"
