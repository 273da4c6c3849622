"""A guard: a label, where in needle something goes wrong, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oracle.trust.guards.watching import watching
from oracle.trust.patches import Patch

# moment -> what is wrong then; `oracle.trust.guards.seen` says what is known at each of them
MOMENTS: Mapping[str, str] = {
    "op": "the result of the operation is off",
    "layer": "what the layer makes is off",
    "loss": "the loss is off",
    "walk": "all gradients of the backward pass are off",
    "clip": "the gradients are off after clipping",
    "step": "the parameters are off after the step",
    "refusal": "what has to be refused is not",
    "batch": "the rows of the batch are off",
    "put": "the layer is not put there",
    "restored": "what has been put back is off",
    "mode": "the module is in the other mode",
    "no_grad": "afterwards nothing is recorded",
    "optimizer": "the learning rate is off",
    "schedule": "the learning rate is off after the schedule",
}
Condition = Callable[[Any], bool]


@dataclass(frozen=True)
class Guard:
    """A fault that only cases with the label can notice."""

    label: str
    moment: str
    when: Condition

    def __post_init__(self) -> None:
        if self.moment not in MOMENTS:
            raise ValueError(f"{self.label}: the moments are {', '.join(MOMENTS)}, and {self.moment!r} is none")

    @property
    def about(self) -> str:
        """What is wrong, in words."""
        return MOMENTS[self.moment]

    def patch(self) -> Patch:
        """The fault, for one case."""
        return watching(lambda moment, facts: moment == self.moment and self.when(facts))


class Guards:
    """The guards of a family of labels: ``guard("op exp", "op", lambda f: …)`` adds one."""

    def __init__(self) -> None:
        self.known: dict[str, Guard] = {}

    def __call__(self, label: str, moment: str, when: Condition) -> None:
        if label in self.known:
            raise ValueError(f"{label} has two guards")
        self.known[label] = Guard(label, moment, when)

    def __iter__(self) -> Iterator[Guard]:
        return iter(self.known.values())
