"""Check that the libraries agree, then time them: interleaved bursts of process CPU time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from oracle.bench.peers import BUILDERS, Trainer
from oracle.bench.workloads import Array, Workload

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
            theirs, ours = losses[name], losses[reference]
            if not abs(theirs - ours) <= LOSS_TOLERANCE * max(abs(ours), 1e-3):
                raise Disagreement(f"{where}: loss {theirs:.9g} against {ours:.9g}")
            check_parameters(params[name], params[reference], start, step + 1, where)


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
    burst: float,
    on_round: Callable[[], None] = lambda: None,
    timing: Timing | None = None,
) -> Timing:
    """Time bursts of `burst` seconds of each contestant in turn; each is called with a number of steps.

    Every round starts with another contestant. The garbage of one is collected before the next is timed;
    while a burst runs the collector is on, as it is for users, but does not walk what other libraries keep
    alive. The first step of each burst is not timed: it brings the contestant's data back into the cache.
    """
    timing = timing if timing is not None else Timing()
    steps = {name: _steps(run, burst) for name, run in contestants.items()}
    order: Sequence[str] = list(contestants)
    gc.collect()
    gc.freeze()
    try:
        for i in range(rounds):
            first = i % len(order)
            cpu, wall = {}, {}
            for name in (*order[first:], *order[:first]):
                run, n = contestants[name], steps[name]
                gc.collect()
                run(1)
                w, c = time.perf_counter(), time.process_time()
                run(n)
                cpu[name], wall[name] = (time.process_time() - c) / n, (time.perf_counter() - w) / n
            for name in order:  # only now: an interrupted round counts for nobody
                timing.cpu.setdefault(name, []).append(cpu[name])
                timing.wall.setdefault(name, []).append(wall[name])
            on_round()
    finally:
        gc.unfreeze()
    return timing


def _steps(run: Callable[[int], object], burst: float) -> int:
    """How many steps fill a burst."""
    run(2)
    n = 1
    while True:
        began = time.process_time()
        run(n)
        took = time.process_time() - began
        if took >= burst / 4:
            return max(1, round(n * burst / took))
        n *= 2


def build(workload: Workload, names: Iterable[str]) -> dict[str, Trainer]:
    return {name: BUILDERS[name](workload) for name in names}
