"""Rule OP for a needle of the course: every op of a tape is run alone, on copies of what it was given there.

Neither the names of its classes nor what it keeps of a backward pass are promised by the course. So a class is known by what it
does: the functions of the course are called, and the op that stands behind the result is of that meaning; the attribute that
holds the argument is found by its value. A node of such a class runs alone, on leaves of its own, forward and backward; its value, what
it passes back, and whether it writes into its operands are held against the definition in float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.operations import OPERATIONS
from oracle.rules.node import compare, derived
from oracle.rules.tape import Finding, Findings
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import Array, array_of, grad_of, is_ours, once_per_package
from oracle.systems.recorded import Node
from oracle.systems.source import COMPUTE, GRADIENT, line_in, method_in

_SHAPED = (2, 3)
# Operands and arguments by which the op behind a function is recognised.
_SAMPLES: Mapping[str, tuple[Sequence[tuple[int, ...]], Mapping[str, Any]]] = {
    **dict.fromkeys(("negate", "log", "exp", "relu", "tanh", "sigmoid", "logsoftmax"), ((_SHAPED,), {})),
    **dict.fromkeys(("add", "multiply", "divide", "power", "subtract"), ((_SHAPED, _SHAPED), {})),
    **dict.fromkeys(("add_scalar", "mul_scalar", "divide_scalar", "power_scalar"), ((_SHAPED,), {"c": 1.75})),
    "transpose": ((_SHAPED,), {"axes": (0, 1)}),
    "reshape": ((_SHAPED,), {"shape": (3, 2)}),
    "broadcast_to": (((1, 3),), {"shape": _SHAPED}),
    "summation": ((_SHAPED,), {"axes": (1,)}),
    "logsumexp": ((_SHAPED,), {"axes": (1,)}),
    "matmul": ((_SHAPED, (3, 2)), {}),
}


@dataclass(frozen=True)
class Known:
    """What a class of ops means."""

    name: str  # of the operation
    attributes: Mapping[str, str]  # keyword of the definition -> attribute of the op

    def given(self, op: Any) -> dict[str, Any]:
        """The arguments of one op, as the definition takes them."""
        found = {}
        for keyword, attribute in self.attributes.items():
            value = getattr(op, attribute)
            found[keyword] = tuple(map(int, value)) if isinstance(value, list | tuple) else value
        return found


@once_per_package
def known_ops(ndl: Any) -> Mapping[type, Known]:
    """Class of ops -> what it means, by what stands behind the functions of the course. A class that stands behind several of them
    means none of them; a negation may be a product with -1.
    """
    found: dict[type, dict[str, Known]] = {}
    for name, (shapes, arguments) in _SAMPLES.items():
        try:
            operands = [ndl.Tensor(np.full(shape, 0.5, np.float32)) for shape in shapes]
            out = OPERATIONS[name].needle(ndl, *operands, **arguments)
            same = [x is y for x, y in zip(out.inputs, operands, strict=True)]
            if not all(same):
                continue
            attributes = {keyword: _holder(out.op, value) for keyword, value in arguments.items()}
        except Exception:
            continue
        if all(attributes.values()):
            found.setdefault(type(out.op), {})[name] = Known(name, attributes)
    for meanings in found.values():
        if "mul_scalar" in meanings:
            meanings.pop("negate", None)
    return {kind: known for kind, meanings in found.items() for known in meanings.values() if len(meanings) == 1}


def _holder(op: Any, value: Any) -> str:
    slots = (name for kind in type(op).__mro__ for name in getattr(kind, "__slots__", ()))
    names = (*getattr(op, "__dict__", ()), *slots)
    return next((name for name in names if _equal(getattr(op, name, None), value)), "")


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(np.array_equal(np.ravel(a), np.ravel(b)))
    except Exception:
        return False


def findings_for(ndl: Any, *, again: bool = False) -> Findings:
    """Rule OP as it can be applied to a needle; ``again`` as in `Findings`."""
    return Findings(again=again) if is_ours(ndl) else Alone(ndl)


class Alone(Findings):
    """What is found on tapes of a needle of the course; judged as evidence, where something else has failed."""

    def __init__(self, ndl: Any) -> None:
        super().__init__()
        self.ndl = ndl
        self.kinds: set[str] = set()  # operations on the tapes

    def judge(
        self,
        nodes: Sequence[Node],
        seed: Any = None,
        *,
        backward: bool = True,
        labels: Mapping[int, str] | None = None,
        second: bool = False,
    ) -> None:
        """Every node by itself."""
        if not nodes:
            return
        labels = labels or {}
        outputs = {labels[id(n.tensor)]: i for i, n in enumerate(nodes) if id(n.tensor) in labels}
        self.outputs = outputs or self.outputs
        kinds = known_ops(self.ndl)
        with np.errstate(all="ignore"):
            for i, node in enumerate(nodes):
                known = kinds.get(type(node.op))
                self.nodes += 1
                if known is None or any(isinstance(array, tuple | list) for array in map(_data, node.inputs)):
                    self.unknown += 1
                    continue
                self.kinds.add(known.name)
                inputs = [np.array(array_of(x)) for x in node.inputs]
                needs = [bool(getattr(x, "requires_grad", True)) for x in node.inputs]
                self._node(i, node.op, known, inputs, needs, labels.get(id(node.tensor), ""))
        if backward and not self.bad:
            self._sums(len(nodes) - 1)
        self.tapes += 1

    def _sums(self, last: int) -> None:
        """Where every op is right, the walk itself is asked: what arrives at a tensor that is used more than once?"""
        try:
            words, line, name = wrong_sum(self.ndl)
        except Exception:
            return
        if words:
            self.bad.append(
                Finding("the walk", "accumulation", last, "value", "is not the sum of what its uses pass back", words=words,
                        tape=self.tapes, line=line, method=name)
            )  # fmt: skip

    def _node(self, i: int, op: Any, known: Known, inputs: list[Array], needs: list[bool], label: str) -> None:
        try:
            found = tried_alone(self.ndl, op, known, inputs, needs)
        except Exception:
            self.unknown += 1
            return
        for direction, operand, wrong in found:
            wrong = dict(wrong)
            message = wrong.pop("message")
            line, method = method_in(type(op), *(COMPUTE if direction == "forward" else GRADIENT))
            what = f"what it passes back to operand {operand}" if direction == "backward" else "its value"
            self.bad.append(
                Finding(type(op).__name__, direction, i, message=f"{what} {message}", operand=operand, label=label,
                        tape=self.tapes, line=line, method=f"{type(op).__name__}.{method}", **wrong)
            )  # fmt: skip


@once_per_package
def wrong_sum(ndl: Any) -> tuple[str, str, str]:
    """What a sum of contributions looks like that is wrong, the line, and the function; empty words if it is right."""
    x = ndl.Tensor(np.ones(2, np.float32))
    parts = (2.0, 3.0, 7.0)
    inner = x * 1.0
    out = inner * parts[0] + inner * parts[1] + inner * parts[2]
    contract_of(ndl).backward(out, ndl.Tensor(np.ones(2, np.float32), requires_grad=False))
    made = float(np.ravel(array_of(x.grad))[0])
    if made == sum(parts):
        for thing in _homes(ndl):
            function = getattr(thing, "sum_node_list", None)
            if function is not None and _writes(ndl, function):
                return "the sum is written into the contribution that comes first", line_in(function), "sum_node_list"
        return "", "", ""
    words = {parts[0]: "only the contribution that comes first counts", parts[-1]: "only the contribution that comes last counts",
             0.0: "nothing arrives", 2 * sum(parts): "it counts twice"}.get(made, f"contributions 2, 3 and 7 give {made:g}")  # fmt: skip
    for thing in _homes(ndl):
        for name in ("sum_node_list", "compute_gradient_of_variables"):
            function = getattr(thing, name, None)
            if function is not None and not (name == "sum_node_list" and _adds(ndl, function)):
                return words, line_in(function), name
    return words, line_in(ndl.Tensor, "backward"), "Tensor.backward"


def _homes(ndl: Any) -> list[Any]:
    """Where the functions of the walk are."""
    return [
        thing for thing in (getattr(ndl, "autograd", None), sys.modules.get(ndl.Tensor.__module__)) if thing is not None
    ]


def _writes(ndl: Any, function: Any) -> bool:
    """Whether a sum of Tensors writes into one of them: an op that passes one gradient on to several operands then passes on too much."""
    given = [ndl.Tensor(np.full(2, v, np.float32), requires_grad=False) for v in (2.0, 3.0)]
    function(list(given))
    return [float(np.ravel(array_of(x))[0]) for x in given] != [2.0, 3.0]


def _adds(ndl: Any, function: Any) -> bool:
    total = function([ndl.Tensor(np.full(2, v, np.float32), requires_grad=False) for v in (2.0, 3.0, 7.0)])
    return float(np.ravel(array_of(total))[0]) == 12.0


def _data(tensor: Any) -> Any:
    return getattr(tensor, "cached_data", None)


Wrong = tuple[str, "int | None", Mapping[str, Any]]  # direction, operand, what


def tried_alone(ndl: Any, op: Any, known: Known, inputs: Sequence[Array], needs: Sequence[bool]) -> list[Wrong]:
    """What is wrong with an op that is run alone on these operands; raises what needle raises."""

    def meaning(tape: Any, op: Any, *xs: Any) -> Any:
        return OPERATIONS[known.name].definition(tape, *xs, **known.given(op))

    wide = [a.astype(np.float64) for a in inputs]
    value, bound, vjp = derived(meaning, op, wide)
    leaves = [ndl.Tensor(np.array(a), requires_grad=need) for a, need in zip(inputs, needs, strict=True)]
    out = op(*leaves)
    found: list[Wrong] = []

    def note(share: float, size: int) -> None:
        """Evidence is not counted."""

    made = array_of(out)
    for j, (leaf, before) in enumerate(zip(leaves, inputs, strict=True)):
        if not np.array_equal(array_of(leaf), before, equal_nan=True):
            found.append(("forward", None, {"fault": "written", "message": f"is written into its operand {j}"}))
    wrong = compare(made, value, bound, note)
    if wrong is not None:
        found.append(("forward", None, wrong))
    if found or not any(needs):
        return found  # a gradient rule builds on the value
    g = (np.arange(math.prod(value.shape)) % 5 - 1.5).reshape(value.shape)
    contract_of(ndl).backward(out, ndl.Tensor(g.astype(np.float32), requires_grad=False))
    for j, (leaf, right) in enumerate(zip(leaves, vjp(g, needs), strict=True)):
        if not needs[j] or right is None:
            continue
        grad = grad_of(leaf)
        if grad is None:
            found.append(("backward", j, {"fault": "missing", "message": "is missing"}))
            continue
        wanted, allowed = right
        wrong = compare(array_of(grad), np.asarray(wanted), np.asarray(allowed), note)
        if wrong is not None:
            found.append(("backward", j, wrong))
    return found
