"""Rule OP: every node of needle's tape, judged in float64 from needle's own inputs and its own adjoint. NumPy alone.

Rules G and L look at what a user sees. This one looks at the graph itself: the value of every node, and what each
passes back. As inputs and adjoints are needle's own, nothing that went wrong elsewhere can hide or imitate a fault
here, and the first bad node is the guilty operator. A wrong normalisation in a first layer, where no gradient arrives
at a layer in front, is visible to this rule alone.

The bounds come from running a node's definition, found by the name of the op's class as the course names it, on arrays
that carry error bounds (`oracle.operations.bounds`); the limit is 1. Only the course's API is used: ``op``, ``inputs``,
``cached_data``, ``grad``, ``gradient_as_tuple``. A node whose class or attributes are unknown is passed over and
counted; a needle without a tape gives no nodes, and the other rules stand alone. As the definition is also rule G's, a
wrong one is not for this rule to find: rule P and the validation against torch in float64 hold every one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from oracle.operations import MEANINGS
from oracle.rules.again import wrong_again
from oracle.rules.arrival import Arrival, Explanation
from oracle.rules.consumer import alone_is_right, reduction_is_wrong
from oracle.rules.node import Vjp, compare, derived, dtype_of, in_float64, parts_of
from oracle.systems.recorded import Node


@dataclass(frozen=True)
class Finding:
    """A node, or what arrives at a tensor, that is not what its definition says."""

    kind: str  # class of the op; of the first consumer for an accumulation
    direction: str  # "forward", "backward", "second backward", "accumulation", "seed"
    node: int  # place in the tape, oldest first
    fault: str  # "value", "shape", "dtype", "missing"
    message: str
    operand: int | None = None
    index: tuple[int, ...] = ()
    ours: float | str | None = None
    truth: float | str | None = None
    dtype: str | None = None
    error: float | None = None
    allowed: float | None = None
    broadcast: bool = False  # what is wrong is the reduction to the shape of an operand that was broadcast
    words: str = ""  # what the numbers look like
    fits: tuple[Explanation, ...] = ()  # what a wrong sum looks like, all that fits
    uses: int = 0  # of the tensor to which it is added up
    second: bool = False  # the backward pass ran on Tensors (create_graph)
    label: str = ""  # layer whose output the node is
    tape: int = 0  # number of the backward pass within the step
    line: str = ""  # where its definition stands, if that is known already
    about: str = ""  # what is known of a call: "called by Softplus backward"
    method: str = ""  # "BroadcastTo.gradient", in a needle whose classes may have names of their own

    @property
    def name(self) -> str:
        """Like ``BatchNorm backward, operand 0 (node 2)``."""
        of = "" if self.operand is None else f", operand {self.operand}"
        at = f"node {self.node}" + (f" of pass {self.tape}" if self.tape else "")
        what = self.direction if self.direction in ("accumulation", "seed") else f"{self.kind} {self.direction}"
        return f"{what}{of} ({at})"


@dataclass
class Findings:
    """What rule OP found on one or more tapes."""

    bad: list[Finding] = field(default_factory=list)
    nodes: int = 0
    unknown: int = 0  # nodes that could not be judged
    tensors: int = 0
    elements: int = 0
    largest: float = 0.0
    where: str = ""
    tapes: int = 0
    outputs: dict[str, int] = field(default_factory=dict)  # layer -> place of its output in the last tape
    again: bool = False  # where all is right on tapes that are differentiated again: each op alone, twice
    later: list[tuple[int, Node]] = field(default_factory=list)  # the ops of these tapes

    def judge(
        self,
        nodes: Sequence[Node],
        seed: Any = None,
        *,
        backward: bool = True,
        labels: Mapping[int, str] | None = None,
        second: bool = False,
    ) -> None:
        """Judge a recorded tape after its backward pass. ``seed`` is the adjoint of the root (ones by default)."""
        if nodes:
            with np.errstate(all="ignore"):
                _Judge(nodes, self, labels or {}, second).run(seed, backward)
            if self.again and second:
                self.later.extend(enumerate(nodes))
            self.tapes += 1

    def close(self) -> None:
        """After the last tape. Only where every number is right may a gradient rule be wrong in what it depends on: where one is
        wrong, all that is made of it looks so when it is differentiated again.
        """
        if not self.bad:
            self.bad.extend(
                Finding(
                    n.kind,
                    "second backward",
                    i,
                    "value",
                    f"the gradient of {n.kind} has a wrong gradient",
                    method=_inherited(n.op),
                )
                for i, n in self.later
                if wrong_again(n)
            )
        self.later.clear()

    def note(self, share: float, size: int, where: str) -> None:
        """Count one comparison."""
        self.tensors += 1
        self.elements += size
        if math.isfinite(share) and share > self.largest:
            self.largest, self.where = share, where


def _inherited(op: Any) -> str:
    """Like "Max.vjp", where an op has its gradient rule from another one."""
    definer = next((kind for kind in type(op).__mro__ if "vjp" in vars(kind)), type(op))
    return "" if definer is type(op) else f"{definer.__name__}.vjp"


class _Judge:
    def __init__(self, nodes: Sequence[Node], found: Findings, labels: Mapping[int, str], second: bool) -> None:
        self.nodes, self.found, self.labels, self.second = nodes, found, labels, second
        self.wide: dict[int, Any] = {}
        self.vjps: dict[int, Vjp | None] = {}
        self.wrong_sums: list[
            tuple[int, Arrival, int]
        ] = []  # number of the finding, what should have arrived, in which part

    def run(self, seed: Any, backward: bool) -> None:
        for i, node in enumerate(self.nodes):
            self.vjps[i] = self._forward(i, node)
        self.found.nodes += len(self.nodes)
        if self.labels:
            self.found.outputs = {
                self.labels[id(n.tensor)]: i for i, n in enumerate(self.nodes) if id(n.tensor) in self.labels
            }
        if not backward:
            return
        arrivals: dict[int, Arrival] = {}
        root = self.nodes[-1].tensor
        given = np.ones(np.shape(root.cached_data)) if seed is None else np.asarray(seed, dtype=np.float64)
        arrivals[id(root)] = Arrival(root, [(((given, 0 * given),), len(self.nodes) - 1, -1)])
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            arrival = arrivals.pop(id(node.tensor), None)
            if arrival is None:
                continue
            adjoint = self._arrived(arrival)
            self._pass_on(i, node, adjoint, arrivals)
        for arrival in arrivals.values():
            self._arrived(arrival)
        self._explain_sums()

    def _explain_sums(self) -> None:
        """What wrong sums look like, once all is known that has arrived elsewhere."""
        if not self.wrong_sums:
            return
        uses = Counter(id(x) for node in self.nodes for x in node.inputs)
        several = {id(x): x for node in self.nodes for x in node.inputs if uses[id(x)] > 1}
        kinds = [node.kind for node in self.nodes]
        for number, arrival, place in self.wrong_sums:
            grads = [getattr(x, "grad", None) for key, x in several.items() if key != id(arrival.tensor)]
            others = [
                in_float64(part) for g in grads if g is not None for part in parts_of(getattr(g, "cached_data", g))
            ]
            fits = arrival.addition(place, kinds, others)
            self.found.bad[number] = replace(self.found.bad[number], fits=fits)

    def _values(self, tensor: Any) -> Any:
        """float64 of what a tensor holds."""
        wide = self.wide.get(id(tensor))
        if wide is None:
            data = tensor.cached_data
            wide = tuple(in_float64(a) for a in data) if isinstance(data, tuple) else in_float64(data)
            self.wide[id(tensor)] = wide
        return wide

    def _forward(self, i: int, node: Node) -> Vjp | None:
        meaning = MEANINGS.get(node.kind)
        if meaning is None:
            self.found.unknown += 1
            return None
        try:
            value, bound, vjp = derived(meaning, node.op, [self._values(x) for x in node.inputs])
        except (AttributeError, TypeError, ValueError, IndexError, KeyError):
            self.found.unknown += 1
            return None
        ours = parts_of(node.tensor.cached_data)
        values, bounds = parts_of(value), parts_of(bound)
        where = self.labels.get(id(node.tensor), "")
        if len(ours) != len(values):
            message = f"{node.kind} gives {len(ours)} tensors, not {len(values)}"
            self._bad(Finding(node.kind, "forward", i, "shape", message, second=self.second, label=where))
            return None
        dtype = dtype_of(node)
        for mine, right, allowed in zip(ours, values, bounds, strict=True):
            wrong = compare(mine, right, allowed, partial(self.found.note, where=f"{node.kind} forward"))
            if wrong is None and dtype is not None and mine.dtype != dtype:
                wrong = {"fault": "dtype", "ours": str(mine.dtype), "truth": str(dtype),
                         "message": f"has dtype {mine.dtype}, not {dtype}"}  # fmt: skip
            if wrong is not None:
                text = f"the value of {node.kind} {wrong.pop('message')}"
                self._bad(Finding(node.kind, "forward", i, message=text, tape=self.found.tapes, label=where, **wrong))
                break
        return vjp

    def _pass_on(self, i: int, node: Node, adjoint: Any, arrivals: dict[int, Arrival]) -> None:
        """What a node owes its inputs, from its own adjoint as needle has it."""
        needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
        made: Sequence[Any] | None = None
        vjp = self.vjps[i]
        if vjp is not None and adjoint is not None:
            try:
                made = vjp(adjoint, needs)
            except (AttributeError, TypeError, ValueError, IndexError, KeyError):
                self.found.unknown += 1
        for j, (x, need) in enumerate(zip(node.inputs, needs, strict=True)):
            if not need:
                continue
            arrival = arrivals.setdefault(id(x), Arrival(x))
            if made is None:
                arrival.known = False
            elif made[j] is not None:
                c = made[j]
                # a pair of arrays is the contribution to a Tensor, a tuple of pairs that to a TensorTuple
                parts = c if isinstance(x.cached_data, tuple) else (c,)
                arrival.parts.append((parts, i, j))

    def _arrived(self, arrival: Arrival) -> Any:
        """Compare an adjoint with the sum of what should have arrived; returns needle's own adjoint, float64."""
        tensor = arrival.tensor
        grad = getattr(tensor, "grad", None)
        data = parts_of(tensor.cached_data)
        raw = None if grad is None else parts_of(getattr(grad, "cached_data", grad))
        if raw is None or len(raw) != len(data):
            if arrival.known and (arrival.owed() if isinstance(tensor.cached_data, tuple) else arrival.parts):
                self._blame(arrival, {"fault": "missing", "message": "is missing", "truth": "a gradient"})
            return None
        fits = True
        for place, (mine, like) in enumerate(zip(raw, data, strict=True)):
            wrong: dict[str, Any] | None = None
            if mine.shape != like.shape:
                fits = False
                message = f"has shape {mine.shape}, not {like.shape}"
                wrong = {"fault": "shape", "message": message, "ours": str(mine.shape), "truth": str(like.shape)}
            elif arrival.known:
                right, allowed = arrival.total(place, like.shape)
                wrong = compare(mine, right, allowed, partial(self.found.note, where="vjp"))
                if wrong is None and like.dtype.kind == "f" and mine.dtype != like.dtype:
                    wrong = {"fault": "dtype", "message": f"has dtype {mine.dtype}, not {like.dtype}",
                             "ours": str(mine.dtype), "truth": str(like.dtype)}  # fmt: skip
            if wrong is not None:
                self._blame(arrival, wrong, place)
                break
        if not fits:
            return None
        wide = tuple(in_float64(a) for a in raw)
        return wide if isinstance(tensor.cached_data, tuple) else wide[0]

    def _blame(self, arrival: Arrival, wrong: dict[str, Any], place: int = 0) -> None:
        """The consumer that gives a bad contribution when it is run alone; where all are right, their addition."""
        uses = [(i, j) for _, i, j in arrival.parts if j >= 0]
        message = wrong.pop("message")
        where = self.labels.get(id(arrival.tensor), "")
        guilty = next(
            ((i, j) for i, j in uses if alone_is_right(self.nodes[i], j, self._values, self.second) is False), None
        )
        about: dict[str, Any] = {"second": self.second, "tape": self.found.tapes, **wrong}
        if guilty is not None:
            i, j = guilty
            node = self.nodes[i]
            text = f"what {node.kind} passes back to its operand {j} {message}"
            self._bad(
                Finding(node.kind, "backward", i, message=text, operand=j, broadcast=reduction_is_wrong(node, j),
                        label=self.labels.get(id(node.tensor), ""), **about)
            )  # fmt: skip
            return
        i, operand = uses[0] if uses else (len(self.nodes) - 1, None)
        if not uses:
            text = f"the adjoint that backward starts from {message}"
            self._bad(Finding(self.nodes[i].kind, "seed", i, message=text, label=where, **about))
            return
        if wrong["fault"] == "value":
            self.wrong_sums.append((len(self.found.bad), arrival, place))
        text = f"the adjoint of a tensor with {len(uses)} use{'s' * (len(uses) != 1)} {message}"
        finding = Finding(self.nodes[i].kind, "accumulation", i, message=text, operand=operand, uses=len(uses),
                          label=where, **about)  # fmt: skip
        self._bad(finding)

    def _bad(self, finding: Finding) -> None:
        self.found.bad.append(finding)
