"""Another needle under test: ``nox -s diff -- --needle DIR``, DIR being the folder that holds the package ``needle``.

The harness drives the API of the course, under the course's contract (`oracle.systems.ours.contract`). What the package does
not offer at all is found out by `oracle.runs.offered`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from oracle.cases import coverage

ESSENTIAL = ("layer Linear", "loss SoftmaxLoss", "optimizer SGD")

LOADER = "data DataLoader"  # which no case needs: the data are the oracle's


@dataclass
class Offer:
    """What cases may need: what is not there, and what is otherwise by design."""

    missing: dict[str, str] = field(default_factory=dict)  # name as in the coverage -> what happened on trying it
    by_design: list[dict[str, str]] = field(default_factory=list)  # rows of the contract, each with a place
    left_open: frozenset[str] = frozenset()  # what no case needs, because the course leaves it open

    required: tuple[str, ...] = ()  # what must be there, by the words of whoever asked

    @property
    def lacking(self) -> frozenset[str]:
        """What no case may need."""
        return self.left_open | self.missing.keys()

    @property
    def cannot_train(self) -> list[str]:
        """What is missing without which there is no training run at all."""
        return [name for name in ESSENTIAL if name in self.missing]

    @property
    def absent(self) -> list[str]:
        """What was required and is not there: ``tanh`` is ``op tanh`` or ``layer Tanh``."""
        missing = _by_any_name(self.missing)
        there = _by_any_name((*coverage.LABELS, LOADER)) - missing
        return [name for name in self.required if name.lower() in missing or name.lower() not in there]


def _by_any_name(labels: Iterable[str]) -> set[str]:
    """Labels of the coverage as somebody may write them: "op tanh", "tanh", "BatchNorm1d"."""
    names = {name.lower() for name in labels}
    names |= {name.partition(" ")[2] for name in names}
    return names | {f"{name}1d" for name in names if name.endswith("norm")}


class ForeignError(ValueError):
    """There is no needle where one was said to be, or it cannot be imported."""


def recognise(ndl: Any) -> None:
    """Raise unless it has what no needle of the course is without. Nothing in it is changed: what it does otherwise than
    ours is worked around from outside (`oracle.systems.ours.contract`).
    """
    for path in (("Tensor", "backward"), ("nn", "Module"), ("nn", "Parameter"), ("optim",)):
        thing = ndl
        for name in path:
            thing = getattr(thing, name)
