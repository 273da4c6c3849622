"""A program in both systems, action by action: needle does each, torch every pass, from the state in which needle was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.cases.known import Known, State
from oracle.systems.ours import is_ours
from oracle.systems.ours.calls import CallJudge, calls
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.course_program import CourseWorld
from oracle.systems.ours.phase import Failed
from oracle.systems.ours.program import World
from oracle.systems.recorded import TapeJudge
from oracle.systems.torch_program import TorchProgram
from oracle.systems.trace import Clock, Failure, Observation, same_bits

TWIN = 4  # actions after a copy that the original does too


@dataclass
class Turn:
    """One action: what it started from, what it has to leave, what it left, and what was seen meanwhile."""

    action: a.Action
    before: Known
    right: Known
    after: State = field(default_factory=dict)
    ours: Observation = field(default_factory=lambda: Observation(0))
    peer: Observation = field(default_factory=lambda: Observation(0))
    masks: dict[str, Any] = field(default_factory=dict)  # of Dropout, in a pass
    promises: dict[str, bool] = field(default_factory=dict)
    world: World | None = None  # where it was looked at from inside


@dataclass
class Looking:
    """At which action the layers are watched, and who looks at the tapes and at the calls of ops."""

    index: int
    tapes: TapeJudge
    calls: CallJudge


class ProgramRun:
    """A program at work; ``looking`` has one action watched from inside, and the program end after it."""

    def __init__(
        self, case: c.ProgramCase, ndl: Any, clock: Clock | None = None, looking: Looking | None = None
    ) -> None:
        self.case, self.ndl, self.looking = case, ndl, looking
        self.clock = clock or Clock()
        self.clock.turn("inputs")
        self.batches = programs.batches(case)
        slots = inputs.slots(case.training)
        self.slots = tuple([s for s in part if case.alias(s.name) == s.name] for part in slots)
        self.torch = TorchProgram(case, self.batches)

    def turns(self) -> Iterator[Turn]:
        """The actions; the program ends where needle raises, or its state is no longer finite."""
        case, clock = self.case, self.clock
        k = programs.start(case)
        clock.turn("observing")
        try:
            world = self._world()
        except Failed as failed:
            yield Turn(case.actions[0], k, k, ours=Observation(0, failure=failed.failure))
            return
        twin, until = world.twin, 0
        for index, action in enumerate(case.actions):
            clock.step = index
            k.index, k.judged, k.within = index, set(), {}
            turn = Turn(action, copy.copy(k), k)
            turn.before.values = dict(k.values)
            turn.before.optimizers = [(kind, list(names)) for kind, names in k.optimizers]
            turn.ours = contract_of(self.ndl).observation(index, {s.name: s.shape for part in self.slots for s in part})
            turn.peer.step = index
            if isinstance(action, a.Pass):
                turn.masks = programs.masks(case, k.passes, k)
            world.flows, world.scheduled = programs.flowing(k), k.schedules
            action.meaning(k)
            world.due, world.judged = k.values, k.judged
            turn.right = copy.copy(k)
            turn.right.optimizers = [(kind, list(names)) for kind, names in k.optimizers]
            also = twin is not None and index < until
            if twin is not None and also and index % 2:  # first the original, then its copy, and the other way round
                turn.ours.failure = self._also(twin, world, action, index, turn, turn.before.values)
            turn.ours.failure = turn.ours.failure or self._do(world, action, index, turn)
            if turn.ours.failure is None and twin is not None and also:
                if not index % 2:
                    turn.ours.failure = self._also(twin, world, action, index, turn, turn.after)
                self._compare(twin, world, turn)
            if turn.ours.failure is not None:
                yield turn
                return
            if world.twin is not None:
                twin, world.twin, until = world.twin, None, index + 1 + TWIN
                self._compare(twin, world, turn)
            clock.turn("torch")
            if isinstance(action, a.Pass):
                before = turn.before
                turn.peer = self.torch.run(before, before.passes, turn.masks, to_input=action.to_input, index=index)
            elif isinstance(action, a.Evaluate):
                turn.peer = self.torch.evaluate(turn.before, turn.before.passes, index)
            clock.turn("observing")
            yield turn
            k.values, k.passes = dict(turn.after), world.passes
            if turn.ours.failure is not None or not _goes_on(turn):
                return

    def _world(self) -> World:
        of = World if is_ours(self.ndl) else CourseWorld
        return of(self.case, self.ndl, (self.slots[0], self.slots[1]), self.batches, self.clock)

    def start(self) -> State:
        """What a needle shows before the first action."""
        return self._world().look()

    def _do(self, world: World, action: a.Action, index: int, turn: Turn) -> Failure | None:
        world.index, world.seen, world.promises = index, turn.ours, turn.promises
        looking = self.looking if self.looking is not None and self.looking.index == index else None
        turn.world = world if looking is not None else None
        try:
            if looking is not None:
                world.watched(looking.tapes)
            with calls(self.ndl, None if looking is None else looking.calls), world.phase(action.words):
                action.needle(world)
            if isinstance(action, a.Pass):
                world.passes += 1
            with world.phase(f"looking after {action.words}"):
                turn.after = world.look()
                for name in world.unkept():
                    world.promise(f"what the user holds is not written to: {name}", False)
        except Failed as failed:
            return failed.failure
        return None

    def _also(
        self, twin: World, world: World, action: a.Action, index: int, turn: Turn, before: State
    ) -> Failure | None:
        """The original does the same as its copy, which must not notice."""
        twin.index, twin.seen, twin.promises = index, Observation(index), {}
        twin.flows, twin.scheduled = world.flows, world.scheduled
        twin.passes = turn.before.passes
        try:
            with world.phase(f"{action.words}, of the original of a copy"):
                action.needle(twin)
            twin.twin = None
            with world.phase("looking at a copy"):
                now = world.look()
        except Failed as failed:
            return failed.failure
        changed = [key for key in now if not alike(now[key], before.get(key))]
        turn.promises["a copy shares nothing with its original" + (f": {changed[0]}" if changed else "")] = not changed
        return None

    def _compare(self, twin: World, world: World, turn: Turn) -> None:
        theirs = twin.look()
        parted = [key for key in {**theirs, **turn.after} if not alike(theirs.get(key), turn.after.get(key))]
        turn.promises["a copy goes on as its original does" + (f": {parted[0]}" if parted else "")] = not parted

    def exact(self) -> TorchProgram:
        """The same in torch float64."""
        return TorchProgram(self.case, self.batches, torch.float64)


def _goes_on(turn: Turn) -> bool:
    """Whether parameters and buffers are finite numbers, and as many as before: torch cannot start from others."""
    for key, before in turn.before.values.items():
        if key.startswith(("parameter ", "buffer ")):
            value = turn.after.get(key)
            if value is None or value.shape != before.shape or not np.isfinite(value).all():
                return False
    return True


def alike(one: Any, other: Any) -> bool:
    """Whether two entries of a state are the same: bits, shape and dtype of arrays, or equal."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and same_bits(one, other)
    return not isinstance(one, np.ndarray) and not isinstance(other, np.ndarray) and bool(one == other)
