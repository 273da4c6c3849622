"""What is an action of a program? One thing that a user does: in the case file, in needle, and to a state of plain arrays.

`oracle.cases.actions` has them all. Knows neither needle nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from oracle.cases.bounds import CaseError
from oracle.cases.known import Known
from oracle.operations.drawn import Draw

Array = npt.NDArray[Any]
Write = Callable[[Array], str]


class Hands(Protocol):
    """A needle in the hands of its user: what actions do things to, see `oracle.systems.ours.program`."""

    ndl: Any
    strict: bool  # whether needle keeps to our promises, or to those of the course alone

    @property
    def model(self) -> Any:
        """The whole model."""

    @property
    def modules(self) -> dict[str, Any]:
        """Its modules by path."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters by name."""

    @property
    def optimizers(self) -> list[Any]:
        """All optimizers, the first one first."""

    @property
    def schedules(self) -> dict[int, Any]:
        """The schedules by the number of their optimizer, which has one at most."""

    def parameter(self, place: int) -> tuple[str, Any]:
        """A parameter and its name."""

    def listed(self, optimizer: int, place: int) -> tuple[str, Any]:
        """A parameter of an optimizer, and its name."""

    def optimizer(self, place: int) -> Any:
        """An optimizer."""

    def with_setting(self, setting: str, place: int) -> Any:
        """A layer that has the setting; None if none has."""

    def numbers(self, parameter: Any, *, positive: bool = False) -> Array:
        """New numbers in the shape of a parameter."""

    def write(self, tensor: Any, values: Array) -> bool:
        """Write into the array of a Tensor, as its owner may; False, and nothing done, where somebody else has it too."""

    def hold(self, name: str, thing: Any) -> None:
        """Keep a Tensor or an array, which from now on must keep its bits."""

    def promise(self, name: str, kept: bool) -> None:
        """Say whether needle has kept a promise."""

    def run(self, action: Any) -> None:
        """A `oracle.cases.actions.Pass`: a forward and a backward pass on the next batch."""

    def evaluate(self, *, constant: bool) -> None:
        """A forward pass in evaluation mode."""

    def forward_both_ways(self) -> bool:
        """A forward pass with a graph and one under ``no_grad``, of the same bits; whether the latter has a graph."""

    def walk_after_change(self) -> None:
        """A backward pass through a layer whose weight has changed since the forward pass."""

    def clip(self, optimizer: Any, max_norm: float | None) -> None:
        """Clip the gradients."""

    def copied(self, how: str) -> None:
        """Go on with a copy of model and optimizers."""

    def loaded(self, *, optimizer: bool, file: bool = False) -> None:
        """Go on with a fresh model into which the state of this one has been loaded, by way of a file."""

    def rewound(self, *, optimizer: bool) -> None:
        """Go on for a while, and go back to the state from before."""

    def load_batches(self, loader: Any) -> None:
        """A `oracle.cases.loading.Loader`: take the batches of the passes to come from a DataLoader."""

    def put_layer(self, place: int) -> None:
        """A fresh layer in the place of one that can be replaced."""

    def swap_layers(self, pair: int) -> None:
        """Two layers change places, if they are alike."""

    def another(self, kind: str, settings: dict[str, float]) -> None:
        """One more optimizer of all parameters."""


@dataclass
class Plan:
    """What the drawing of actions knows of the program so far."""

    parameters: int
    layers: int
    optimizers: list[str]  # kinds
    late: list[int] = field(default_factory=list)  # numbers of the parameters that no optimizer has yet
    tuned: tuple[str, ...] = ()  # settings that some layer has
    rows: int = 2  # of a batch
    scheduled: list[int] = field(default_factory=list)  # numbers of the optimizers that have a schedule

    def optimizer(self, draw: Draw) -> int:
        """One of the optimizers."""
        return draw.whole(0, len(self.optimizers) - 1)

    def parameter(self, draw: Draw) -> int:
        """One of the parameters."""
        return draw.whole(0, self.parameters - 1)


class Action(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True):
    """A thing that a user does."""

    weight: ClassVar[int] = 2  # how often it is drawn between two passes; 0: never there
    needs_gradients: ClassVar[bool] = False  # drawn between a pass and a step
    examples: ClassVar[tuple[Action, ...]] = ()

    @property
    def words(self) -> str:
        """What it is called: its label in the coverage begins so."""
        raise NotImplementedError

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Action:
        """One for a program as it is."""
        return cls.examples[0]

    def needle(self, w: Hands) -> None:
        """Do it."""
        raise NotImplementedError

    def meaning(self, k: Known) -> None:
        """What it does to the state."""

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script, with ``model``, ``layers``, ``parameters`` and ``optimizers``; ``write`` gives an array as text."""
        raise NotImplementedError

    def _defaults(self) -> dict[str, Any]:
        """Name of a field -> its default; for a dict, msgspec has what makes one."""
        known = zip(reversed(self.__struct_fields__), reversed(self.__struct_defaults__), strict=False)
        return {name: value.factory() if hasattr(value, "factory") else value for name, value in known}

    def simpler(self) -> Iterable[Action]:
        """The same with less to it."""
        for name, default in self._defaults().items():
            if getattr(self, name) != default:
                try:
                    simpler = replace(self, **{name: default})
                except CaseError:  # one field alone may be no such action
                    continue
                yield simpler

    @property
    def text(self) -> str:
        """With its fields, on one line."""
        fields = self._defaults()
        shown = [
            f"{n}={getattr(self, n)}"
            for n in self.__struct_fields__
            if n not in fields or getattr(self, n) != fields[n]
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
