"""What a layer of a case says of itself: all of it in one block, its class.

The fields of the class are what a case file says of the layer. A plain layer, one that keeps the width and has nothing to
train, answers two questions: `Layer.needle`, how a user of needle builds it, and `Layer.meaning`, what it means in float64.
All others have an answer that fits it; a layer with more to say gives its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from oracle.operations.drawn import Draw
from oracle.operations.tape import Tape, Var

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class Part(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True):
    """A part of a case."""


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer of the model in needle's layout."""

    name: str
    shape: Shape
    layer: str  # kind of the layer that owns it
    frozen: bool = False
    used: bool = True


# -- who asks ---------------------------------------------------------------------------------------------------------


class Side(Protocol):
    """A system that layers are built in: needle, torch, or a script that says the same as text.

    ``nn`` is its namespace of layers. torch's side also has ``ReLU`` and ``Dropout``, whose branch and mask can be given.
    """

    nn: Any

    def applied(self, function: Callable[..., Any], *parts: Any) -> Any:
        """A module of the user's own: ``function(x, *parts)``."""

    def op(self, name: str, *operands: Any, **attributes: Any) -> Any:
        """An operation of `oracle.operations`."""

    def zeros(self, size: int) -> Any:
        """A parameter of zeros."""

    def either(self, name: str, otherwise: Callable[[], Any]) -> Any:
        """``nn.name()``; where this system has no such layer, what ``otherwise`` makes."""


class Site(Protocol):
    """The place in a model for which a layer is drawn."""

    rows: int
    width: int  # of what comes in
    training: bool  # False inside `Eval`
    nested: bool  # whether a container may stand here

    def next_width(self) -> int:
        """A width to go on with."""

    def linear(self, width: int, out: int | None = None) -> Layer:
        """A Linear on that width; ``out`` is drawn where it is None."""

    def body(self, most: int, training: bool = True) -> tuple[tuple[Layer, ...], int]:
        """Layers inside a container, at most so many, and the width that they make."""

    def program(self) -> Layer:
        """Operations that keep the width."""


class Check(Protocol):
    """A walk through a model that sees to it that all widths fit, and adds up what a pass costs."""

    rows: int
    linears: list[Shape]  # shapes of the Linears so far
    parts: int  # operations beside the layers
    numbers: float  # values and parameters
    products: float  # multiplications in products

    def body(self, layers: Sequence[Layer], width: int, prefix: str, training: bool) -> int:
        """The width that a body makes."""


class Pass(Protocol):
    """A forward pass in float64, on a tape with all replicas and steps."""

    tape: Tape
    tensors: dict[str, Var]  # parameters and buffers by name
    masks: dict[str, Array]  # by path
    kinks: dict[str, Array]  # by path: the branches that needle took
    linears: list[str]  # path whose weight the i-th Linear uses

    def body(self, layers: Sequence[Layer], x: Var, prefix: str, training: bool) -> Var:
        """The output of a body."""

    def branch(self, path: str, value: Array) -> None:
        """What a layer with a kink is applied to."""

    def between(self, what: str, value: Array) -> None:
        """A value on the way that nobody sees, but that may leave the domain."""


# -- the block --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A feature of a layer with a label of its own in the coverage, and how a case gets it."""

    shown: Callable[[Any], bool]  # whether a layer has it
    example: Callable[[int, int], tuple[Layer, ...]]  # (width, number of Linears so far) -> layers that do


class Layer(Part, frozen=True, tag=True):
    """A layer, (rows, width) -> (rows, width'). The name of the class is the ``kind`` in a case file."""

    chance: ClassVar[int] = 2  # weight among the kinds that can be drawn at a place
    offered: ClassVar[bool] = True  # a layer of needle's, which another needle may lack; False: written by a user
    called: ClassVar[str] = ""  # needle's class, where it has another name
    stands: ClassVar[str] = "within"  # where an example of it is put: anywhere, or "last" where it may change the width
    bodies: ClassVar[Mapping[str, str]] = {}  # of a container: prefix of the children's paths -> field
    hands_on: ClassVar[bool] = False  # a container whose first layer takes the input, and nothing else does
    quiet: ClassVar[bool] = False  # a container that stays in evaluation mode
    kinked: ClassVar[bool] = (
        False  # at a kink both branches are right: torch and the truth take the one that needle took
    )
    draws: ClassVar[bool] = False  # takes random numbers in training: see `mask`
    used: ClassVar[bool] = True  # whether its parameters get gradients
    plain: ClassVar[Mapping[str, Any]] = {}  # what a failing case gets simpler by, where that is not the default
    variants: ClassVar[Mapping[str, Variant]] = {}

    # -- in the systems -----------------------------------------------------------------------------------------------

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        """The layer as a user of needle builds it; ``body`` builds what is nested in a field."""
        raise NotImplementedError(f"{type(self).__name__} does not say how needle builds it")

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        """As a user of torch does; in the same words, unless it says something else."""
        return self.needle(t, width, body)

    def finish(self, side: Side, module: Any, linears: list[Any]) -> None:
        """What happens to the module once it is built; ``linears`` are the modules of the Linears before it."""

    def written_out(self, t: Any, module: Any) -> Callable[[Any], Any] | None:
        """``forward`` of its torch module in elementary operations (``t`` is torch); None where it has no other.

        The truth of second order has noise at every operation of torch, and none inside one.
        """
        return None

    # -- meaning ------------------------------------------------------------------------------------------------------

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        """What it makes of x, in float64."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it means")

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        """The width that it makes; CaseError where it does not fit. Adds to ``check`` what a pass costs beside its input."""
        return width

    # -- parameters, buffers, random numbers --------------------------------------------------------------------------

    def parameters(self, width: int) -> dict[str, Shape]:
        """Its own parameters, in needle's layout."""
        return {}

    def buffers(self, width: int) -> dict[str, Shape]:
        """Its buffers."""
        return {}

    def trains(self, linears: Sequence[Layer]) -> bool:
        """Whether a parameter of it gets a gradient; ``linears`` are all those of the model."""
        return False

    def start(self, name: str, drawn: Array, scale: float, keep: bool) -> Array:
        """A parameter or buffer before the first step, from standard normal numbers of its shape.

        ``keep`` asks for what the constructor gives, where the layer can be told that.
        """
        fan_in = drawn.shape[0] if name == "weight" else 4
        return drawn * (scale / math.sqrt(fan_in))

    def built(self, rng: np.random.RandomState, width: int) -> Iterator[tuple[str, Array]]:
        """What needle's constructor must give, in the order of its draws, in float64."""
        yield from ()

    def mask(self, rng: np.random.RandomState, shape: Shape) -> Array:
        """The random numbers of a forward pass, as needle must draw them."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it draws")

    @classmethod
    def to_torch(cls, name: str, value: Array) -> Array:
        """A parameter, or what an optimizer keeps for it, in torch's layout."""
        return value

    @classmethod
    def to_needle(cls, name: str, value: Array) -> Array:
        """And back."""
        return value

    # -- drawing, shrinking, telling ----------------------------------------------------------------------------------

    @classmethod
    def possible(cls, at: Site) -> bool:
        """Whether it can stand there."""
        return True

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        """One for that place, and the width that it makes."""
        return cls(), at.width

    @classmethod
    def example(cls, width: int) -> Layer:
        """The simplest one."""
        return cls()

    def nested(self) -> tuple[tuple[str, tuple[Layer, ...]], ...]:
        """The bodies of a container, each with the prefix of its children's paths; () for a plain layer."""
        return tuple([(prefix, getattr(self, name)) for prefix, name in self.bodies.items()])

    def sizes(self) -> set[int]:
        """Widths that it makes of its own accord."""
        return set()

    def resized(self, old: int, new: int) -> Layer:
        """The same with every width ``old`` made ``new``."""
        inner = {n: tuple(x.resized(old, new) for x in getattr(self, n)) for n in self.bodies.values()}
        return replace(self, **inner) if inner else self

    def smaller(self) -> Iterator[Layer]:
        """Simpler ones; its bodies get smaller elsewhere."""
        names, defaults = self.__struct_fields__, self.__struct_defaults__
        usual = dict(zip(reversed(names), reversed(defaults), strict=False)) | dict(self.plain)
        for name in names:
            if name in usual and getattr(self, name) != usual[name]:
                yield replace(self, **{name: usual[name]})

    def described(self, many: Callable[[Sequence[Any]], str]) -> str:
        """In a line; ``many`` describes what is nested in it, or is empty for a layer like all others."""
        inner = [many(body) for _, body in self.nested()]
        return f"{type(self).__name__}({', '.join(inner)})" if inner else ""


def given(**keywords: Any) -> dict[str, Any]:
    """Only the keywords that the case sets: what it leaves out tests the defaults."""
    return {k: v for k, v in keywords.items() if v is not None}
