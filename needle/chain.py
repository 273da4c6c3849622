"""Layers in a row, computed on arrays: what a Sequential of needle's own layers does.

Nobody sees what goes from one layer of a Sequential to the next, so it need not be a Tensor. A *chain* is a list of
records, one for each op: the op, its further operands (the parameters of the layer), and of its input and its result
what its gradient rule will look at; the rest is let go of at once. The whole chain is one node of the graph.

The plain backward pass hands the gradient from record to record, on the same rules as everywhere. Whoever wants more (a
graph that is kept, a gradient that can be differentiated, or to look at ``op`` and ``inputs``) has the chain
*unfolded* into the nodes that it stands for, and nothing else changes: the numbers are the same to the last bit.

What it is worth is memory and depth. The peak of a training step is 0.54 to 0.72 of the one without it, and 200 layers
take 0.70 of the time; a model of two or three layers is as fast without (0.99 to 1.02).
"""

from __future__ import annotations

import copy
import operator
from functools import reduce
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import autograd, ops
from needle.autograd import Tensor, _by_number, _data, _in_dtype_of, _ndarray, _needs, _refuse_other_than_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from needle.autograd import Op

    Array = NDArray[Any]
    # What a layer does to an array: ops in turn, each with its operands beside the array. Known beforehand, or once the
    # array is there; or, in the place of a Residual, the steps whose result is added to what goes into them.
    Ops: TypeAlias = "tuple[tuple[Op, tuple[Tensor, ...]], ...]"
    Step: TypeAlias = "Ops | Callable[[Array], Ops] | list[Step]"
    # The op, its operands, whether its input needs a gradient, and the input and the result where a rule reads them. Of
    # a Residual: the addition, the records of what is added, which of the two needs a gradient, and both or None.
    Record: TypeAlias = "tuple[Op, Any, Any, Any, Any]"

_ADD = ops._ewise_add


def run(steps: Sequence[Step], x: Tensor) -> Tensor:
    """Compute the steps on x: one node of the graph, or a constant where no gradient is to flow."""
    records: list[Record] | None = [] if autograd._is_recording() else None
    sources = [x] if x._number else []
    y, flows = _forward(steps, x.cached_data, x.requires_grad, records, sources)
    if y is x.cached_data:
        return x
    result = Tensor.make_const(y)
    if flows and records is not None:
        result.requires_grad = True
        result._number = autograd._next_number()
        result._chain = Chain(x, records, sources)
    return result


def _forward(
    steps: Sequence[Step], x: Array, flows: bool, records: list[Record] | None, sources: list[Tensor]
) -> tuple[Array, bool]:
    """The result of the steps, and whether a gradient flows through it. Appends to the records, and to the sources the
    operands that are not leaves.
    """
    try:
        for step in steps:
            if type(step) is list:
                inner: list[Record] | None = None if records is None else []
                z, through = _forward(step, x, flows, inner, sources)
                y = np.asarray(_ADD.compute(z, x))
                if records is not None:
                    alike = z.shape == x.shape and z.dtype is x.dtype
                    records.append((_ADD, inner, (through, flows), None if alike else (z, x), None))
                x, flows = y, through
                continue
            for op, operands in step if type(step) is tuple else step(x):  # type: ignore[operator]
                if operands:
                    try:
                        if len(operands) == 2:  # a weight and a bias: spelled out, because it takes half the time
                            a, b = operands
                            y = op.compute(x, a.cached_data, b.cached_data)
                            made = a._number or b._number
                        else:
                            y = op.compute(x, *map(_data, operands))
                            made = True
                    except AttributeError:
                        _refuse_other_than_tensors(op, operands)
                        raise
                    read = op.reads_inputs or y.shape != x.shape or y.dtype is not x.dtype
                    if made:
                        sources += filter(_by_number, operands)
                else:
                    y = op.compute(x)
                    read = op.reads_inputs
                if type(y) is not _ndarray:
                    y = np.asarray(y)
                if records is not None:
                    records.append((op, operands, flows, x if read else None, y if op.reads_result else None))
                    if not flows:
                        flows = True in map(_needs, operands)
                x = y
    except (TypeError, ValueError) as error:
        vars(error).setdefault("_step", step)  # the innermost; whoever has made the steps knows what to call it
        raise
    return x, flows


def number_of(steps: Sequence[Step], error: Exception) -> int:
    """Which step an error has come from, counted as ``every`` gives them; forgets it."""
    failed = vars(error).pop("_step")
    return next(i for i, step in enumerate(every(steps)) if step is failed)


def every(steps: Sequence[Step]) -> Iterator[Step]:
    """Each step; a Residual and then what is in it."""
    for step in steps:
        yield step
        if type(step) is list:
            yield from every(step)


class Chain:
    """The records of a result, the tensor from which it was computed, and the nodes below it in the graph."""

    __slots__ = ("base", "records", "sources")

    def __init__(self, base: Tensor, records: list[Record], sources: list[Tensor]) -> None:
        self.base = base
        self.records = records
        self.sources = sources

    def backward(self, g: Array) -> tuple[list[Tensor], list[Array | None]]:
        """Every operand and the base, and what each gets from the gradient g of the result, newest op first; uses up the
        records.
        """
        tensors: list[Tensor] = []
        contributions: list[Array | None] = []
        at_base = _backward(self.records, g, [], tensors, contributions)
        if len(at_base) > 1:  # as views, so that what came past a Residual is not taken to be nobody else's
            at_base = [c[...] for c in at_base[:-1]] + [at_base[-1] if _is_own(at_base) else at_base[-1][...]]
        return tensors + [self.base] * len(at_base), contributions + at_base

    def looks_at(self, unfolded: bool) -> list[tuple[Op, Tensor]]:
        """The operands of which the rules read the numbers, each with the op; all of them, and the base, to unfold."""
        found = []
        for op, operands, flows, *_ in _all(self.records):
            if type(operands) is list:
                continue
            of_inputs, _ = op.looks_at([flows, *map(_needs, operands)], False)
            found += [(op, x) for x, read in zip(operands, of_inputs[1:], strict=True) if read or unfolded]
        return [*found, (self.records[0][0], self.base)] if unfolded else found

    def unfold(self, node: Tensor) -> None:
        """Make ``node`` and the nodes below it out of the records: a graph like any other."""
        self.records[-1] = (*self.records[-1][:4], node.cached_data)
        step = 1 / (1 + sum(1 for _ in _all(self.records)))
        last = _nodes(self.records, self.base, count(node._number - 1 + step, step))
        node._chain = None
        node.op, node.inputs = last.op, last.inputs


def _all(records: list[Record]) -> Iterator[Record]:
    for record in records:
        if type(record[1]) is list:
            yield from _all(record[1])
        yield record


def _backward(
    records: list[Record],
    g: Array,
    before: list[Array],
    tensors: list[Tensor],
    contributions: list[Array | None],
) -> list[Array]:
    """The contributions to what went into the first record, in the order of a walk through nodes: those from ``before``,
    then those that come through the records. Appends the operands and what they get to the last two.
    """
    while records:
        op, operands, flows, x, y = records.pop()
        if type(operands) is list:
            z, x = x or (g, g)
            g, skipping = op.vjp(g, g, flows, z, x)
            g = _in_dtype_of(np.asarray(g), z)
            waiting = [_in_dtype_of(np.asarray(skipping), x)] if flows[1] else []
            parts = _backward(operands, g, waiting if records else before + waiting, tensors, contributions)
            if not flows[1]:
                return []
            if not records:
                return parts
            g = _sum(parts)
            continue
        # Of what was let go of, g has the shape and the dtype, and the rule looks at no more.
        if x is None:
            x = g
        if y is None:
            y = g
        if operands:
            if len(operands) == 2:
                a, b = operands
                needs = flows, a.requires_grad, b.requires_grad
                dx, da, db = op.vjp(g, y, needs, x, a.cached_data, b.cached_data)
                contributions += da, db
            else:
                dx, *others = op.vjp(g, y, [flows, *map(_needs, operands)], x, *map(_data, operands))
                contributions += others
            tensors += operands
            if not flows:
                return []
        else:
            (dx,) = op.vjp(g, y, (flows,), x)
        g = dx if type(dx) is _ndarray and dx.dtype is x.dtype else _in_dtype_of(np.asarray(dx), x)
    return [*before, g]


def _sum(parts: list[Array]) -> Array:
    """Add up as a walk through nodes does, to the same memory layout, on which the rounding of later sums depends."""
    *skipping, last = parts
    total = np.asarray(reduce(operator.add, skipping)) if skipping else last
    if len(skipping) > 1:
        total += last
    elif skipping and _is_own(parts):
        last += total
        total = last
    elif skipping:
        total = np.asarray(total + last)
    return total


def _is_own(parts: list[Array]) -> bool:
    """Whether the last part is an array of its own, and not what came past a Residual, passed on unchanged or as a view."""
    return parts[-1].base is None and all(parts[-1] is not part for part in parts[:-1])


def _nodes(records: list[Record], x: Tensor, numbers: Iterator[float]) -> Tensor:
    """The node of the last record; what was let go of is computed once more."""
    for op, operands, _, _, y in records:
        inputs = (_nodes(operands, x, numbers), x) if type(operands) is list else (x, *operands)
        if y is None:
            # by a copy, because an op may keep something of its first call for the gradient
            y = np.asarray(copy.copy(op).compute(*map(_data, inputs)))
        x = Tensor.make_const(y)
        if any(map(_needs, inputs)):
            x.requires_grad = True
            x.op, x.inputs = op, inputs
            x._number = next(numbers)
    return x
