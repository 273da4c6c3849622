"""Both systems on one training case, step by step, from the same state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.systems import ours as ours_side
from oracle.systems import peer as peer_side
from oracle.systems.ours.model import array_of
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import STATE, Clock, Observation, State

Array = npt.NDArray[Any]


@dataclass
class Step:
    """One synchronised step: the state it started from and what both sides showed."""

    before: State
    ours: Observation
    peer: Observation
    after: State | None = None  # synchronised state, if the step was followed by an evaluation
    ours_eval: Observation | None = None
    peer_eval: Observation | None = None


class Lockstep:
    """needle and torch on one case. Before every step both take over torch's state, so that each step stands alone."""

    def __init__(self, case: c.TrainCase, ndl: Any, clock: Clock | None = None) -> None:
        self.case, self.ndl = case, ndl
        self.clock = clock or Clock()
        self.clock.turn("inputs")
        self.slots = inputs.slots(case)
        self.batches = inputs.batches(case)
        self.masks = inputs.masks(case, case.steps)
        self.listed: list[str] = []  # what torch's model.parameters() gives, by needle's names

    def steps(self, tapes: TapeJudge | None = None) -> Iterator[Step]:
        """The run; it ends where needle raises or the state is not finite. ``tapes`` looks at the first step's."""
        case = self.case
        if case.dtypes is not None:
            yield from self._alone()
            return
        self.ours = ours = ours_side.NeedleRun(case, self.ndl, self.slots, self.batches, self.clock)
        self.clock.turn("torch")
        peer = self.peer(torch.float32, self.clock)
        self.clock.turn("observing")
        self.listed = peer.listed
        state = State(inputs.initial_state(case))
        readable = ours_side.is_ours(self.ndl)
        for t in range(case.steps):
            if ours.failed is None:
                ours.load(state)
            peer.load(state)
            seen = ours_side.step(ours, t, tapes if t == 0 and readable else None)
            if seen.failure is not None:
                yield Step(state, seen, Observation(step=t))
                return
            step = Step(state, seen, peer.step(t, self.kinks(seen)))
            state = peer.state()
            if inputs.evaluated_after(t, case.steps):
                ours.load(state)
                step.after = state
                step.ours_eval = ours_side.evaluate(ours, t)
                peer.load(state)
                if step.ours_eval.failure is None:
                    step.peer_eval = peer.evaluate(t, self.kinks(step.ours_eval))
            yield step
            if any(ours.contract.hides(ours.optimizer, quantity) for quantity in state.slots):
                return  # a state that cannot be found cannot be taken over
            finite = np.isfinite(np.concatenate(list(state.tensors.values()), axis=None)).all()
            if ours.failed is not None or not finite:
                return

    def _alone(self) -> Iterator[Step]:
        """A run in other dtypes, which torch would refuse to mix: needle goes its own way, and each step is judged from the
        state that it has left.
        """
        self.ours = ours = ours_side.NeedleRun(self.case, self.ndl, self.slots, self.batches, self.clock)
        self.clock.turn("observing")
        self.listed = [slot.name for slot in self.slots[0]]
        state = State(inputs.initial_state(self.case))
        ours.load(state)
        for t in range(self.case.steps):
            seen = ours_side.step(ours, t, None)
            step = Step(state, seen, Observation(step=t))
            if seen.failure is None:
                state = self._left(ours)
                if inputs.evaluated_after(t, self.case.steps):
                    step.after = state
                    step.ours_eval = ours_side.evaluate(ours, t)
                    step.peer_eval = Observation(step=t)
            yield step
            if ours.failed is not None or not all(np.isfinite(v).all() for v in state.tensors.values()):
                return

    def _left(self, ours: ours_side.NeedleRun) -> State:
        """The state that a step has left."""
        slots: dict[str, dict[str, Array]] = {}
        for quantity in STATE:
            for name, (held, key) in ours.contract.states(ours.optimizer, quantity, ours.parameters):
                slots.setdefault(quantity, {})[name] = np.array(array_of(held[key]))
        return State({name: np.array(ours.array(name)) for name in ours.tensors}, slots)

    def peer(self, dtype: torch.dtype = torch.float64, clock: Clock | None = None) -> peer_side.TorchRun:
        """A torch model of the case, with its optimizer."""
        about = (self.slots, self.batches, self.masks)
        return peer_side.TorchRun(self.case, *about, dtype=dtype, clock=clock)

    def kinks(self, seen: Observation) -> dict[str, Array]:
        """The branches that needle's ReLUs took, where they have the right shape; a wrong one is reported elsewhere."""
        return {p: k for p, k in seen.kinks.items() if k.shape == self._shapes.get(p.split("#")[0])}

    def common_kinks(self, seen: Sequence[Observation]) -> list[dict[str, Array]]:
        """`kinks` of several steps, where all of them have them."""
        kinks = [self.kinks(s) for s in seen]
        common = set.intersection(*(set(k) for k in kinks)) if kinks else set()
        return [{p: k[p] for p in common} for k in kinks]

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        rows = self.case.data.rows
        layers = inputs.plain_layers(self.case)
        return {path: (rows, width) for path, layer, width, _ in layers if layer.kinked}
