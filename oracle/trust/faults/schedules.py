"""What shows only where a learning rate follows a schedule, step by step."""

from __future__ import annotations

import math
from typing import Any

from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import around, replace

fault = Chapter("program")

STEP = "schedule.step()"


def _counted(self: Any, base: float, t: int) -> None:
    self.base, self.t = base, t


fault(
    "program-steplr-early",
    "StepLR comes down one step too early",
    STEP,
    around("schedules.StepLR.lr_at", lambda old, self, t: self.base * self.gamma ** ((t + 1) // self.step_size)),
)
fault(
    "program-steplr-linear",
    "StepLR multiplies with gamma times the number of its steps, and not with its power",
    STEP,
    around("schedules.StepLR.lr_at", lambda old, self, t: self.base * max(self.gamma * (t // self.step_size), 1.0)),
)
fault(
    "program-steplr-of-now",
    "StepLR goes on from the learning rate that is in force, and not from the one that it was made with",
    STEP,
    around("schedules.StepLR.lr_at", lambda old, self, t: _of_now(self, t)),
)
fault(
    "program-steplr-gamma-half",
    "StepLR halves the learning rate where no gamma is given",
    STEP,
    around(
        "schedules.StepLR.__init__",
        lambda old, self, optimizer, step_size, gamma=0.5: old(self, optimizer, step_size, gamma),
    ),
)
fault(
    "program-cosine-degrees",
    "CosineLR takes t / steps for the cosine's argument, without π",
    STEP,
    around("schedules.CosineLR.lr_at", lambda old, self, t: _cosine(self, min(t, self.steps) / math.pi)),
)
fault(
    "program-cosine-goes-up-again",
    "after its steps CosineLR goes up again, as torch's does",
    STEP,
    around("schedules.CosineLR.lr_at", lambda old, self, t: _cosine(self, t)),
)
fault(
    "program-cosine-lowest-ignored",
    "CosineLR ends at 0 whatever lowest is",
    STEP,
    around(
        "schedules.CosineLR.lr_at",
        lambda old, self, t: self.base * (1 + math.cos(math.pi * min(t, self.steps) / self.steps)) / 2,
    ),
)
fault(
    "program-cosine-lowest-default",
    "CosineLR ends at a tenth where no lowest is given",
    STEP,
    around(
        "schedules.CosineLR.__init__",
        lambda old, self, optimizer, steps, lowest=0.1: old(self, optimizer, steps, lowest),
    ),
)
fault(
    "program-warmup-starts-late",
    "a Warmup leaves the learning rate alone until its first step",
    "schedule Warmup",
    around(
        "schedules.Warmup.__init__",
        lambda old, self, optimizer, *args, **more: _left_alone(old, self, optimizer, *args, **more),
    ),
)
fault(
    "program-warmup-one-ahead",
    "a Warmup is one step ahead",
    f"{STEP}|schedule Warmup",
    around("schedules.Warmup.lr_at", lambda old, self, t: old(self, t + 1)),
)
fault(
    "program-warmup-then-not-shifted",
    "what comes after a Warmup counts the steps of the Warmup too",
    STEP,
    around(
        "schedules.Warmup.lr_at",
        lambda old, self, t: old(self, t) if t < self.steps or self.then is None else self.then.lr_at(t),
    ),
)
fault(
    "program-schedule-counts-twice",
    "each step counts as two",
    STEP,
    around("schedules.Schedule.step", lambda old, self: (old(self), old(self))[0]),
)
fault(
    "program-schedule-keeps-lr",
    "what a user writes into lr holds for ever",
    STEP,
    around("schedules.Schedule.step", lambda old, self: _kept(old, self)),
)
fault(
    "program-schedule-state-one-less",
    "the state dict of a schedule counts one step less",
    "fresh model and optimizer",
    around("schedules.Schedule.state_dict", lambda old, self: {**old(self), "t": max(0, self.t - 1)})
    + around("schedules.Warmup.state_dict", lambda old, self: {**old(self), "t": max(0, self.t - 1)}),
)
fault(
    "program-schedule-load-leaves-lr",
    "loading a schedule leaves the learning rate at what it was",
    "fresh model and optimizer",
    replace("schedules.Schedule._put", _counted),
)
fault(
    "program-file-schedule-anew",
    "load leaves the schedule at its first step",
    "a file into a fresh model and optimizer",
    around(
        "load", lambda old, path, model, optimizer=None, schedule=None: _anew(old, path, model, optimizer, schedule)
    ),
)


def _cosine(self: Any, t: float) -> float:
    rate: float = self.lowest + (self.base - self.lowest) * (1 + math.cos(math.pi * t / self.steps)) / 2
    return rate


def _of_now(self: Any, t: int) -> float:
    now: float = self.optimizer.lr
    return now * self.gamma if t and t % self.step_size == 0 else now


def _left_alone(old: Any, self: Any, optimizer: Any, *args: Any, **more: Any) -> None:
    before = optimizer.lr
    old(self, optimizer, *args, **more)
    optimizer.lr = before


def _kept(old: Any, self: Any) -> None:
    now = self.optimizer.lr
    written = now != self.lr_at(self.t)
    old(self)
    if written:
        self.optimizer.lr = now


def _anew(old: Any, path: Any, model: Any, optimizer: Any, schedule: Any) -> Any:
    if schedule is None:
        return old(path, model, optimizer)
    made = old(path, model, optimizer, schedule)
    schedule._put(schedule.base, 0)
    return made
