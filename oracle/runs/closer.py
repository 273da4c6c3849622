"""A closer look at a failing case: loss and largest error over its steps, in a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from oracle.apart import Broken, Died, apart, begin
from oracle.cases import case as c
from oracle.systems.trace import CHANGED, ENDED

POINTS = 12  # steps up to which the error is looked at
SECONDS = 5.0  # for all of them, and for each: it is a page more, and no verdict


@dataclass
class Closer:
    """What a training case shows, step by step."""

    steps: list[int] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)  # loss of needle
    peer: list[float] = field(default_factory=list)  # loss of torch
    upto: list[int] = field(default_factory=list)  # steps up to which the error was looked at
    shares: list[float] = field(default_factory=list)  # the largest error up to there, in units of its tolerance


def closer(case: c.Case, kind: str = "") -> Closer | None:
    """The look at a case; None where there are no steps to look at, or needle does not live through it.

    ``kind`` is that of its failure: a needle that ends its process or never comes back is not run once more.
    """
    if not isinstance(case, c.TrainCase) or case.memory is not None or kind in (ENDED, CHANGED):
        return None
    try:
        found = apart(_looked, case, patience=SECONDS, heard=bytearray())
    except (Died, Broken):
        return None
    return found if found.steps or found.shares else None


def _looked(case: c.TrainCase) -> Closer:
    """In a child."""
    from oracle.runs.judgement import verdict_on
    from oracle.systems.candidate import candidate
    from oracle.systems.lockstep import Lockstep

    found, ndl, started = Closer(), candidate(), time.perf_counter()
    try:
        for step in Lockstep(case, ndl).steps():
            losses = [_number(side.values.get("loss", {})) for side in (step.ours, step.peer)]
            found.steps.append(step.ours.step)
            found.ours.append(losses[0])
            found.peer.append(losses[1])
    except Exception:  # needle breaks even what is around it: a curve less
        found = Closer()
    for count in sorted({1 + round(i * (case.steps - 1) / (POINTS - 1)) for i in range(POINTS)}):
        if time.perf_counter() - started > SECONDS:
            break
        begin()
        verdict = verdict_on(first_steps(case, count), peer_too=False)
        shares = [s for k, s in verdict.tally.largest.items() if not k.startswith(("P ", "validation"))]
        part = verdict.divergence
        if part is not None and part.error is not None and part.allowed:
            shares.append(float(part.error) / float(part.allowed))
        found.upto.append(count)
        found.shares.append(max(shares, default=math.nan))
        if part is not None and part.failure is not None:
            break  # it raises: nothing behind that is judged
    return found


def first_steps(case: c.TrainCase, count: int) -> c.TrainCase:
    """The first steps of a case; each has the same batch and the same start as in the whole."""
    return msgspec.structs.replace(
        case,
        steps=count,
        lr_changes=tuple(change for change in case.lr_changes if change.step < count),
        gap=case.gap if case.gap is not None and case.gap.step < count else None,
    )


def _number(losses: Mapping[str, Any]) -> float:
    """A loss that is one number; nan for any other."""
    import numpy as np

    values = [np.asarray(v) for v in losses.values()]
    return float(values[0].item()) if len(values) == 1 and values[0].size == 1 else math.nan
