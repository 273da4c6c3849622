"""Whose fault is a bad adjoint? Each of its consumers is run alone, on leaves of its own and with nothing around it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.operations import MEANINGS, shapes
from oracle.operations.tape import Tape, Var
from oracle.rules.node import Array, Shape, compare, derived, in_float64, parts_of
from oracle.systems.recorded import Node

_BROADCASTING = ("EWiseAdd", "EWiseMul", "EWiseDiv", "EWisePow", "Maximum", "Minimum", "Where", "BroadcastTo", "MatMul")


def alone_is_right(node: Node, j: int, values: Callable[[Any], Any], second: bool) -> bool | None:
    """Whether the op, on leaves of its own and with nothing around it, passes the right gradient to operand j.

    None where that cannot be found out.
    """
    op, meaning = node.op, MEANINGS.get(node.kind)
    g = getattr(node.tensor, "grad", None)
    if meaning is None or g is None:
        return None
    inputs = [values(x) for x in node.inputs]
    needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
    try:
        kind = type(node.tensor)
        if any(isinstance(x.cached_data, tuple) for x in (node.tensor, *node.inputs)):
            got = _asked(node, j)
        else:
            leaves = [kind.make_const(x.cached_data, requires_grad=n) for x, n in zip(node.inputs, needs, strict=True)]
            out = op(*leaves)
            # by the walk that made what is judged: on arrays, or on Tensors
            out.backward(kind.make_const(np.array(g.cached_data)), **({"create_graph": True} if second else {}))
            got = leaves[j].grad
        if got is None:
            # lost by the rule, or by the walk after it?
            return _asked(node, j) is not None
        given = parts_of(g.cached_data)
        adjoint: Any = (
            tuple(in_float64(a) for a in given) if isinstance(node.tensor.cached_data, tuple) else in_float64(given[0])
        )
        made = derived(meaning, op, inputs)[2](adjoint, needs)[j]
    except Exception:
        return None
    parts: Any = made if isinstance(node.inputs[j].cached_data, tuple) else (made,)
    for mine, part in zip(parts_of(getattr(got, "cached_data", got)), parts, strict=False):
        value, bound = (np.zeros(mine.shape),) * 2 if part is None else part
        if compare(mine, value, bound, lambda share, size: None) is not None:
            return False
    return True


def _asked(node: Node, j: int) -> Any:
    """The contribution that ``gradient_as_tuple`` gives; for tuples, which cannot be run alone."""
    tensor = node.tensor
    freed = tensor.op, tensor.inputs
    try:
        tensor.op, tensor.inputs = node.op, node.inputs
        grad = type(tensor).make_const(tensor.grad.cached_data)
        return node.op.gradient_as_tuple(grad, tensor)[j]
    finally:
        tensor.op, tensor.inputs = freed


def reduction_is_wrong(node: Node, j: int) -> bool:
    """Whether another op that broadcasts the same operand is wrong too: then it is the reduction that they share."""
    tensor, x = node.tensor, node.inputs[j]
    if node.kind not in _BROADCASTING or isinstance(x.cached_data, tuple):
        return False
    shape, wide = np.shape(x.cached_data), np.shape(tensor.cached_data)
    if node.kind == "MatMul":
        wide = (*wide[:-2], *shape[-2:])
    other = "EWiseMul" if node.kind == "EWiseAdd" else "EWiseAdd"
    kind = getattr(sys.modules.get(type(node.op).__module__), other, None)
    if kind is None or shape == wide:
        return False
    g = (np.arange(math.prod(wide)) % 7 - 3.0).reshape(wide)  # small whole numbers: the sum is exact
    try:
        leaf = type(tensor).make_const(np.array(x.cached_data), requires_grad=True)
        kind()(leaf, type(tensor).make_const(np.ones(wide, x.cached_data.dtype))).backward(
            type(tensor).make_const(g.astype(x.cached_data.dtype))
        )
        return not np.array_equal(parts_of(leaf.grad.cached_data)[0], _summed(g, shape))
    except Exception:
        return False


def _summed(g: Array, shape: Shape) -> Array:
    """g summed over what broadcasting had expanded."""
    x = Var(np.ones((1, 1, *shape)))
    t = Tape(None)
    t.backward([(shapes.broadcast_to(t, x, shape=g.shape), g[None, None])])
    assert x.adjoint is not None
    return np.asarray(x.adjoint[0, 0])
