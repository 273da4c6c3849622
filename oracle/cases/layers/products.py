"""Layers that multiply with a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from msgspec.structs import replace

from oracle.cases.bounds import Argument, Width, require
from oracle.cases.layers.layer import Array, Check, Layer, Pass, Shape, Side, Site, Variant
from oracle.operations import products
from oracle.operations.drawn import Draw
from oracle.operations.tape import Var


class Linear(Layer, frozen=True):
    """``nn.Linear``; ``tie`` shares the weight of the tie-th Linear of the model, ``frozen`` turns gradients off."""

    out: Width
    bias: bool = True
    frozen: bool = False
    tie: Argument | None = None

    chance: ClassVar[int] = 6
    stands: ClassVar[str] = "last"
    variants: ClassVar[Mapping[str, Variant]] = {
        "tied": Variant(
            lambda layer: layer.tie is not None, lambda width, linears: (Linear(width), Linear(width, tie=linears))
        ),
        "frozen": Variant(lambda layer: layer.frozen, lambda width, linears: (Linear(3, frozen=True),)),
        "no bias": Variant(lambda layer: not layer.bias, lambda width, linears: (Linear(3, bias=False),)),
    }

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.Linear(width, self.out, **({} if self.bias else {"bias": False}))

    def finish(self, side: Side, module: Any, linears: list[Any]) -> None:
        if self.tie is not None:
            module.weight = linears[self.tie].weight
        linears.append(module)

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        p.linears.append(path if self.tie is None else p.linears[self.tie])
        bias = p.tensors[f"{path}.bias"] if self.bias else None
        return products.linear(p.tape, x, p.tensors[f"{p.linears[-1]}.weight"], bias)

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        shape, where = (width, self.out), f"model[{path}]"
        check.numbers += width * self.out
        check.products += check.rows * width * self.out
        if self.tie is not None:
            known = check.linears[self.tie] if 0 <= self.tie < len(check.linears) else None
            require(not self.frozen, f"{where}: a Linear with a tie cannot be frozen; freeze the one it is tied to")
            require(known == shape, f"{where}: tie={self.tie} names a Linear of shape {known}, but needs {shape}")
        check.linears.append(shape)
        return self.out

    def parameters(self, width: int) -> dict[str, Shape]:
        weight: dict[str, Shape] = {"weight": (width, self.out)} if self.tie is None else {}
        return weight | ({"bias": (1, self.out)} if self.bias else {})

    def trains(self, linears: Sequence[Layer]) -> bool:
        """A weight that is tied to a frozen one is frozen too."""
        owner = self
        while owner.tie is not None:
            known = linears[owner.tie]
            assert isinstance(known, Linear)
            owner = known
        return (self.bias and not self.frozen) or not owner.frozen

    def built(self, rng: np.random.RandomState, width: int) -> Iterator[tuple[str, Array]]:
        """Weight √2·√(3/in)·U(−1, 1) of (in, out), then bias √2·√(3/out)·U(−1, 1) of (out, 1) as a row (He et al. 2015)."""
        for name, shape in (("weight", (width, self.out)), ("bias", (self.out, 1))):
            if name == "weight" or self.bias:
                drawn = (2 * rng.random_sample(shape) - 1) * (math.sqrt(2) * math.sqrt(3 / shape[0]))
                # a tied weight is drawn by the constructor, then replaced by the shared one
                if name == "bias" or self.tie is None:
                    yield name, drawn.reshape(1, -1) if name == "bias" else drawn

    @classmethod
    def to_torch(cls, name: str, value: Array) -> Array:
        return value.T if name == "weight" else value.reshape(-1)

    @classmethod
    def to_needle(cls, name: str, value: Array) -> Array:
        return value.T if name == "weight" else value.reshape(1, -1)

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        linear = at.linear(at.width)
        assert isinstance(linear, Linear)
        return linear, linear.out

    @classmethod
    def example(cls, width: int) -> Layer:
        return Linear(width)

    def sizes(self) -> set[int]:
        return {self.out}

    def resized(self, old: int, new: int) -> Layer:
        return replace(self, out=new) if self.out == old else self
