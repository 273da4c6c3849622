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
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.operations import MEANINGS, shapes
from oracle.operations.bounds import LIMIT, Bounded, BoundTape
from oracle.operations.operation import Meaning
from oracle.operations.tape import LEAD, TINY, Tape, U, Var
from oracle.systems.recorded import Node

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Within = tuple[Array, Array]  # a float64 value, and how far a correct float32 program may be from it
Parts = tuple[Within | None, ...]  # one per element of a TensorTuple; one for a Tensor; None is zero
Vjp = Callable[[Any, Sequence[bool]], "Sequence[Within | Parts | None]"]

_BROADCASTING = ("EWiseAdd", "EWiseMul", "EWiseDiv", "EWisePow", "BroadcastTo", "MatMul")
HUGE = 1e30  # beyond it a correct float32 program may overflow on the way


# -- what a node must give ---------------------------------------------------------------------------------------------


def _told(x: Any) -> Within:
    """Value and limit, without the leading axes."""
    if isinstance(x, Bounded):
        return x.v[0, 0], LIMIT * x.error[0, 0]
    return x[0, 0], np.zeros(x.shape[LEAD:])


def _contribution(x: Var | tuple[Var, ...]) -> Any:
    """What arrives at an operand. It may be converted to the dtype of the operand: one more rounding."""
    if isinstance(x, tuple):
        return tuple(map(_contribution, x))
    if x.adjoint is None:
        return None
    value, bound = _told(x.adjoint)
    return value, bound + 2 * U * np.abs(value)


def derived(meaning: Meaning, op: Any, xs: Sequence[Any]) -> tuple[Any, Any, Vjp]:
    """Value, bound and vjp of a node: its definition, run on arrays that carry the bounds of their rounding errors."""
    tape = BoundTape()
    operands = [tuple(Var(a[None, None]) for a in x) if isinstance(x, tuple) else Var(x[None, None]) for x in xs]
    out = meaning(tape, op, *operands)

    def vjp(g: Any, needs: Sequence[bool]) -> Any:
        for x, need in zip(operands, needs, strict=True):
            for var in x if isinstance(x, tuple) else (x,):
                var.needs = need
        ends = zip(out, g, strict=True) if isinstance(out, tuple) else [(out, g)]
        tape.backward([(var, a[None, None]) for var, a in ends])
        return [_contribution(x) if need else None for x, need in zip(operands, needs, strict=True)]

    if isinstance(out, tuple):
        told = [_told(var.value) for var in out]
        return tuple(v for v, _ in told), tuple(e for _, e in told), vjp
    return *_told(out.value), vjp


# -- judging it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A node, or what arrives at a tensor, that is not what its definition says."""

    kind: str  # class of the op; of the first consumer for an accumulation
    direction: str  # "forward", "backward", "accumulation", "seed"
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
    second: bool = False  # the backward pass ran on Tensors (create_graph)
    label: str = ""  # layer whose output the node is
    tape: int = 0  # number of the backward pass within the step

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
            self.tapes += 1

    def note(self, share: float, size: int, where: str) -> None:
        """Count one comparison."""
        self.tensors += 1
        self.elements += size
        if math.isfinite(share) and share > self.largest:
            self.largest, self.where = share, where


@dataclass
class _Arrival:
    """What should arrive at one tensor: the contributions of all its uses."""

    tensor: Any
    parts: list[tuple[Parts, int, int]] = field(default_factory=list)  # contribution, node, operand
    known: bool = True


class _Judge:
    def __init__(self, nodes: Sequence[Node], found: Findings, labels: Mapping[int, str], second: bool) -> None:
        self.nodes, self.found, self.labels, self.second = nodes, found, labels, second
        self.wide: dict[int, Any] = {}
        self.vjps: dict[int, Vjp | None] = {}

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
        arrivals: dict[int, _Arrival] = {}
        root = self.nodes[-1].tensor
        given = np.ones(np.shape(root.cached_data)) if seed is None else np.asarray(seed, dtype=np.float64)
        arrivals[id(root)] = _Arrival(root, [(((given, 0 * given),), len(self.nodes) - 1, -1)])
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            arrival = arrivals.pop(id(node.tensor), None)
            if arrival is None:
                continue
            adjoint = self._arrived(arrival)
            self._pass_on(i, node, adjoint, arrivals)
        for arrival in arrivals.values():
            self._arrived(arrival)

    def _values(self, tensor: Any) -> Any:
        """float64 of what a tensor holds."""
        wide = self.wide.get(id(tensor))
        if wide is None:
            data = tensor.cached_data
            wide = tuple(_wide(a) for a in data) if isinstance(data, tuple) else _wide(data)
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
        ours = _parts_of(node.tensor.cached_data)
        values, bounds = _parts_of(value), _parts_of(bound)
        where = self.labels.get(id(node.tensor), "")
        if len(ours) != len(values):
            message = f"{node.kind} gives {len(ours)} tensors, not {len(values)}"
            self._bad(Finding(node.kind, "forward", i, "shape", message, second=self.second, label=where))
            return None
        dtype = _dtype(node)
        for mine, right, allowed in zip(ours, values, bounds, strict=True):
            wrong = self._compare(mine, right, allowed, f"{node.kind} forward")
            if wrong is None and dtype is not None and mine.dtype != dtype:
                wrong = {"fault": "dtype", "ours": str(mine.dtype), "truth": str(dtype),
                         "message": f"has dtype {mine.dtype}, not {dtype}"}  # fmt: skip
            if wrong is not None:
                text = f"the value of {node.kind} {wrong.pop('message')}"
                self._bad(Finding(node.kind, "forward", i, message=text, tape=self.found.tapes, label=where, **wrong))
                break
        return vjp

    def _pass_on(self, i: int, node: Node, adjoint: Any, arrivals: dict[int, _Arrival]) -> None:
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
            arrival = arrivals.setdefault(id(x), _Arrival(x))
            if made is None:
                arrival.known = False
            elif made[j] is not None:
                c = made[j]
                # a pair of arrays is the contribution to a Tensor, a tuple of pairs that to a TensorTuple
                parts = c if isinstance(x.cached_data, tuple) else (c,)
                arrival.parts.append((parts, i, j))

    def _arrived(self, arrival: _Arrival) -> Any:
        """Compare an adjoint with the sum of what should have arrived; returns needle's own adjoint, float64."""
        tensor = arrival.tensor
        grad = getattr(tensor, "grad", None)
        data = _parts_of(tensor.cached_data)
        raw = None if grad is None else _parts_of(getattr(grad, "cached_data", grad))
        if raw is None or len(raw) != len(data):
            if arrival.known and (self._owed(arrival) if isinstance(tensor.cached_data, tuple) else arrival.parts):
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
                right, allowed = self._total(arrival, place, like.shape)
                wrong = self._compare(mine, right, allowed, "vjp")
                if wrong is None and like.dtype.kind == "f" and mine.dtype != like.dtype:
                    wrong = {"fault": "dtype", "message": f"has dtype {mine.dtype}, not {like.dtype}",
                             "ours": str(mine.dtype), "truth": str(like.dtype)}  # fmt: skip
            if wrong is not None:
                self._blame(arrival, wrong, place)
                break
        if not fits:
            return None
        wide = tuple(_wide(a) for a in raw)
        return wide if isinstance(tensor.cached_data, tuple) else wide[0]

    def _total(self, arrival: _Arrival, place: int, shape: Shape) -> Within:
        """The sum of all contributions, and its bound."""
        given = [p[place] for p, _, _ in arrival.parts if p[place] is not None]
        if not given:
            return np.zeros(shape), np.zeros(shape)
        if len(given) == 1:
            return given[0]  # type: ignore[return-value]
        value = sum(c for c, _ in given)  # type: ignore[misc]
        bound = sum(e for _, e in given) + len(given) * U * sum(np.abs(c) for c, _ in given)  # type: ignore[misc]
        return np.asarray(value), np.asarray(bound)

    def _owed(self, arrival: _Arrival) -> bool:
        return any(
            bool((np.abs(p[0]) > p[1] + TINY).any()) for parts, _, _ in arrival.parts for p in parts if p is not None
        )

    def _compare(self, ours: Array, value: Array, bound: Array, where: str) -> dict[str, Any] | None:
        if ours.shape != value.shape:
            return {"fault": "shape", "message": f"has shape {ours.shape}, not {value.shape}",
                    "ours": str(ours.shape), "truth": str(value.shape)}  # fmt: skip
        if ours.dtype.kind not in "fiub":  # None, for one
            return {"fault": "dtype", "message": f"has dtype {ours.dtype}: it is no number", "ours": str(ours.dtype),
                    "truth": "a number"}  # fmt: skip
        if not value.size:
            return None
        allowed = bound + TINY
        error = np.abs(ours - value)
        share = error / allowed
        top = float(share.max())
        if not top <= 1:
            # what cannot be judged is let pass element by element: no number, or too large for float32 on the way
            tame = (np.abs(value) < HUGE) & (allowed < HUGE)
            share = np.where(tame, np.where(np.isnan(share), np.inf, share), 0.0)
            top = float(share.max())
        self.found.note(top, value.size, where)
        if top <= 1:
            return None
        at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), share.shape))
        return {
            "fault": "value", "index": at, "ours": float(ours[at]), "truth": float(value[at]), "dtype": str(ours.dtype),
            "error": float(error[at]), "allowed": float(allowed[at]),
            "message": f"is off by {float(error[at]):.3g}, allowed {float(allowed[at]):.3g}",
        }  # fmt: skip

    # -- whose fault is a bad adjoint? --------------------------------------------------------------------------------

    def _blame(self, arrival: _Arrival, wrong: dict[str, Any], place: int = 0) -> None:
        """The consumer that gives a bad contribution when it is run alone; where all are right, their addition."""
        uses = [(i, j) for _, i, j in arrival.parts if j >= 0]
        message = wrong.pop("message")
        where = self.labels.get(id(arrival.tensor), "")
        guilty = next(((i, j) for i, j in uses if self._alone_is_right(self.nodes[i], j) is False), None)
        about: dict[str, Any] = {"second": self.second, "tape": self.found.tapes, **wrong}
        if guilty is not None:
            i, j = guilty
            node = self.nodes[i]
            text = f"what {node.kind} passes back to its operand {j} {message}"
            self._bad(
                Finding(node.kind, "backward", i, message=text, operand=j, broadcast=self._reduction_is_wrong(node, j),
                        label=self.labels.get(id(node.tensor), ""), **about)
            )  # fmt: skip
            return
        i, operand = uses[0] if uses else (len(self.nodes) - 1, None)
        if not uses:
            text = f"the adjoint that backward starts from {message}"
            self._bad(Finding(self.nodes[i].kind, "seed", i, message=text, label=where, **about))
            return
        words = self._addition(arrival, place) if wrong["fault"] == "value" else ""
        text = f"the adjoint of a tensor with {len(uses)} use{'s' * (len(uses) != 1)} {message}"
        finding = Finding(self.nodes[i].kind, "accumulation", i, message=text, operand=operand, words=words,
                          label=where, **about)  # fmt: skip
        self._bad(finding)

    def _alone_is_right(self, node: Node, j: int) -> bool | None:
        """Whether the op, on leaves of its own and with nothing around it, passes the right gradient to operand j.

        None where that cannot be found out.
        """
        op, meaning = node.op, MEANINGS.get(node.kind)
        g = getattr(node.tensor, "grad", None)
        if meaning is None or g is None:
            return None
        wide = [self._values(x) for x in node.inputs]
        needs = [bool(getattr(x, "requires_grad", False)) for x in node.inputs]
        try:
            kind = type(node.tensor)
            if any(isinstance(x.cached_data, tuple) for x in (node.tensor, *node.inputs)):
                got = self._asked(node, j)
            else:
                leaves = [
                    kind.make_const(x.cached_data, requires_grad=n) for x, n in zip(node.inputs, needs, strict=True)
                ]
                out = op(*leaves)
                # by the walk that made what is judged: on arrays, or on Tensors
                out.backward(
                    kind.make_const(np.array(g.cached_data)), **({"create_graph": True} if self.second else {})
                )
                got = leaves[j].grad
            if got is None:
                # lost by the rule, or by the walk after it?
                return self._asked(node, j) is not None
            given = _parts_of(g.cached_data)
            adjoint: Any = (
                tuple(_wide(a) for a in given) if isinstance(node.tensor.cached_data, tuple) else _wide(given[0])
            )
            made = derived(meaning, op, wide)[2](adjoint, needs)[j]
        except Exception:
            return None
        parts: Any = made if isinstance(node.inputs[j].cached_data, tuple) else (made,)
        quiet = _Judge(self.nodes, Findings(), {}, self.second)
        for mine, part in zip(_parts_of(getattr(got, "cached_data", got)), parts, strict=False):
            value, bound = (np.zeros(mine.shape),) * 2 if part is None else part
            if quiet._compare(mine, value, bound, "") is not None:
                return False
        return True

    def _asked(self, node: Node, j: int) -> Any:
        """The contribution that ``gradient_as_tuple`` gives; for tuples, which cannot be run alone."""
        tensor = node.tensor
        freed = tensor.op, tensor.inputs
        try:
            tensor.op, tensor.inputs = node.op, node.inputs
            grad = type(tensor).make_const(tensor.grad.cached_data)
            return node.op.gradient_as_tuple(grad, tensor)[j]
        finally:
            tensor.op, tensor.inputs = freed

    def _reduction_is_wrong(self, node: Node, j: int) -> bool:
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
            return not np.array_equal(_parts_of(leaf.grad.cached_data)[0], _summed(g, shape))
        except Exception:
            return False

    def _addition(self, arrival: _Arrival, place: int) -> str:
        """What a wrong sum looks like."""
        given = [p[place] for p, _, _ in arrival.parts if p[place] is not None]
        grad = arrival.tensor.grad
        ours = _wide(_parts_of(getattr(grad, "cached_data", grad))[place])
        total, bound = self._total(arrival, place, ours.shape)
        allowed = 4 * bound + TINY
        guesses = [("twice the sum", 2 * total), ("zero", 0 * total)]
        if len(given) > 1:
            guesses.insert(0, ("only the contribution that comes last counts", given[-1][0]))  # type: ignore[index]
            guesses.insert(0, ("only the contribution that comes first counts", given[0][0]))  # type: ignore[index]
            guesses += [(f"contribution {k + 1} of {len(given)} is missing", total - p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
            guesses += [(f"contribution {k + 1} of {len(given)} counts twice", total + p[0])  # type: ignore[index]
                        for k, p in enumerate(given)]  # fmt: skip
        for words, value in guesses:
            if bool((np.abs(ours - value) <= allowed).all()):
                return words
        return ""

    def _bad(self, finding: Finding) -> None:
        self.found.bad.append(finding)


def _summed(g: Array, shape: Shape) -> Array:
    """g summed over what broadcasting had expanded."""
    x = Var(np.ones((1, 1, *shape)))
    t = Tape(None)
    t.backward([(shapes.broadcast_to(t, x, shape=g.shape), g[None, None])])
    assert x.adjoint is not None
    return np.asarray(x.adjoint[0, 0])


def _wide(a: Any) -> Array:
    return np.asarray(a).astype(np.float64)


def _parts_of(data: Any) -> tuple[Any, ...]:
    """The arrays of a TensorTuple, whose elements may be Tensors; the array of a Tensor."""
    if isinstance(data, tuple | list):
        return tuple(np.asarray(getattr(a, "cached_data", a)) for a in data)
    return (np.asarray(data),)


def _dtype(node: Node) -> Any:
    """The dtype that a node must have: that of its floating inputs."""
    if node.kind == "Cast":
        return np.dtype(node.op.dtype)
    floats = [a.dtype for x in node.inputs for a in _parts_of(x.cached_data) if a.dtype.kind == "f"]
    return np.result_type(*floats) if floats else None
