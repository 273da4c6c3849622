"""Blocks of plain operations: macros that keep the shape, and are defined for every input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from oracle.cases import case as c
from oracle.cases.drawing import choice
from oracle.operations import MOST, result_shape

Shape = tuple[int, ...]
Draw = Callable[..., Any]


class _Builder:
    """Builds an `Ops` block step by step and keeps track of shapes."""

    def __init__(self, rows: int, width: int) -> None:
        self.steps: list[c.OpStep] = []
        self.shapes: list[Shape] = [(rows, width)]

    def __call__(self, op: str, *args: int, **attributes: Any) -> int:
        self.shapes.append(result_shape(op, [self.shapes[a] for a in args], attributes))
        self.steps.append(c.OpStep(op, args, attributes))
        return len(self.shapes) - 1

    def positive(self, x: int) -> int:
        """x² + 0.5: safe for a logarithm, a root or a denominator."""
        return self("add_scalar", self("multiply", x, x), c=0.5)

    def small(self, x: int) -> int:
        """tanh x: safe for an exponential."""
        return self("tanh", x)

    def spread(self, x: int, axis: int, like: int) -> int:
        """x, which has lost an axis, broadcast back."""
        shape = self.shapes[like]
        kept = tuple(1 if i == axis else n for i, n in enumerate(shape))
        return self("broadcast_to", self("reshape", x, shape=kept), shape=shape)


def _three_cycle(b: _Builder, x: int) -> int:
    """(n, d) as (n, d, 1), its axes permuted in a cycle of three, and back by way of a sum."""
    n, d = b.shapes[x]
    y = b("transpose", b("transpose", b("reshape", x, shape=(n, d, 1)), axes=(0, 1)), axes=(1, 2))
    return b("transpose", b("summation", b("mul_scalar", y, c=1.5), axes=(1,)))


def _attention(b: _Builder, x: int) -> int:
    """x @ (xᵀ @ x), on values that stay small."""
    s = b.small(x)
    return b("matmul", s, b("matmul", b("transpose", s), s))


def _refilled(b: _Builder, x: int) -> int:
    """(n, d) read as (d, n) and transposed: the order of the elements shows."""
    n, d = b.shapes[x]
    return b("transpose", b("reshape", x, shape=(d, n)))


def _exponential(b: _Builder, x: int) -> int:
    """ln of an e^x that becomes as large as 1e10."""
    return b("log", b("exp", b("mul_scalar", b.small(x), c=24.0)))


def _batched(b: _Builder, x: int) -> int:
    """A batched product whose batch dimension broadcasts: (n, 1, d) @ (d, d)."""
    n, d = b.shapes[x]
    if n * d * d > MOST:  # behind a layer that widens
        return x
    s = b.small(x)
    square = b("matmul", b("transpose", s), s)
    return b("reshape", b("matmul", b("reshape", x, shape=(n, 1, d)), square), shape=(n, d))


def _centre(b: _Builder, x: int) -> int:
    n, d = b.shapes[x]
    mean = b("divide_scalar", b("summation", x, axes=(0,)), c=float(n))
    return b("subtract", x, b("broadcast_to", mean, shape=(n, d)))


def _negative_axis(b: _Builder, x: int) -> int:
    n, _ = b.shapes[x]
    return b("multiply", x, b("reshape", b("tanh", b("summation", x, axes=-1)), shape=(n, 1)))


def _stacked(b: _Builder, x: int) -> int:
    """Three tensors in a stack, each with a weight of its own, so that their order shows."""
    n, d = b.shapes[x]
    weights = b("stack", b("mul_scalar", b.small(x), c=0.5), b("rsub", b.small(x), c=2.0), b("negate", x), axis=1)
    both = b("multiply", b("stack", x, b.small(x), x, axis=1), b("getitem", weights, index=((0, n, None),)))
    return b("reshape", b("summation", both, axes=(1,)), shape=(n, d))


def _picked(b: _Builder, x: int) -> int:
    both = b("stack", b.small(x), x, axis=0)
    return b("subtract", b("split", both, axis=0, pick=0), b("mul_scalar", b("split", both, axis=0, pick=1), c=-2.5))


def _sliced(b: _Builder, x: int) -> int:
    _, d = b.shapes[x]
    part = b("getitem", x, index=((None, None, None), (0, max(1, d - 1), None)))
    first = b("summation", part, axes=(1,))
    return b("add", b.spread(first, 1, x), b("flip", x, axes=(0, 1)))


def _dilated(b: _Builder, x: int) -> int:
    wide = b("dilate", x, axes=(1,), dilation=1)
    return b("getitem", wide, index=((None, None, None), (None, None, 2)))


def _spread_out(b: _Builder, x: int) -> int:
    """x by the root of its variance, which is kept away from 0."""
    return b("divide", x, b("sqrt", b("add_scalar", b("var", x, axes=(0, 1)), c=0.5)))


def _chained(b: _Builder, x: int) -> int:
    """Three tensors one behind the other, each with a weight of its own; two of them are used."""
    _, d = b.shapes[x]
    s = b.small(x)
    wide = b("concatenate", b("mul_scalar", s, c=2.0), x, s, axis=-1)
    return b("getitem", wide, index=((None, None, None), (d // 2, d // 2 + d, None)))


def _chosen(b: _Builder, x: int) -> int:
    """The larger, the smaller and the absolute value of what is never close to being equal, or to 0."""
    s = b.small(x)
    larger = b("larger", s, b("rsub", s, c=3.0))
    smaller = b("smaller", b("absolute", b("add_scalar", s, c=-2.0)), b("add_scalar", s, c=8.0))
    return b("where", b.positive(s), b("multiply", larger, smaller), b("clip", s, low=-2.0))


def _diamonds(b: _Builder, x: int) -> int:
    """24 diamonds, one on the other: whoever walks every path instead of every node never comes back."""
    y = b.small(x)
    for _ in range(24):
        y = b("mul_scalar", b("add", y, y), c=0.5)
    return y


_MACROS: tuple[Callable[[_Builder, int], int], ...] = (
    lambda b, x: b("mul_scalar", x, c=2.0),
    lambda b, x: b("add_scalar", x, c=1.0),
    lambda b, x: b("negate", x),
    lambda b, x: b("rsub", x, c=1.0),
    lambda b, x: b("divide_scalar", x, c=3.0),
    lambda b, x: b("add", x, x),
    lambda b, x: b("multiply", x, b("sigmoid", x)),
    lambda b, x: b("subtract", b("mul_scalar", x, c=3.0), x),
    lambda b, x: b("power_scalar", x, c=2.0),
    lambda b, x: b("power_scalar", b.small(x), c=3.0),
    lambda b, x: b("power_scalar", b.positive(x), c=0.5),
    lambda b, x: b("power_scalar", b.positive(x), c=-1.0),
    lambda b, x: b("log", b.positive(x)),
    lambda b, x: b("exp", b.small(x)),
    lambda b, x: b("rdiv", b.positive(x), c=2.0),
    lambda b, x: b("rpow", b.small(x), c=2.0),
    lambda b, x: b("divide", x, b.positive(x)),
    lambda b, x: b("power", b.positive(b.small(x)), b.small(x)),
    lambda b, x: b("logsoftmax", x),
    lambda b, x: b("multiply", x, b("softmax", x)),
    lambda b, x: b("softmax", x, axis=0),
    lambda b, x: b("subtract", x, b.spread(b("logsumexp", x, axes=(1,)), 1, x)),
    lambda b, x: b("multiply", x, b("logsumexp", b.small(x))),
    lambda b, x: b("transpose", b("multiply", b("transpose", x), b("transpose", x, axes=(0, 1)))),
    lambda b, x: b("mul_scalar", x, c=100.0),
    _centre,
    _negative_axis,
    _refilled,
    _exponential,
    _three_cycle,
    _attention,
    _batched,
    _stacked,
    _picked,
    _sliced,
    _dilated,
    _spread_out,
    _chained,
    _chosen,
    _diamonds,
)


def _block(macro: Callable[[_Builder, int], int], rows: int, width: int) -> c.Ops:
    b = _Builder(rows, width)
    macro(b, 0)
    return c.Ops(tuple(b.steps))


# which macro to take for an operation that a block is to have: the shortest
_BY_OP = {
    step.op: macro
    for macro in sorted(_MACROS, key=lambda macro: -len(_block(macro, 2, 3).steps))
    for step in _block(macro, 2, 3).steps
}
BLOCK_OPS = tuple(sorted(_BY_OP))


def block_with(op: str, rows: int, width: int) -> c.Ops:
    """A block of operations, (rows, width) -> (rows, width), that has this one."""
    return _block(_BY_OP[op], rows, width)


_MACRO = st.sampled_from(_MACROS)
_MACRO_COUNT = choice((2, 1), (2, 2), (1, 3))


def drawn_block(draw: Draw, rows: int, width: int) -> c.Ops:
    """One to three macros in a row, (rows, width) -> (rows, width)."""
    b = _Builder(rows, width)
    x = 0
    for _ in range(draw(_MACRO_COUNT)):
        x = draw(_MACRO)(b, x)
    return c.Ops(tuple(b.steps))
