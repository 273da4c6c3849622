"""How does the learning rate of an optimizer go on, step by step? Schedules as actions of a program, and what they must give.

The learning rate is written out here from the definition of each schedule: as a fraction, or for the cosine as the square of that of
half the angle. What a schedule leaves in its optimizer may differ from it by a rounding or two of a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from msgspec import Meta

from oracle.cases.action import Action, Hands, Plan, Write
from oracle.cases.bounds import NonNegative, Place, require
from oracle.cases.known import Known
from oracle.operations.drawn import Draw

ROUNDINGS = 2.0**-51  # of a double: four roundings, relative to what is rounded
_FACTORS = {"StepLR": "gamma", "CosineLR": "lowest"}
_DEFAULTS = {"StepLR": 0.1, "CosineLR": 0.0}


class Attach(Action, frozen=True, tag="Attach"):
    """``schedules.StepLR(optimizer, 2, gamma=0.5)``, or another schedule: from now on its optimizer has this one.

    ``steps`` is its ``step_size`` or ``steps``, ``value`` its ``gamma`` or ``lowest``, left out if None. After a Warmup ``then`` may follow, with
    the same number of steps and the value. A Warmup begins with a learning rate of 0 at once.
    """

    schedule: Literal["StepLR", "CosineLR", "Warmup"] = "StepLR"
    steps: Annotated[int, Meta(ge=1, le=1000)] = 1
    value: NonNegative | None = None
    then: Literal["StepLR", "CosineLR"] | None = None
    optimizer: Place = 0

    weight = 6

    def __post_init__(self) -> None:
        warmup = self.schedule == "Warmup"
        require(warmup or self.then is None, f"Attach: a {self.schedule} has no then")
        require(not warmup or self.then is not None or self.value is None, "Attach: a Warmup alone has no value")

    @property
    def words(self) -> str:
        """What it is called."""
        if self.schedule == "Warmup":
            return "schedule Warmup" + (f", then {self.then}" if self.then else "")
        return f"schedule {self.schedule}" + f", {_FACTORS[self.schedule]} by default" * (self.value is None)

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Attach:
        """Of a few steps, as there are in a program."""
        i = plan.optimizer(draw)
        kind, then = draw.of(_SCHEDULES)
        plan.scheduled[:] = [*(j for j in plan.scheduled if j != i), i]
        value = None if kind == "Warmup" and then is None else draw.of(_VALUES[then or kind])
        return cls(kind, draw.of((1, 1, 2, 3)), value, then, i)

    def made(self, optimizer: str) -> str:
        """The schedule as code."""

        def one(kind: str, more: str) -> str:
            return f"ndl.schedules.{kind}({optimizer}, {self.steps}{more})"

        kind = self.then or self.schedule
        value = f", {_FACTORS[kind]}={self.value}" if self.value is not None else ""
        if self.schedule != "Warmup":
            return one(self.schedule, value)
        return one("Warmup", f", then={one(self.then, value)}" if self.then else "")

    def of(self, ndl: Any, optimizer: Any) -> Any:
        """The schedule, of this optimizer."""
        kind = self.then or self.schedule
        given = {} if self.value is None else {_FACTORS[kind]: self.value}
        if self.schedule != "Warmup":
            return getattr(ndl.schedules, self.schedule)(optimizer, self.steps, **given)
        if self.then is None:
            return ndl.schedules.Warmup(optimizer, self.steps)
        then = getattr(ndl.schedules, self.then)(optimizer, self.steps, **given)
        return ndl.schedules.Warmup(optimizer, self.steps, then=then)

    def rate(self, base: float, t: int) -> tuple[float, float]:
        """The learning rate after t steps, and how far off it may be."""
        if self.schedule != "Warmup":
            return self._alone(self.schedule, base, t)
        if t < self.steps:
            rate = float(Fraction(base) * t / self.steps)
            return rate, ROUNDINGS * rate
        return (base, 0.0) if self.then is None else self._alone(self.then, base, t - self.steps)

    def _alone(self, kind: str, base: float, t: int) -> tuple[float, float]:
        value = _DEFAULTS[kind] if self.value is None else self.value
        if kind == "StepLR":
            rate = float(Fraction(base) * Fraction(value) ** (t // self.steps))
            return rate, ROUNDINGS * rate
        if t >= self.steps:
            return value, 0.0
        rate = value + (base - value) * math.cos(math.pi * t / (2 * self.steps)) ** 2
        return rate, ROUNDINGS * (base + value)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        yield f"schedules[{i}] = {self.made(f'optimizers[{i}]')}"

    def needle(self, w: Hands) -> None:
        """``schedules.StepLR(optimizer, …)``."""
        i = self.optimizer % len(w.optimizers)
        w.schedules[i] = self.of(w.ndl, w.optimizers[i])

    def meaning(self, k: Known) -> None:
        """It starts from the learning rate that is in force."""
        i = k.optimizer(self.optimizer)
        base = k.values[f"optimizer {i}: lr"]
        k.schedules = {**k.schedules, i: self}
        k.values |= {f"schedule {i}: base": base, f"schedule {i}: t": 0}
        if self.schedule == "Warmup":
            _put(k, i)


_SCHEDULES: tuple[tuple[Any, Any], ...] = (
    ("StepLR", None), ("CosineLR", None), ("Warmup", None), ("Warmup", "StepLR"), ("Warmup", "CosineLR"),
)  # fmt: skip
_VALUES: dict[str, tuple[float | None, ...]] = {"StepLR": (0.5, None, None, 2.0), "CosineLR": (0.01, None, 0.2)}
Attach.examples = (
    Attach("StepLR", 2, 0.5), Attach("StepLR", 1), Attach("CosineLR", 3, 0.05), Attach("CosineLR", 2), Attach("Warmup", 2),
    Attach("Warmup", 1, 0.5, "StepLR"), Attach("Warmup", 2, 0.05, "CosineLR"),
)  # fmt: skip


class Advance(Action, frozen=True, tag="Advance"):
    """``schedule.step()``, as after a step of its optimizer; where that has no schedule, nothing."""

    optimizer: Place = 0

    weight = 0  # drawn after a step

    @property
    def words(self) -> str:
        """What it is called."""
        return "schedule.step()"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Advance:
        """Of an optimizer that has one, as a rule: it may be gone with the optimizer when a model has been loaded."""
        return cls(draw.of(plan.scheduled))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        if i in k.schedules:
            yield f"schedules[{i}].step()"

    def needle(self, w: Hands) -> None:
        """``schedule.step()``."""
        i = self.optimizer % len(w.optimizers)
        if i in w.schedules:
            w.schedules[i].step()

    def meaning(self, k: Known) -> None:
        """It counts, and sets the learning rate, whatever somebody else has written there."""
        i = k.optimizer(self.optimizer)
        if i in k.schedules:
            k.values[f"schedule {i}: t"] += 1
            _put(k, i)


Advance.examples = (Advance(),)


def _put(k: Known, i: int) -> None:
    """The learning rate is what the schedule says."""
    key = f"optimizer {i}: lr"
    k.values[key], k.within[key] = k.schedules[i].rate(k.values[f"schedule {i}: base"], k.values[f"schedule {i}: t"])


def after_loading(k: Known, *, kept: bool) -> None:
    """Schedules come along with the state of their optimizer, or are gone."""
    if kept:
        for i in k.schedules:
            _put(k, i)
    else:
        k.schedules = {}
        k.forget("schedule ")
