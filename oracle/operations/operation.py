"""What a block says, and the table of all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from oracle.operations.drawn import Draw, Drawn
from oracle.operations.tape import Shape, Tape, Var

_Definition = TypeVar("_Definition", bound=Callable[..., Var])
Meaning = Callable[..., "Var | tuple[Var, ...]"]  # (tape, op, *operands); a TensorTuple is a tuple of Vars
Attributes = Callable[..., dict[str, Any]]  # (op, *operands) -> keywords of the definition


@dataclass(frozen=True)
class Operation:
    """``needle(ndl, *tensors, **attributes)`` must equal ``torch(torch, *tensors, **attributes)`` and the definition."""

    definition: Callable[..., Var]  # (tape, *vars, **attributes)
    needle: Callable[..., Any]
    torch: Callable[..., Any]
    drawn: Callable[[Draw], Drawn]
    covers: tuple[str, ...] = ()  # classes of needle.ops
    # What the operands are made of, all of them or each: "real", "positive", "nonzero", "whole" (-3 to 3) or "far" (30 above).
    values: str | tuple[str, ...] = "real"
    # Operands on which both sides must agree where these end up.
    special: tuple[str | float, ...] = ("nan", "inf", "-inf")
    # An op that multiplies its operands with each other, in a BLAS that may skip a factor of 0: then 0 · inf is 0, or nan, and so
    # nothing is 0 beside an operand that holds something special.
    factors: bool = False
    special_in: Callable[[Mapping[str, Any]], Sequence[int]] | None = None  # attributes -> which may; None = all
    hard: tuple[float, ...] = ()  # what it finds hard: numbers near the ends of the range, maxima of rows far apart
    ordinary: bool = False  # products of large values: kept to ordinary ones
    # Operands that are constants where it is differentiated more than once: by them it has no derivative on much of what is drawn,
    # and where one is no number, none of the case can be judged.
    plain: tuple[int, ...] = ()
    layer: str = ""  # needle's layer that is this op alone: cases have layers of that name then

    def domain(self, operand: int) -> str:
        """What an operand is made of."""
        return self.values if isinstance(self.values, str) else self.values[operand]

    def specials(self, operand: int, attributes: Mapping[str, Any]) -> tuple[str | float, ...]:
        """What is special and may be among the numbers of an operand."""
        may = self.special_in is None or operand in self.special_in(attributes)
        return self.special if may else ()


OPERATIONS: dict[str, Operation] = {}
MEANINGS: dict[str, Meaning] = {}  # class of needle -> what a node of it means


def operation(
    *,
    needle: Callable[..., Any],
    torch: Callable[..., Any],
    drawn: Callable[[Draw], Drawn],
    node: str | None = None,
    attributes: Attributes | None = None,
    covers: tuple[str, ...] = (),
    **more: Any,
) -> Callable[[_Definition], _Definition]:
    """Enter a definition into the table, under its own name.

    ``node`` is needle's class of exactly this meaning, ``attributes`` what the definition takes from a node's op;
    ``covers`` are further classes that the block runs through, ``more`` the other fields of an `Operation`.
    """

    def enter(definition: _Definition) -> _Definition:
        name = definition.__name__
        if name in OPERATIONS:
            raise ValueError(f"two blocks are called {name}")
        classes = covers if node is None else (node, *covers)
        OPERATIONS[name] = Operation(definition, needle, torch, drawn, classes, **more)
        if node is not None:

            def of_a_node(t: Tape, op: Any, *xs: Any) -> Var:
                given = {} if attributes is None else attributes(op, *xs)
                return OPERATIONS[name].definition(t, *xs, **given)

            meaning(node)(of_a_node)
        return definition

    return enter


def meaning(node: str) -> Callable[[Meaning], Meaning]:
    """Enter what a node of a class of needle means, where that is not just a definition."""

    def enter(of_a_node: Meaning) -> Meaning:
        if node in MEANINGS:
            raise ValueError(f"two blocks say what a {node} means")
        MEANINGS[node] = of_a_node
        return of_a_node

    return enter


MOST = 1 << 20  # numbers of an operand, or of what an operation makes
MOST_AXES = 8
MOST_SHAPES = 1 << 14  # of results that are kept
_SHAPES: dict[Any, Shape] = {}  # definition, shapes and attributes -> shape of the result


def result_shape(op: str, shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    """Shape of ``op`` on operands of these shapes; ValueError that says why where it has none, or a huge one."""
    if op not in OPERATIONS:
        raise ValueError(f"unknown op {op!r}; known are {', '.join(sorted(OPERATIONS))}")
    listed = ", ".join(map(str, shapes[:MOST_AXES]))
    numbers = largest(shapes, attributes)
    if numbers > MOST or any(len(shape) > MOST_AXES for shape in shapes):
        raise ValueError(
            f"{op} on operands of shape {listed} with {attributes!s:.200} may take {numbers:,} numbers: {MOST:,} are the "
            f"most, and {MOST_AXES} axes"
        )
    # asked for several times a case, and found out by computing; labels alone are an array, which no text tells apart
    about = None if "labels" in attributes else (OPERATIONS[op].definition, f"{shapes} {attributes}")
    if about in _SHAPES:
        return _SHAPES[about]
    operands = [Var(np.ones((1, 1, *shape)), needs=False) for shape in shapes]
    try:
        made = OPERATIONS[op].definition(Tape(None), *operands, **attributes).shape
        if about is not None and len(_SHAPES) < MOST_SHAPES:
            _SHAPES[about] = made
        return made
    except (TypeError, ValueError, IndexError) as error:
        given = f"{attributes!s:.200}"
        raise ValueError(f"{op} does not apply to operands of shape {listed} with {given}: {error}") from None


def extent(shape: Shape) -> int:
    """How many numbers a shape stands for; an empty axis counts as 1, for what is summed over it is there again."""
    return math.prod([n or 1 for n in shape])


def largest(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> int:
    """No operation makes more numbers of such operands: it broadcasts them, or takes products over the last axes."""
    each = [extent(shape) for shape in shapes]
    found = max(sum(each), extent(attributes.get("shape", ())))
    if len(shapes) > 1 and math.prod(each) > MOST:
        found = max(found, _together(shapes))
        first, second = shapes[:2]
        if len(first) > 1 < len(second):
            found = max(found, _together([first[:-2], second[:-2]]) * extent(first[-2:-1]) * extent(second[-1:]))
    if "padding" in attributes or "stride" in attributes:  # conv: (n, h, w, c) and (k, k, c, out), as columns
        image, kernel = (shapes[i] if i < len(shapes) and len(shapes[i]) == 4 else (1, 1, 1, 1) for i in (0, 1))
        n, h, w, _ = image
        around = 2 * attributes.get("padding", 0)
        found = max(found, extent((n, h + around, w + around)) * max(extent(kernel[:3]), extent(kernel[3:])))
    for part in attributes.get("index", ()):
        if isinstance(part, dict):
            found *= max(map(len, part.values()), default=1) or 1
    if "dilation" in attributes:
        found *= (1 + attributes["dilation"]) ** len(attributes.get("axes", ()))
    return found


def _together(shapes: Sequence[Shape]) -> int:
    """Numbers of operands that are broadcast; 0 where they cannot be."""
    try:
        return extent(np.broadcast_shapes(*shapes))
    except ValueError:
        return 0


# -- what blocks say in the same words --------------------------------------------------------------------------------


def scalar_of(op: Any, *xs: Var) -> dict[str, Any]:
    """The number that a node's op holds."""
    return {"c": float(op.scalar)}


def axes_of_op(op: Any, *xs: Var) -> dict[str, Any]:
    """The axes that a node's op holds."""
    return {"axes": tuple(map(int, op.axes)) if isinstance(op.axes, tuple | list) else op.axes}


def unusual(**keywords: tuple[Any, Any]) -> dict[str, Any]:
    """Only the keywords whose value is not the default, so that the defaults are tested."""
    return {name: value for name, (value, usual) in keywords.items() if value != usual}
