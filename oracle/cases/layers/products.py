"""Layers that multiply with a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from msgspec.structs import replace

from oracle.cases.bounds import Argument, Extent, Margin, Width, require
from oracle.cases.layers.layer import Array, Check, Layer, Pass, Shape, Side, Site, Variant, given
from oracle.operations import elementwise, products, shapes
from oracle.operations.drawn import Draw, one_in
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


WIDEST = 64  # rows that a Conv may make of narrower ones; as wide as a Linear's


class Conv(Layer, frozen=True):
    """``nn.Conv`` on rows that are read as images (channels, height, rest of the width), and rows again behind it.

    None leaves ``padding`` out, which then is (kernel - 1) // 2; ``frozen`` as for `Linear`.
    """

    out: Extent = 1
    channels: Extent = 1
    height: Extent = 1
    kernel: Extent = 1
    stride: Extent = 1
    padding: Margin | None = None
    bias: bool = True
    frozen: bool = False

    chance: ClassVar[int] = 2
    stands: ClassVar[str] = "last"
    variants: ClassVar[Mapping[str, Variant]] = {
        "strided": Variant(lambda layer: layer.stride > 1, lambda width, linears: (Linear(6), Conv(2, 1, 2, 1, 2))),
        "padded": Variant(lambda layer: layer.around > 0, lambda width, linears: (Linear(6), Conv(2, 1, 2, 3))),
        "channels": Variant(lambda layer: layer.channels > 1, lambda width, linears: (Linear(6), Conv(2, 3, 2))),
        "no bias": Variant(lambda layer: not layer.bias, lambda width, linears: (Conv(2, bias=False),)),
    }

    @property
    def around(self) -> int:
        """Zeros on each side."""
        return (self.kernel - 1) // 2 if self.padding is None else self.padding

    def image(self, width: int) -> Shape:
        """(channels, height, columns) of a row."""
        return self.channels, self.height, width // (self.channels * self.height)

    def result(self, width: int) -> Shape:
        """(channels, height, columns) of what it makes of a row."""
        _, h, w = self.image(width)
        rows, columns = ((n + 2 * self.around - self.kernel) // self.stride + 1 for n in (h, w))
        return self.out, rows, columns

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        more = given(padding=self.padding, stride=None if self.stride == 1 else self.stride)
        layer = n.nn.Conv(self.channels, self.out, self.kernel, **more, **({} if self.bias else {"bias": False}))
        return self._between_rows(n, width, layer)

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        layer = t.nn.Conv2d(
            self.channels, self.out, self.kernel, stride=self.stride, padding=self.around, bias=self.bias
        )
        return self._between_rows(t, width, layer)

    def _between_rows(self, side: Side, width: int, layer: Any) -> Any:
        image, made = (-1, *self.image(width)), (-1, math.prod(self.result(width)))
        return side.applied(lambda x, conv: conv(x.reshape(image)).reshape(made), layer)

    def finish(self, side: Side, module: Any, linears: list[Any]) -> None:
        for name in ("weight", "bias") if self.bias else ("weight",):
            setattr(module, name, getattr(module.parts[0], name))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        rows, t = x.shape[0], p.tape
        images = shapes.reshape(t, x, shape=(rows, *self.image(x.shape[1])))
        last = shapes.transpose(t, shapes.transpose(t, images, axes=(1, 2)), axes=(2, 3))
        y = products.conv(t, last, p.tensors[f"{path}.weight"], stride=self.stride, padding=self.around)
        if self.bias:
            y = elementwise.add(t, y, p.tensors[f"{path}.bias"])
        first = shapes.transpose(t, shapes.transpose(t, y, axes=(2, 3)), axes=(1, 2))
        return shapes.reshape(t, first, shape=(rows, math.prod(first.shape[1:])))

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        each, where = self.channels * self.height, f"model[{path}]"
        require(
            width % each == 0, f"{where}: a row of {width} is no image of {self.channels} x {self.height} x columns"
        )
        made = self.result(width)
        require(min(made) > 0, f"{where}: a kernel of {self.kernel} does not fit into {self.image(width)[1:]}")
        kernel = self.kernel**2 * self.channels
        check.parts += 8  # shapes there and back, the product, the sum
        check.numbers += kernel * self.out + check.rows * (math.prod(made) + kernel * made[1] * made[2])
        check.products += check.rows * kernel * math.prod(made)
        return math.prod(made)

    def parameters(self, width: int) -> dict[str, Shape]:
        weight: dict[str, Shape] = {"weight": (self.kernel, self.kernel, self.channels, self.out)}
        return weight | ({"bias": (self.out,)} if self.bias else {})

    def trains(self, linears: Sequence[Layer]) -> bool:
        return not self.frozen

    def start(self, name: str, drawn: Array, scale: float, keep: bool) -> Array:
        return drawn * (scale / math.sqrt(math.prod(drawn.shape[:3]) if name == "weight" else 4))

    def built(self, rng: np.random.RandomState, width: int) -> Iterator[tuple[str, Array]]:
        """Weight √2·√(3/n)·U(−1, 1), then bias 1/√n·U(−1, 1), for n = kernel² channels inputs of a number."""
        inputs = self.kernel**2 * self.channels
        bounds = {"weight": math.sqrt(2) * math.sqrt(3 / inputs), "bias": 1 / math.sqrt(inputs)}
        for name, shape in self.parameters(width).items():
            yield name, (2 * rng.random_sample(shape) - 1) * bounds[name]

    @classmethod
    def to_torch(cls, name: str, value: Array) -> Array:
        return value.transpose(3, 2, 0, 1) if name == "weight" else value

    @classmethod
    def to_needle(cls, name: str, value: Array) -> Array:
        return value.transpose(2, 3, 1, 0) if name == "weight" else value

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        channels = d.of([n for n in (1, 2, 3, 4) if at.width % n == 0])
        pixels = at.width // channels
        height = d.of([n for n in (1, 2, 3, 4, 5, 8) if pixels % n == 0])
        smallest = min(height, pixels // height)
        kernel = d.whole(1, 4)
        padding = d.of((None, None, 0, 1, 2))
        around = (kernel - 1) // 2 if padding is None else padding
        kernel = min(kernel, smallest + 2 * around)  # a smaller one has no more zeros around it than were counted
        around = (kernel - 1) // 2 if padding is None else padding
        kernel = max(1, min(kernel, smallest + 2 * around))
        out, stride, bias, frozen = d.whole(1, 3), d.of((1, 1, 2, 3)), not one_in(d, 4), one_in(d, 10)
        layer = cls(out, channels, height, kernel, stride, padding, bias, frozen)
        if math.prod(layer.result(at.width)) > max(at.width, WIDEST):
            layer = replace(layer, out=1, kernel=1, padding=None)  # which makes an image no larger than it was
        return layer, math.prod(layer.result(at.width))
