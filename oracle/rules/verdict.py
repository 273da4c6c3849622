"""What came of judging a case: the first divergence, what is known beside it, and what was compared.

A rule hands on numbers and names as evidence, so that blame can be found without the systems that ran.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from oracle.apart import frames_of, one_line
from oracle.cases import case as c
from oracle.rules.arrival import Explanation as Explanation
from oracle.rules.calls import Calls
from oracle.rules.tape import Findings
from oracle.systems import trace
from oracle.systems.ours import at_work, is_foreign
from oracle.systems.trace import QUANTITIES, Failure

Array = npt.NDArray[Any]

FORWARD = ("activation", "loss", "evaluation")
HIGHER = tuple(trace.HIGHER.values())
BACKWARD = ("adjoint", "gradient", "gradient with graph", "second", *HIGHER, "operator")


@dataclass(frozen=True)
class Suspect:
    """Who is to blame for a divergence, by what is known; see `oracle.blame`."""

    what: str  # "Tanh backward", "Dropout forward in training mode", "SGD velocity update"
    place: str = ""  # where in the model: a layer, a node of the tape, a parameter
    known: str = ""  # what agrees
    words: str = ""  # what needle seems to do instead
    definition: tuple[
        str, ...
    ] = ()  # what of needle that is: ("ops.Tanh", "vjp", "gradient"), the methods to try in order
    operator: str = ""  # rule OP's own verdict, if it has one
    tensor: str = ""  # the verdict of the first bad tensor, where it is another one
    key: str = ""  # equal for one fault, wherever it shows; ``what`` if empty
    line: str = ""  # where that stands: "needle/ops.py:351"
    explanations: tuple[Explanation, ...] = ()  # all that ``words`` are chosen from, of an optimizer or of clipping

    @property
    def text(self) -> str:
        """One line."""
        parts = [self.what + (f" ({self.line})" if self.line else "")]
        parts += [p for p in (self.place, self.words, self.known) if p]
        if self.tensor:
            parts.append(f"the first bad tensor alone would point at {self.tensor}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Divergence:
    """The first place where needle parts from what it must equal."""

    step: int
    quantity: str
    name: str
    rule: str  # "G", "L", "T", "OP", "exact", "shape", "dtype", "missing", "unexpected", "exception", "nonfinite"
    message: str  # one line, complete in itself
    index: tuple[int, ...] | None = None
    ours: float | str | None = None
    peer: float | str | None = None
    truth: float | str | None = None
    dtype: str | None = None
    error: float | None = None
    allowed: float | None = None
    failure: Failure | None = None
    suspect: Suspect | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by step, then by the order in which quantities arise."""
        place = QUANTITIES.index(self.quantity) if self.quantity in QUANTITIES else len(QUANTITIES)
        return self.step, place

    @property
    def place(self) -> str:
        """Like ``velocity 0.weight[0, 0]``."""
        at = "" if not self.index else f"[{', '.join(map(str, self.index))}]"
        return f"{self.quantity} {self.name}{at}".replace("loss loss", "loss")


@dataclass
class Tally:
    """What was compared, and how near it came to the limits (1.0 = at the limit)."""

    tensors: int = 0
    elements: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # "G gradient" -> largest share of the tolerance
    where: dict[str, str] = field(default_factory=dict)

    def count(self, key: str, share: float, tensors: int, elements: int, where: str = "") -> None:
        """Add comparisons of one kind."""
        self.tensors += tensors
        self.elements += elements
        if math.isfinite(share) and share > self.largest.get(key, -1.0):
            self.largest[key] = share
            self.where[key] = where

    def add(self, other: Tally) -> None:
        """Add another tally."""
        self.tensors += other.tensors
        self.elements += other.elements
        for key, share in other.largest.items():
            if share > self.largest.get(key, -1.0):
                self.largest[key], self.where[key] = share, other.where.get(key, "")


@dataclass(frozen=True)
class Update:
    """One parameter's update in numbers, float64: what needle started from, what it made."""

    name: str
    index: int  # number of the step
    rates: tuple[float, ...]  # learning rate of every step so far, this one last
    p: Array
    g: Array
    raw: Array | None  # the gradient before clipping
    old: Mapping[str, Array]
    new: Mapping[str, Array]  # "parameter" and the optimizer's state, as needle has them now
    others: Mapping[str, tuple[Array, Mapping[str, Array]]] = field(default_factory=dict)  # gradients and states
    past: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of a program: what settings were before
    beside: tuple[Update, ...] = ()  # of other parameters, and in other steps, as far as they are at hand


@dataclass(frozen=True)
class Clipping:
    """Clipping in numbers: gradients before and after by name, and the norm that was returned."""

    raw: Mapping[str, Array]
    clipped: Mapping[str, Array]
    norm: float
    name: str


@dataclass
class Evidence:
    """What is known beside the divergence itself."""

    findings: Findings | None = None  # rule OP on the failing step, taken once more
    calls: Calls | None = None  # and on every call of an op in it
    detached: str = ""  # the layer that gives a constant, though something of it requires a gradient
    wrote: str = ""  # the layer that writes into its input
    lost: str = ""  # the parameter or buffer that is not what was assigned to it
    repeated: bool = False  # whether the optimizer has a parameter more than once
    inner: Divergence | None = None  # of a program: the first bad tensor inside, where the layers are watched
    alone: bool = False  # whether all is right where the layers are watched, and run one by one
    quiet: frozenset[str] = frozenset()  # of a program: the layers that evaluate in the pass that failed
    eval_draws: bool = False  # whether the random state is another one after ``eval()``
    modes: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)  # layer -> its mode, the mode it should be in
    misbuilt: str = ""  # before an exception: the parameter or buffer that has not the shape or the dtype it must have
    built: bool = False  # of a program: whether what differs after the first action did so before it
    without_file: bool = False  # of a program: whether the state dict alone shows it, without a file
    regraded: bool = False  # of a program: whether a step has changed a gradient
    reset: str = (
        ""  # what ``reset_grad`` does with gradients, if not let go of them as they are: "leaves", "writes into"
    )
    update: Update | None = None
    clipping: Clipping | None = None
    optimizer: c.Optimizer | None = None  # of a program: with the hyperparameters that are in force
    within: Verdict | None = None  # of a second-order case: the verdict on the training step within it


@dataclass
class Verdict:
    """What came of a case."""

    case: c.Case
    divergence: Divergence | None = None
    evidence: Evidence = field(default_factory=Evidence)  # what is known beside the divergence, for `oracle.blame`
    search: Callable[[], Evidence] | None = None  # for that: it costs more than the verdict
    beside: list[Divergence] = field(default_factory=list)  # findings that do not end the judgement of the case
    evidence_beside: dict[int, Evidence] = field(default_factory=dict)  # of some of these, by their place
    oracle_errors: list[str] = field(default_factory=list)  # the oracle contradicts itself; no fault of needle's
    common: int = 0  # tensors that needle and torch round alike, beyond what the noise allows
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    out_of_domain: int = 0
    largest_difference: float = 0.0  # |ours - peer| in units of rule G's tolerance
    seconds: dict[str, float] = field(default_factory=dict)  # what the time went into, see `Clock`

    def look(self) -> None:
        """Search for what is known beside the divergence, which stands whatever comes of that, and let go of the run."""
        search, self.search = self.search, None
        if search is None:
            return
        try:
            self.evidence = search()
        except Exception as error:
            # another needle may compute late, and raise when what it has made is looked at: then there is no more to be found
            # here, for Hypothesis comes with it, which oracle.check does without
            from oracle.systems.candidate import chosen, home

            if not (is_foreign(chosen()) and at_work(frames_of(error.__traceback__), home())):
                self.oracle_errors.append(f"no evidence beside the divergence: {one_line(error)}")
