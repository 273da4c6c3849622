"""The truth about a case: all its steps at once, in float64, in `REPLICAS` replicas with measured noise. NumPy alone.

Every step starts from a synchronised state, so the steps are independent of each other and stack on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases import dtypes as kinds_of
from oracle.cases.inputs import Batches, Slot
from oracle.operations import elementwise, losses, reductions
from oracle.operations.dtypes import DTYPES
from oracle.operations.tape import BEYOND_NOISE, SINGLE, Noise, Rounding, Tape, Var

Array = npt.NDArray[Any]

DOMAIN = 1e15  # no verdict is given on numbers that are larger
ON_THE_WAY = DOMAIN**2  # nor where the way to a number leads over such, be they squares: float32 ends at 3e38


def all_below(limit: float, v: Array) -> bool:
    """Whether every number is smaller than that, without its sign; written so that nan is not."""
    return bool(v.max(initial=0) < limit and v.min(initial=0) > -limit)


@dataclass
class Truth:
    """quantity -> name -> float64 (replicas, steps, *shape); ``inside`` only where a step may leave the domain."""

    values: dict[str, dict[str, Array]] = field(default_factory=dict)

    def put(self, quantity: str, name: str, value: Array) -> None:
        """Record one quantity."""
        self.values.setdefault(quantity, {})[name] = value


@dataclass
class _Pass:
    """One forward pass through a model, on a tape: the `oracle.cases.layers.Pass` of its layers."""

    tape: Tape
    tensors: dict[str, Var]  # parameters and buffers
    masks: dict[str, Array]
    kinks: dict[str, Array]
    outputs: dict[str, Var] = field(default_factory=dict)
    inside: dict[str, Array] = field(default_factory=dict)  # what is huge on the way to the output of a layer
    linears: list[str] = field(default_factory=list)  # path whose weight the i-th Linear uses
    # path -> whether it trains, where that is not as in a training run
    modes: Mapping[str, bool] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)  # path -> dtype, where not all is float32
    domain: float = DOMAIN
    unseen: bool = False  # nobody has seen which branches were taken

    def branch(self, path: str, value: Array) -> None:
        """What a kink is applied to. Where nobody sees which side needle took, a step in which rounding decides is out of the domain."""
        if not self.unseen:
            return
        exact = value[0]
        noise = np.maximum(value.max(axis=0) - exact, exact - value.min(axis=0))
        either = (np.abs(exact) <= BEYOND_NOISE * noise) & (noise > 0)
        if either.any():
            self.inside[f"{path}, branch"] = np.where(either, np.inf, 0.0)[None]

    def body(self, layers: Sequence[c.Layer], x: Var, prefix: str, training: bool) -> Var:
        around = self.tape.rounding
        finest = min((DTYPES[dtype].rounding.unit for dtype in self.dtypes.values()), default=around.unit)
        for i, layer in enumerate(layers):
            path = f"{prefix}{i}"
            if self.dtypes:
                self.tape.rounding = DTYPES[self.dtypes[path]].rounding
            made = layer.meaning(self, x, path, self.modes.get(path, training))
            if made is not x and self.tape.rounding.unit > finest:  # who reads it may compute in a finer dtype
                made.value = self.tape.noisy(made.value)
            self.outputs[path] = x = made
        self.tape.rounding = around
        return x

    def between(self, what: str, value: Array) -> None:
        """A value that nobody sees, but that may leave the domain."""
        if not all_below(self.domain, value):
            self.inside[what] = value


def _constant(value: Array) -> Var:
    return Var(value, needs=False)


def _kinds(case: c.TrainCase | c.SecondOrderCase) -> tuple[Mapping[str, str], float, Rounding, Rounding]:
    """The dtypes of layers, the end of the domain, and how parameters and data round."""
    if not isinstance(case, c.TrainCase) or case.dtypes is None:
        return {}, DOMAIN, SINGLE, SINGLE
    model, data = DTYPES[case.dtypes.model], DTYPES[case.dtypes.data]
    return kinds_of.made(case), min(DOMAIN, model.largest, data.largest), model.rounding, data.rounding


def _stacked(arrays: Sequence[Array]) -> Array:
    return np.stack([np.asarray(a, dtype=np.float64) for a in arrays])[None]


def training(
    case: c.TrainCase | c.SecondOrderCase,
    parameters: Sequence[Slot],
    buffers: Sequence[Slot],
    states: Sequence[dict[str, Array]],
    batches: Batches,
    masks: dict[str, Array],
    kinks: Sequence[dict[str, Array]],
    noise: Noise | None,
    first: int = 0,
    modes: Mapping[str, bool] | None = None,
    unseen: bool = False,
) -> Truth:
    """Activations, loss, adjoints, gradients and buffers of the steps ``first …``, one per state."""
    tape = Tape(noise)
    window = slice(first, first + len(states))
    dtypes, domain, of_model, of_data = _kinds(case)
    tensors = {
        s.name: Var(_stacked([x[s.name] for x in states]), needs=not s.frozen, rounding=of_model) for s in parameters
    }
    tensors |= {s.name: Var(_stacked([x[s.name] for x in states]), needs=False, rounding=of_model) for s in buffers}
    own = {s.name: tensors[s.name] for s in parameters}
    truth = Truth()
    seeds: list[tuple[Var, Array]] = []
    passes: list[tuple[str, Var, _Pass]] = []
    for m in range(batches.micro):
        mark = f"#{m}" if m else ""
        given = batches.x[window, m].astype(np.float64)[None]
        x = Var(given, needs=getattr(case, "input_grad", False), rounding=of_data)
        branch = {p: np.stack([k[p + mark] for k in kinks]) for p in _relus(case) if p + mark in kinks[0]}
        dropped = {p: v[window, m] for p, v in masks.items()}
        run = _Pass(tape, tensors, dropped, branch, modes=modes or {}, dtypes=dtypes, domain=domain, unseen=unseen)
        out = run.body(case.model, x, "", True)
        if dtypes:
            tape.rounding = DTYPES[dtypes[str(len(case.model) - 1)]].rounding
        for path, var in run.outputs.items():
            truth.put("activation", path + mark, var.value)
        for path, value in run.inside.items():
            truth.put("inside", path + mark, value)
        loss, seed = _loss(case, tape, out, batches, window, m)
        if loss is not out:
            truth.put("loss", f"loss{mark}", loss.value)
        seeds.append((loss, seed))
        passes.append((mark, x, run))
    tape.backward(seeds)
    for mark, x, run in reversed(passes):
        for path, var in reversed(run.outputs.items()):
            if var.adjoint is not None:
                truth.put("adjoint", path + mark, var.adjoint)
        if x.needs and x.adjoint is not None:
            truth.put("adjoint", f"input{mark}", x.adjoint)
    for slot in reversed(parameters):
        adjoint = own[slot.name].adjoint
        if adjoint is not None and not slot.frozen:
            truth.put("gradient", slot.name, adjoint)
    for slot in buffers:
        truth.put("buffer", slot.name, tensors[slot.name].value)
    return truth


def _relus(case: c.TrainCase | c.SecondOrderCase) -> list[str]:
    return [path for path, layer in c.walk(case.model) if layer.kinked]


def _loss(
    case: c.TrainCase | c.SecondOrderCase, tape: Tape, out: Var, batches: Batches, window: slice, m: int
) -> tuple[Var, Array]:
    """The loss and the seed of its backward pass; with a bare cotangent the output is its own loss."""
    one = np.ones((1, out.value.shape[1]))
    if isinstance(case.loss, c.SoftmaxLoss):
        assert batches.labels is not None
        return losses.softmax_loss(tape, out, labels=batches.labels[window, m]), one
    assert batches.drawn is not None
    drawn = batches.drawn[window, m].astype(np.float64)[None]
    if isinstance(case.loss, c.Cotangent):
        return out, drawn
    if isinstance(case.loss, c.WeightedSum):
        return reductions.summation(tape, elementwise.multiply(tape, out, _constant(drawn))), one
    off = elementwise.subtract(tape, out, _constant(drawn))
    if isinstance(case.loss, c.MSELoss):
        total = reductions.summation(tape, elementwise.multiply(tape, off, off))
        return elementwise.divide_scalar(tape, total, c=float(math.prod(out.shape))), one
    squares = elementwise.power_scalar(tape, off, c=2.0)
    return elementwise.divide_scalar(tape, reductions.summation(tape, squares), c=float(case.data.rows)), one


def evaluation(
    case: c.TrainCase,
    states: Sequence[dict[str, Array]],
    x: Array,
    kinks: Sequence[dict[str, Array]],
    noise: Noise | None,
    unseen: bool = False,
) -> Truth:
    """Outputs of all layers in evaluation mode; ``x`` is (states, rows, features)."""
    tape = Tape(noise)
    dtypes, domain, of_model, of_data = _kinds(case)
    tensors = {name: Var(_stacked([s[name] for s in states]), needs=False, rounding=of_model) for name in states[0]}
    branch = {p: np.stack([k[p] for k in kinks]) for p in _relus(case) if p in kinks[0]}
    run = _Pass(tape, tensors, {}, branch, dtypes=dtypes, domain=domain, unseen=unseen)
    run.body(case.model, Var(x.astype(np.float64)[None], needs=False, rounding=of_data), "", False)
    truth = Truth()
    for path, var in run.outputs.items():
        truth.put("evaluation", path, var.value)
    for path, value in run.inside.items():
        truth.put("inside", path, value)
    return truth
