"""One row: what `oracle.check` says of it on each kind of numbers, and whether that is what the table claims."""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oracle import check
from oracle.check.arrays import Array
from oracle.check.drawing import length, named, numbers, resolved
from oracle.check.ops import Trial
from oracle.check.smaller import shorter
from oracle.check.steps import Weights
from oracle.frameworks.libraries import LIBRARIES, USUAL, function, is_float, missing, namespace
from oracle.frameworks.pairs import AGREES, Pair
from oracle.operations.tape import REPLICAS

NOT_RUN = "not run"
EDGE = "edge"
SIZES = 4  # of a dimension that has a name


@dataclass
class Shown:
    """A difference, on inputs that are as small as they could be made."""

    kind: str  # of numbers
    name: str  # output, gradient of input 0, …
    index: tuple[int, ...]
    ours: Any
    torch: Any
    right: Any
    error: float
    allowed: float
    inputs: dict[str, Array]
    cotangent: Array | None  # of a gradient
    program: str = ""
    printed: str = ""  # what the program printed
    problem: str = ""  # why the program does not show it


@dataclass
class Outcome:
    """What came of a row."""

    pair: Pair
    state: str  # agrees, differs, not run
    share: float = 0.0  # the largest, of what agrees
    torch: float = 0.0  # torch's own
    cases: int = 0
    where: list[str] = field(default_factory=list)  # the kinds of numbers on which they differ
    why_not: str = ""  # it was not run
    shown: Shown | None = None

    @property
    def as_claimed(self) -> bool:
        """Whether the table says so too."""
        return self.state == NOT_RUN or (self.state == AGREES) == (self.pair.claim == AGREES)

    @property
    def verdict(self) -> str:
        """In words: what the table calls it, where that holds."""
        if self.state == NOT_RUN or self.as_claimed:
            return self.state if self.state == NOT_RUN else self.pair.claim
        return f"{self.state}, but is said to: {self.pair.claim}"


def judged(pair: Pair, seed: int) -> Outcome:
    """A row on all its kinds of numbers. What the library raises makes it a row that was not run."""
    why = missing(pair.library)
    if why:
        return Outcome(pair, NOT_RUN, why_not=why)
    outcome = Outcome(pair, AGREES)
    found: list[tuple[str, check.Difference]] = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for kind, case in cases(pair, seed):
            try:
                agreement = case()
            except check.Difference as difference:
                found.append((kind, difference))
                outcome.where += [kind] if kind not in outcome.where else []
            except Exception as error:
                lines = str(error).splitlines() or [""]
                return Outcome(pair, NOT_RUN, why_not=f"{type(error).__name__}: {lines[0][:120]}", where=[kind])
            else:
                outcome.share = max(outcome.share, float(agreement))
                outcome.torch = max(outcome.torch, *(row.torch for row in agreement.rows))
            outcome.cases += 1
        if found:
            outcome.state = "differs"
            outcome.shown = _smallest(pair, found)
    return outcome


def cases(pair: Pair, seed: int) -> Iterator[tuple[str, Any]]:
    """Kinds of numbers, and what holds the row to torch on them."""
    rng = np.random.default_rng([seed, zlib.crc32(" ".join(pair.key).encode())])
    if pair.steps:
        for kind in pair.kinds:
            grads = _gradients(kind, rng, pair.steps)
            yield kind, lambda grads=grads: stepped(pair, grads)
        return
    for given in edges(pair):  # one at a time: in one tensor, the noise of the largest allows something to all
        yield EDGE, lambda given=given: Row(pair, ones=True).on(given, rng)
    for kind in pair.kinds:
        yield kind, lambda kind=kind: Row(pair).on(drawn(pair, kind, rng), rng)


class Row(Trial):
    """A row, to be put to arrays. ``ones``: the cotangent, where a drawn one would only be harder to read."""

    def __init__(self, pair: Pair, ones: bool = False) -> None:
        super().__init__(ours(pair), theirs(pair), [v for _, v in pair.inputs], "float32", None, check.LIMIT)
        self.ones = ones

    def on(self, given: list[Any], rng: np.random.Generator) -> Any:
        """The agreement; `Difference`, with its inputs, where there is none."""
        shown = self.outputs(given)
        if self.ones:
            self.cotangents = [np.ones(tuple(o.shape), np.float32) for o in shown.values() if o.is_floating_point()]
        return self.judged(given, shown, rng.bytes, "given")


_usual: dict[str, Any] = {}
exec("\n".join(USUAL), _usual)


def ours(pair: Pair) -> Any:
    """The library's expression as a candidate of `check.op`."""
    expression = function(pair.ours, pair.names, namespace(pair.library))
    return LIBRARIES[pair.library].candidate(expression, pair.gradient)


def theirs(pair: Pair) -> Any:
    """Torch's expression as a function of tensors."""
    return function(pair.torch, pair.names, dict(_usual))


def drawn(pair: Pair, kind: str, rng: np.random.Generator) -> list[Any]:
    shapes = [v for _, v in pair.inputs if isinstance(v, tuple)]
    sizes = {n: SIZES - i % 2 for i, n in enumerate(named(shapes))}
    given = []
    for _, value in pair.inputs:
        if isinstance(value, tuple):
            shape = resolved(value, sizes, (2,))
            given.append(numbers(rng.bytes(length(shape, np.float32)), shape, kind, np.float32))
        else:
            given.append(value)
    return given


def edges(pair: Pair) -> Iterator[list[Any]]:
    """Each edge; each with each, where several inputs are drawn."""
    if not pair.edges:
        return
    count = sum(isinstance(v, tuple) for _, v in pair.inputs)
    for numbers_ in itertools.product(pair.edges, repeat=count):
        column = iter(numbers_)
        yield [np.array([next(column)], np.float32) if isinstance(v, tuple) else v for _, v in pair.inputs]


# -- as small as it can be made -----------------------------------------------------------------------------------------

PLAIN, FEW = 160, 3  # calls at most, and replicas of them
Found = tuple[str, check.Difference]


def _smallest(pair: Pair, found: list[Found]) -> Shown:
    """The difference that is the easiest to read: a value rather than a gradient, an edge rather than drawn numbers, a large one."""

    def rank(one: Found) -> tuple[Any, ...]:
        kind, difference = one
        return difference.name != "output", kind != EDGE, -min(difference.share, 1e6), _length(difference.inputs)

    kind, difference = min(found, key=rank)
    if pair.steps:
        return _fewest_steps(pair, kind, difference)
    return _shown(pair, kind, difference if kind == EDGE else _smaller(pair, difference))


def _length(arrays: Sequence[Array]) -> int:
    return sum(len(f"{x:.9g}") for a in arrays if is_float(a) for x in a.flat)


def _smaller(pair: Pair, difference: check.Difference) -> check.Difference:
    """Fewer elements and shorter numbers, as long as they still differ in what is called the same; cotangents of 1, if that will
    do. Few replicas do for looking; what comes out of it is judged by all.
    """
    calls = 0

    def still(given: Sequence[Array], most: int = FEW) -> check.Difference | None:
        nonlocal calls
        calls += 1
        row = Row(pair, ones=True)
        row.most = most
        try:
            row.on([np.ascontiguousarray(a) for a in given], np.random.default_rng(0))
        except check.Difference as found:
            return found if found.name == difference.name else None
        except Exception:  # a shape that one of them does not take
            return None
        return None

    again = still(difference.inputs)
    if again is None:
        return difference
    for cut in (*_cuts(pair, again), *shorter(again.inputs)):
        given = cut(again.inputs)
        if calls < PLAIN and given is not None:
            again = still(given) or again
    return still(again.inputs, REPLICAS) or difference


def _cuts(pair: Pair, difference: check.Difference) -> Iterator[Any]:
    """What takes one index of a dimension that may have any size: of one with a name, or of all, in an elementwise row."""
    if pair.elementwise:
        at = difference.index
        yield lambda given: [a[tuple(slice(i, i + 1) for i in at)].reshape(-1) if is_float(a) else a for a in given]
        return
    shapes = [v if isinstance(v, tuple) else () for _, v in pair.inputs]
    for name in named(shapes):

        def one(given: Sequence[Array], i: int, name: str = name) -> list[Array] | None:
            out = []
            for a, shape in zip(given, shapes, strict=True):
                for axis, dim in enumerate(shape):
                    if dim == name:
                        if a.shape[axis] <= max(i, 1):
                            return None
                        a = a.take([i], axis)
                out.append(a)
            return out

        for i in range(SIZES):
            yield lambda given, i=i, one=one: one(given, i)


def _shown(pair: Pair, kind: str, difference: check.Difference) -> Shown:
    inputs = dict(zip(pair.names, difference.inputs, strict=True))
    cotangent = difference.cotangents[0] if difference.name.startswith("gradient") else None
    return Shown(
        kind, difference.name, difference.index, difference.ours, difference.torch, difference.truth,
        difference.error, difference.allowed, inputs, cotangent,
    )  # fmt: skip


# -- optimizers ---------------------------------------------------------------------------------------------------------


def _weights(size: int) -> torch.Tensor:
    return torch.linspace(-1, 1, size) if size > 1 else torch.full((1,), 0.5)


def _gradients(kind: str, rng: np.random.Generator, steps: int) -> Array:
    """(steps, 4): they vary from step to step, or what an optimizer remembers would not show."""
    drawn = numbers(rng.bytes(length((steps, 4), np.float32)), (steps, 4), kind, np.float32)
    return np.asarray(drawn, np.float32)


def stepped(pair: Pair, grads: Array) -> Any:
    """An optimizer on given gradients against torch's, step by step: `check.training`."""
    module = Weights(_weights(grads.shape[1]))
    make = function(pair.torch, ("p",), dict(_usual))
    there = namespace(pair.library)

    def candidate(parameters: dict[str, Array], batches: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for i in range(len(grads)):  # the lines of a program: what is judged is what is shown
            exec(
                LIBRARIES[pair.library].steps.format(call=pair.ours),
                there | {"w0": parameters["w"], "grads": grads[: i + 1]},
                seen,
            )
            seen[f"step {i} w"] = np.array(seen["ours"])
        return {k: v for k, v in seen.items() if k.startswith("step")}

    batches = [(g, np.float32(0)) for g in grads]
    try:
        return check.training(candidate, module, make, batches, loss=lambda out, _: out)
    except check.Difference as difference:
        difference.inputs = (grads,)
        raise


def _fewest_steps(pair: Pair, kind: str, difference: check.Difference) -> Shown:
    """As many steps as it takes; one weight, if it is enough; a gradient of 1 at every step, if it is enough."""
    grads = difference.inputs[0]
    last = int(difference.name.split()[1]) + 1
    grads = grads[:last]
    column = grads[:, difference.index[0] : difference.index[0] + 1] if difference.index else grads
    plain = np.ones_like(column)
    for fewer in (plain[:1], plain[:2], plain, np.round(column, 1), column):
        try:
            stepped(pair, np.ascontiguousarray(fewer))
        except check.Difference as smaller:
            difference = smaller
            break
    grads = difference.inputs[0][: int(difference.name.split()[1]) + 1]
    return Shown(
        kind, difference.name, difference.index, difference.ours, difference.torch, difference.truth, difference.error,
        difference.allowed, {"grads": grads, "w0": _weights(grads.shape[1]).numpy()}, None,
    )  # fmt: skip
