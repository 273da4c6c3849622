"""Which op is wrong only when it is differentiated again? Each node of a tape alone, in float64, twice.

Where a gradient rule gives the right numbers, but not as a function of what they depend on, every node of every tape is right
by itself. So the op is run on leaves of its own, its gradient is differentiated along a drawn direction, and the result is
held against the difference quotient of the gradient that its definition has. A suspicion, no verdict.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations import MEANINGS
from oracle.operations.tape import Tape, Var
from oracle.rules.node import Array
from oracle.systems.recorded import Node

_STEP = 1e-5  # of the difference quotient, relative to the numbers
_KINK = 1e-5  # relative, by which quotients of two steps differ where there is none
_LIMIT = 1e-7  # relative, beside four times the difference of these quotients, which is some sixty times their error


def wrong_again(node: Node) -> bool:
    """Whether the gradient of the gradient is not that of the definition; False where that cannot be found out."""
    if node.kind not in MEANINGS or any(isinstance(x.cached_data, tuple) for x in (node.tensor, *node.inputs)):
        return False
    rng = np.random.RandomState(0)
    xs = [np.asarray(x.cached_data) for x in node.inputs]
    xs = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in xs]
    needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
    g = rng.standard_normal(np.shape(node.tensor.cached_data))
    directions = [rng.standard_normal(x.shape) for x in xs]
    moves = [
        rng.standard_normal(x.shape) * (1 + np.abs(x)) if need else None for x, need in zip(xs, needs, strict=True)
    ]
    turn = rng.standard_normal(g.shape)
    try:
        with np.errstate(all="ignore"):
            right, allowed = _by_definition(node, xs, needs, g, directions, moves, turn)
            if math.isnan(right):  # at a kink: a gradient is linear in the cotangent, at least
                moves = [None] * len(xs)
                right, allowed = _by_definition(node, xs, needs, g, directions, moves, turn)
            seen = _in_needle(node, xs, needs, g, directions, moves, turn)
    except Exception:
        return False
    return bool(np.isfinite(right) and not abs(seen - right) <= allowed)


def _in_needle(
    node: Node,
    xs: Sequence[Array],
    needs: Sequence[bool],
    g: Array,
    directions: Sequence[Array],
    moves: Sequence[Array | None],
    turn: Array,
) -> float:
    """The derivative of ⟨gradients, directions⟩ where the operands and the cotangent move."""
    kind = type(node.tensor)
    leaves = [kind.make_const(x.copy(), requires_grad=n) for x, n in zip(xs, needs, strict=True)]
    start = kind.make_const(g.copy(), requires_grad=True)
    copy.copy(node.op)(*leaves).backward(start, create_graph=True)
    total: Any = None
    for leaf, d in zip(leaves, directions, strict=True):
        if leaf.grad is not None:
            part = (leaf.grad * kind.make_const(d)).sum()
            total = part if total is None else total + part
    for leaf in (*leaves, start):
        leaf.grad = None
    if total is None or not total.requires_grad:
        return 0.0
    total.backward()
    ways = zip((*leaves, start), (*moves, turn), strict=True)
    return float(sum((x.grad.cached_data * way).sum() for x, way in ways if x.grad is not None and way is not None))


def _by_definition(
    node: Node,
    xs: Sequence[Array],
    needs: Sequence[bool],
    g: Array,
    directions: Sequence[Array],
    moves: Sequence[Array | None],
    turn: Array,
) -> tuple[float, float]:
    """The same as a central difference, and how far from it is right; nan at a kink."""

    def inner(step: float) -> tuple[float, float]:
        tape = Tape(None)
        moved = [x if way is None else x + step * way for x, way in zip(xs, moves, strict=True)]
        operands = [Var(np.asarray(x)[None, None], needs=n) for x, n in zip(moved, needs, strict=True)]
        out = MEANINGS[node.kind](tape, node.op, *operands)
        assert isinstance(out, Var)
        tape.backward([(out, (g + step * turn)[None, None])])
        parts = [(v.adjoint[0, 0] * d) for v, d in zip(operands, directions, strict=True) if v.adjoint is not None]
        return sum(float(p.sum()) for p in parts), sum(float(np.abs(p).sum()) for p in parts)

    (ahead, size), (behind, _) = inner(_STEP), inner(-_STEP)
    (near, _), (here, _) = inner(_STEP / 4), inner(-_STEP / 4)
    quotient, finer = (ahead - behind) / (2 * _STEP), (near - here) / (_STEP / 2)
    apart, scale = abs(quotient - finer), size + abs(finer)
    middle, _ = inner(0.0)  # at a kink it may be another than on both sides of it: of clip where low is high
    kink = apart > _KINK * scale or abs(middle - (near + here) / 2) > _KINK * (size + abs(middle))
    return (math.nan if kink else finer), 4 * apart + _LIMIT * scale + 1e-9
