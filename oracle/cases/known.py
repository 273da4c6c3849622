"""What is known of a program: its state as plain arrays, from which an action starts and which it must leave. NumPy alone.

A state is flat: "parameter 0.weight", "gradient 0.weight", "requires_grad 0.weight", "buffer 1.running_mean", "mode 1",
of the i-th optimizer "optimizer 0: lr" and "optimizer 0: velocity 0.weight", and of its schedule "schedule 0: t". What does not
exist has no entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Any]

# of each optimizer, by its name in needle.optim: keywords with their defaults, and its state by quantity
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "SGD": {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0},
    "Adam": {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
}
STATES: Mapping[str, Mapping[str, str]] = {
    "SGD": {"velocity": "u"},
    "Adam": {"first moment": "m", "second moment": "v"},
}


def numbers(seed: int, index: int, shape: Sequence[int], *, positive: bool = False) -> Array:
    """float32 numbers that the action at ``index`` of a program hands in; of another seed, other ones."""
    text = f"{seed}:action {index}"
    rng = np.random.RandomState(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
    drawn = 0.5 * rng.standard_normal(tuple(shape))
    return (np.abs(drawn) if positive else drawn).astype(np.float32)


@dataclass
class Known:
    """A program in the middle: its state, and what an action may choose from."""

    seed: int
    parameters: Sequence[str]  # names, in the order of the model
    layers: Sequence[str]  # paths of the modules that can be switched
    values: State = field(default_factory=dict)
    optimizers: list[tuple[str, list[str]]] = field(default_factory=list)  # kind, names of its parameters
    tuned: Mapping[str, Sequence[str]] = field(default_factory=dict)  # path of a layer -> names of its settings
    built: Mapping[str, float] = field(default_factory=dict)  # settings of layers, as the constructors take them
    places: Sequence[str] = ()  # paths of the layers that can be replaced …
    pairs: Sequence[tuple[str, str]] = ()  # … and of those that can change places
    late: Sequence[str] = ()  # parameters that are not in the first optimizer yet
    index: int = 0  # of the action
    passes: int = 0  # forward and backward passes so far
    judged: set[str] = field(default_factory=set)  # entries that a rule about numbers judges, and not the bits
    within: dict[str, float] = field(default_factory=dict)  # entries that are numbers, and how far off they may be
    schedules: Mapping[int, Any] = field(default_factory=dict)  # number of an optimizer -> the `Attach` of its schedule

    def parameter(self, place: int) -> str:
        """The name of a parameter; the count starts again behind the last."""
        return self.parameters[place % len(self.parameters)]

    def layer(self, place: int) -> str:
        """The path of a layer, likewise."""
        return self.layers[place % len(self.layers)]

    def with_setting(self, setting: str, place: int) -> str:
        """The path of a layer that has the setting; empty if none has."""
        paths = [path for path, names in self.tuned.items() if setting in names]
        return paths[place % len(paths)] if paths else ""

    def optimizer(self, place: int) -> int:
        """The number of an optimizer, likewise."""
        return place % len(self.optimizers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a parameter."""
        shape: tuple[int, ...] = self.values[f"parameter {name}"].shape
        return shape

    def graded(self, i: int) -> list[str]:
        """The parameters of an optimizer that have a gradient."""
        return [name for name in self.optimizers[i][1] if f"gradient {name}" in self.values]

    def settings(self, i: int) -> dict[str, float]:
        """The hyperparameters in force."""
        return {name: self.values[f"optimizer {i}: {name}"] for name in SETTINGS[self.optimizers[i][0]]}

    def numbers(self, name: str, *, positive: bool = False) -> Array:
        """What the action at work hands in for a parameter."""
        return numbers(self.seed, self.index, self.shape(name), positive=positive)

    def forget(self, *starts: str) -> None:
        """Remove all entries that begin so."""
        self.values = {key: value for key, value in self.values.items() if not key.startswith(starts)}
