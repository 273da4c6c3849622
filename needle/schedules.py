"""Schedules: the learning rate of an optimizer as a function of how many steps have been made.

A schedule keeps the learning rate that the optimizer had when it was made, ``base``, and how often it has stepped,
``t``. ``step()``, called after ``optimizer.step()`` (or after each epoch, if that is what is counted), sets
``optimizer.lr`` for the next; a Warmup, which begins at 0, does so when it is made too. What somebody else writes into
``optimizer.lr`` holds until then.

>>> from needle import nn, optim, schedules
>>> optimizer = optim.SGD([nn.Parameter([1.0])], lr=0.4)
>>> schedule = schedules.Warmup(optimizer, 2, then=schedules.StepLR(optimizer, 2, gamma=0.5))
>>> rates = []
>>> for _ in range(7):
...     rates.append(optimizer.lr)
...     schedule.step()
>>> print(*rates)
0.0 0.2 0.4 0.4 0.2 0.2 0.1
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from needle.autograd import _integer
from needle.optim import _plain, _setting, _within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from needle.optim import Optimizer

__all__ = ["CosineLR", "Schedule", "StepLR", "Warmup"]


class Schedule:
    """Base of all schedules: a subclass defines ``lr_at(t)``, the learning rate after t steps, from ``self.base``.

    ``optimizer``: anything with an attribute ``lr``; TypeError for what has none.
    """

    _hyper: ClassVar[tuple[str, ...]] = ()  # names of the settings, which must be the same where a state is loaded

    def __init__(self, optimizer: Optimizer) -> None:
        name = type(self).__name__
        if isinstance(optimizer, type) or not hasattr(optimizer, "lr"):
            what = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(f"{name} takes an optimizer with a learning rate, but got {what}")
        self.optimizer: Any = optimizer
        self.base: float = _plain(optimizer.lr)
        self.t = 0

    def lr_at(self, t: int) -> float:
        """Return the learning rate after t steps."""
        raise NotImplementedError(f"{type(self).__name__} must define lr_at(self, t)")

    def step(self) -> None:
        """Count one step, and set the optimizer's learning rate."""
        lr = self.lr_at(self.t + 1)
        self.t += 1
        self.optimizer.lr = lr

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` puts back: the name of the class, ``base``, ``t`` and the settings.

        >>> from needle import nn, optim
        >>> CosineLR(optim.SGD([nn.Parameter([1.0])], lr=0.5), 10).state_dict()
        {'schedule': 'CosineLR', 'base': 0.5, 't': 0, 'steps': 10, 'lowest': 0.0}
        """
        return self._own_state()

    def _own_state(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in self._hyper}
        return {"schedule": type(self).__name__, "base": self.base, "t": self.t, **settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict()`` has returned, and set the optimizer's learning rate to match.

        KeyError if names are missing or unknown, ValueError if the state is that of another class or has other settings
        than this schedule, TypeError for what is no dict or number. After an error nothing has been loaded.
        """
        self._loading(state)()

    def _loading(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check a state; what this returns puts it in place, and cannot fail."""
        name, what = type(self).__name__, f"{type(self).__name__}.load_state_dict"
        if not hasattr(state, "keys"):
            raise TypeError(
                f"{what} takes what state_dict() has returned, but got {type(state).__name__}; ndl.load reads a file"
            )
        if "schedule" in state and str(state["schedule"]) != name:
            raise ValueError(f"{what}: this is the state of {state['schedule']}, not of {name}")
        own = self._own_state()
        missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
        if missing or unknown:
            raise KeyError(f"{what}: missing {missing}, unknown {unknown}; the names must be those of state_dict()")
        given = {key: _setting(state[key], f"{what}: {key}") for key in own if key != "schedule"}
        for key in own:
            if key not in ("schedule", "base", "t") and given[key] != own[key]:
                raise ValueError(
                    f"{what}: {key} must be that of the schedule, {own[key]!r}, but got {given[key]!r}: "
                    "make the schedule with the settings that it was saved with"
                )
        base, t = _rate(given["base"], f"{what}: base"), _integer(given["t"], f"{what}: t", 0)
        return lambda: self._put(base, t)

    def _put(self, base: float, t: int) -> None:
        self.base, self.t = base, t
        self.optimizer.lr = self.lr_at(t)

    def _settings(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._hyper)

    def __repr__(self) -> str:
        parts = [self._settings()] if self._settings() else []
        return f"{type(self).__name__}({', '.join([*parts, f'base={self.base!r}', f't={self.t}'])})"


class StepLR(Schedule):
    """StepLR: base · gamma^⌊t / step_size⌋, the learning rate times gamma every step_size steps.

    ``step_size``: an integer of at least 1; ``gamma``: finite and not negative. Equals
    ``torch.optim.lr_scheduler.StepLR`` but for its rounding.
    """

    _hyper = ("step_size", "gamma")

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer)
        self.step_size = _integer(step_size, "StepLR: step_size", 1)
        self.gamma = _rate(gamma, "StepLR: gamma")

    def lr_at(self, t: int) -> float:
        """Return the learning rate after t steps."""
        return self.base * self.gamma ** (t // self.step_size)


class CosineLR(Schedule):
    """CosineLR: lowest + (base - lowest) (1 + cos(π t / steps)) / 2, down half a cosine; ``lowest`` from t = steps on.

    ``steps``: an integer of at least 1; ``lowest``: a learning rate, finite and not negative. Up to t = steps it equals
    ``torch.optim.lr_scheduler.CosineAnnealingLR``, which then goes up again. Loshchilov and Hutter, 2017.
    """

    _hyper = ("steps", "lowest")

    def __init__(self, optimizer: Optimizer, steps: int, lowest: float = 0.0) -> None:
        super().__init__(optimizer)
        self.steps = _integer(steps, "CosineLR: steps", 1)
        self.lowest = _rate(lowest, "CosineLR: lowest")

    def lr_at(self, t: int) -> float:
        """Return the learning rate after t steps."""
        if t >= self.steps:
            return self.lowest
        return self.lowest + (self.base - self.lowest) * (1 + math.cos(math.pi * t / self.steps)) / 2


class Warmup(Schedule):
    """Warmup: base · t / steps up to t = steps, and from there on what ``then`` says after t - steps steps.

    ``steps``: an integer of at least 1. ``then``: a schedule of the same optimizer, made before, which is not stepped by
    itself; without one the learning rate stays at ``base``. At t = 0 the learning rate is 0.
    """

    _hyper = ("steps",)

    def __init__(self, optimizer: Optimizer, steps: int, then: Schedule | None = None) -> None:
        super().__init__(optimizer)
        self.steps = _integer(steps, "Warmup: steps", 1)
        if then is not None:
            if not isinstance(then, Schedule):
                raise TypeError(f"Warmup: then must be a schedule or None, but got {type(then).__name__}")
            if then.optimizer is not optimizer or then.t:
                raise ValueError("Warmup: then must be a schedule of the same optimizer that has not stepped yet")
            self.base = then.base
        self.then = then
        optimizer.lr = self.lr_at(0)  # type: ignore[attr-defined]

    def lr_at(self, t: int) -> float:
        """Return the learning rate after t steps."""
        if t < self.steps:
            return self.base * (t / self.steps)
        return self.base if self.then is None else self.then.lr_at(t - self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return its own state, and that of ``then`` under names that begin with ``then.``."""
        state = super().state_dict()
        if self.then is not None:
            state |= {f"then.{key}": value for key, value in self.then.state_dict().items()}
        return state

    def _loading(self, state: Mapping[str, Any]) -> Callable[[], None]:
        if self.then is None or not hasattr(state, "keys"):
            return super()._loading(state)
        put_then = self.then._loading({key[5:]: state[key] for key in state if key.startswith("then.")})
        put = super()._loading({key: state[key] for key in state if not key.startswith("then.")})

        def both() -> None:
            put_then()
            put()

        return both

    def _settings(self) -> str:
        return super()._settings() + ("" if self.then is None else f", then={self.then!r}")


def _rate(value: float, what: str) -> float:
    if not _within(0, value, math.inf):
        raise ValueError(f"{what} must be finite and not negative, got {what.split()[-1]}={value!r}")
    return value
