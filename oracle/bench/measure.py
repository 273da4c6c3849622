"""Check that the libraries agree, then time them: interleaved bursts of process CPU time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from oracle.bench.peers import BUILDERS, Trainer
from oracle.systems.workloads import Array, Workload

CHECK_STEPS = 5
TOLERANCE = 1e-3
"""Largest difference of a parameter's change since the start, as a share of the largest change in it.

float32 sums in another order part by about 1e-6 in a step; 5 steps, some tens of layers and cancellation make
that up to 1e-4. A wrong term shows at its own size: momentum, dampening and decay (0.1 in the check) make up
10 % and more.
"""
LOSS_TOLERANCE = 1e-4
"""The same for the loss, relative to the loss."""


class Disagreement(Exception):
    """Two libraries do not compute the same thing, so their times mean nothing."""


def check(workload: Workload, trainers: Mapping[str, Trainer], steps: int = CHECK_STEPS) -> None:
    """Train all in lockstep; every loss and parameter must equal those of the first, or Disagreement."""
    reference, *others = trainers
    start = workload.start()
    for step in range(steps):
        losses = {name: trainer.run(1) for name, trainer in trainers.items()}
        params = {name: trainer.parameters() for name, trainer in trainers.items()}
        for name in others:
            where = f"{workload.key}: {name} and {reference} part at step {step}"
            check_loss(losses[name], losses[reference], where)
            check_parameters(params[name], params[reference], start, step + 1, where)


def check_loss(theirs: float, ours: float, where: str) -> None:
    """Two losses must be the same, or Disagreement, which says where."""
    if not abs(theirs - ours) <= LOSS_TOLERANCE * max(abs(ours), 1e-3):
        raise Disagreement(f"{where}: loss {theirs:.9g} against {ours:.9g}")


def check_parameters(
    theirs: Mapping[str, Array], ours: Mapping[str, Array], start: Mapping[str, Array], steps: int, where: str
) -> None:
    """After so many steps from the same start, parameters must be the same, or Disagreement, which says where."""
    if list(theirs) != list(ours):
        raise Disagreement(f"{where}: parameters {list(theirs)} against {list(ours)}")
    for key, at_start in start.items():
        theirs_p, ours_p = theirs[key], ours[key]
        if theirs_p.shape != ours_p.shape or theirs_p.dtype != ours_p.dtype:
            raise Disagreement(
                f"{where}: {key} is {theirs_p.dtype} {theirs_p.shape} against {ours_p.dtype} {ours_p.shape}"
            )
        moved = float(np.abs(ours_p - at_start).max())
        error = float(np.abs(theirs_p - ours_p).max())
        # A rounding of the parameter itself is allowed at every step.
        allowed = TOLERANCE * moved + 2**-23 * steps * float(np.abs(ours_p).max())
        if not error <= allowed:
            raise Disagreement(
                f"{where}: {key} differs by {error:.3g}, allowed {allowed:.3g} (it has moved by {moved:.3g})"
            )


@dataclass(frozen=True)
class Spread:
    """The median over rounds, and the range."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        values = list(values)
        return Spread(statistics.median(values), min(values), max(values))


@dataclass
class Timing:
    """Seconds per step, one entry per complete round and contestant."""

    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        return min((len(costs) for costs in self.cpu.values()), default=0)

    def cost(self, name: str) -> Spread:
        return Spread.of(self.cpu[name])

    def ratio(self, name: str, over: str, *, clock: str = "cpu") -> Spread:
        """Of costs measured within the same round, so that a slow spell of the machine hits both."""
        costs = self.cpu if clock == "cpu" else self.wall
        return Spread.of(a / b for a, b in zip(costs[name], costs[over], strict=True))


def interleave(
    contestants: Mapping[str, Callable[[int], object]],
    rounds: int,
    seconds: float,
    on_round: Callable[[], None] = lambda: None,
    timing: Timing | None = None,
) -> Timing:
    """Time bursts of so many seconds of each contestant in turn; each is called with a number of steps.

    While a burst runs the collector is on, as it is for users, but does not walk what other libraries keep alive.
    """
    bursts = {name: partial(burst, run, steps_of(run, seconds)) for name, run in contestants.items()}
    gc.collect()
    gc.freeze()
    try:
        return take_turns(bursts, rounds, on_round, timing)
    finally:
        gc.unfreeze()


def take_turns(
    bursts: Mapping[str, Callable[[], tuple[float, float]]],
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
    timing: Timing | None = None,
) -> Timing:
    """Rounds of one burst of each; every round starts with another contestant."""
    timing = timing if timing is not None else Timing()
    order: Sequence[str] = list(bursts)
    for i in range(rounds):
        first = i % len(order)
        costs = {name: bursts[name]() for name in (*order[first:], *order[:first])}
        for name in order:  # only now: an interrupted round counts for nobody
            timing.cpu.setdefault(name, []).append(costs[name][0])
            timing.wall.setdefault(name, []).append(costs[name][1])
        on_round()
    return timing


def burst(run: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Process CPU time and time by the clock, in seconds per step.

    Earlier garbage is collected before. The first step is not timed: it brings the contestant's data back into the cache.
    """
    gc.collect()
    run(1)
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    return (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps


def steps_of(run: Callable[[int], object], seconds: float) -> int:
    """How many steps fill a burst."""
    run(2)
    n = 1
    while True:
        began = time.process_time()
        run(n)
        took = time.process_time() - began
        if took >= seconds / 4:
            return max(1, round(n * seconds / took))
        n *= 2


def build(workload: Workload, names: Iterable[str]) -> dict[str, Trainer]:
    return {name: BUILDERS[name](workload) for name in names}
