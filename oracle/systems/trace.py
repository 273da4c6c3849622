"""Observation: everything that one training step shows, in the order in which it arises.

`QUANTITIES` is that order; the first quantity that differs is nearest to the cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

QUANTITIES = (
    "parameters",  # names that model.parameters() gives, each once
    "initial",  # values as the constructors made them
    "promise",  # of an action of a program
    "handed in",  # data, labels, targets and cotangents, which nobody may write into: what else is wrong may come of that
    "activation",  # output of every layer
    "loss",
    "second",  # second-order gradients, in a case that has them
    "adjoint",  # gradient of every layer output, last layer first
    "gradient",  # of every parameter, last layer first
    "gradient with graph",  # of an operation, by create_graph=True
    "second gradient",  # of an operation's gradient, by its operands and by the cotangent
    "third gradient",  # of that
    "operator",  # a node of the tape, judged by itself (rule OP)
    "clip norm",  # what clip_grad_norm returned
    "clipped",  # gradients after clipping
    "gradient after step",  # must be the same bits as before
    "velocity",  # SGD.u
    "first moment",  # Adam.m
    "second moment",  # Adam.v
    "parameter",  # after the step
    "buffer",  # after the step
    "kept",  # arrays of earlier steps, looked at again
    "evaluation",  # output of every layer in evaluation mode
    "untouched",  # buffers and random state after evaluation
    "graph",  # Tensors with an op that outlive the step
    "live tensors",  # how many more, or fewer, than after the step before
    "cycles",  # objects that only the cycle collector frees
    "twin",  # of a copy in a program: what it and its original do must be the same
    "state",  # of a program: what an action does not name keeps its bits
)

HIGHER = {2: "second gradient", 3: "third gradient"}
STATE = {"velocity": "u", "first moment": "m", "second moment": "v"}


# Kinds of a failure that is no exception:
ENDED = "EndOfProcess"  # the process ended, or did not come back
CHANGED = "ChangedState"  # the process is left otherwise than it was found, see `oracle.systems.surroundings`


@dataclass
class Failure:
    """An exception out of a system under test, or the end of its process."""

    phase: str  # "build", "forward", "backward", "clip_grad_norm", "step", "evaluation"
    kind: str
    message: str
    where: str = ""
    operator: str = ""  # class of the op that was at work
    # its own lines on the way, the innermost first: "needle/ops.py:201 in BroadcastTo.gradient"
    theirs: tuple[str, ...] = ()
    inside: bool = True  # whether a line of needle was at work, and none of the harness that asks for a name

    @property
    def absent(self) -> bool:
        """Whether it says that something is not offered: a name, a keyword or an operator that does not exist, or a part that
        says so itself. What is None where it should not be is another matter.
        """
        unknown = not self.inside and self.kind in ("AttributeError", "TypeError", "ImportError")
        return self.kind == "NotImplementedError" or (unknown and "NoneType" not in self.message)


@dataclass
class Observation:
    """All observables of one step: quantity -> name -> a copy of the array, dtype and shape as found."""

    step: int
    values: dict[str, dict[str, Array]] = field(default_factory=dict)
    failure: Failure | None = None
    kinks: dict[str, Array] = field(default_factory=dict)  # ReLU path -> which branch was taken
    aliases: set[str] = field(default_factory=set)  # layers that handed their input on as the very same tensor
    # under the course's contract alone, see `oracle.systems.ours.contract`:
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # name -> ours, where the course leaves it open
    narrow: bool = False  # float64 is taken down as float32 …
    promoted: list[tuple[str, str]] = field(default_factory=list)  # … and where it was: quantity and name, in order

    def put(self, quantity: str, name: str, value: Any) -> None:
        """Record a copy."""
        array = np.array(value)
        if self.narrow:
            array = self._narrowed(quantity, name, array)
        self.values.setdefault(quantity, {})[name] = array

    def _narrowed(self, quantity: str, name: str, array: Array) -> Array:
        shape = self.shapes.get(name, array.shape)
        if array.shape != shape and array.size == math.prod(shape):
            array = array.reshape(shape)
        if array.dtype == np.float64 and quantity != "clip norm":
            self.promoted.append((quantity, name))
            array = array.astype(np.float32)
        return array

    def hold(self, quantity: str, name: str, value: Any) -> None:
        """Record what nobody will write into any more: without a copy."""
        self.values.setdefault(quantity, {})[name] = value


HANDED_IN = "the input handed in"  # of an evaluation
UNSEEN = "of a pass that nobody watches"  # ends the name of what a model without wrapped layers must give bit for bit


@dataclass
class State:
    """Everything that a step starts from, float32, in needle's layout: parameters and buffers, optimizer state."""

    tensors: dict[str, Array]
    slots: dict[str, dict[str, Array]] = field(default_factory=dict)  # "velocity" -> name -> array


class Clock:
    """Where the time goes: every moment belongs to what ``turn`` has named last.

    - "needle", "torch": inside the systems under test;
    - "observing": around them, taking down what they show, and the memory gates;
    - "inputs", "truth", "rules", "OP", "validation": what a case starts from, and how it is judged.

    `oracle.runs.shard` adds "drawing" and "counting".
    """

    def __init__(self) -> None:
        self.step = 0  # of the case, that needle is at
        self.seconds: dict[str, float] = {}
        self._what = ""
        self._since = time.perf_counter()

    def turn(self, what: str) -> None:
        """From now on, the time counts as ``what``'s; nothing more to count if it is empty."""
        now = time.perf_counter()
        if self._what:
            self.seconds[self._what] = self.seconds.get(self._what, 0.0) + now - self._since
        self._what, self._since = what, now


SMALL = 1 << 12  # numbers, up to which bytes are compared in a sixth of the time that elements take


def same_bits(a: Array, b: Array) -> bool:
    """Equal element by element; two nan are equal."""
    if a.size <= SMALL and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
        return True
    return (a.shape == b.shape and bool((a == b).all())) or np.array_equal(a, b, equal_nan=True)
