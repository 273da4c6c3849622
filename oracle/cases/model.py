"""A model as a tree of layers: its paths, its widths, and what a pass through it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oracle.cases.bounds import CaseError
from oracle.cases.layers import Layer, Linear

Shape = tuple[int, ...]


def walk(model: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer with its path ("2.left.0"), containers before their children, in the order of the model."""
    for i, layer in enumerate(model):
        path = f"{prefix}{i}"
        yield path, layer
        for name, body in layer.nested():
            yield from walk(body, f"{path}.{name}")


class Checked:
    """A model whose widths fit, and what a pass costs; raises CaseError with the path of the layer that does not fit."""

    def __init__(self, model: Sequence[Layer], rows: int, features: int) -> None:
        self.model, self.rows, self.features = model, rows, features
        self.linears: list[Shape] = []
        self.parts = 0  # layers and operations; with what follows, what a pass costs
        self.numbers = 0.0  # values of all layers, and parameters
        self.products = 0.0  # multiplications in products
        self.widths: dict[str, int] = {}  # path -> width of the layer's input
        self.width = self.body(model, features, "", True)

    def body(self, layers: Sequence[Layer], width: int, prefix: str, training: bool) -> int:
        """The width that a body makes."""
        for i, layer in enumerate(layers):
            path = f"{prefix}{i}"
            self.widths[path] = width
            self.parts += 1
            self.numbers += self.rows * width
            try:
                width = layer.fits(self, width, path, training)
            except CaseError:
                raise
            except ValueError as error:
                raise CaseError(f"model[{path}]: {error}") from None
        return width


_last: Checked | None = None


def checked(model: tuple[Layer, ...], rows: int, features: int) -> Checked:
    """`Checked`, kept for the model that was asked about last: a case asks several times, and one made of it does again."""
    global _last
    if _last is None or _last.model is not model or (_last.rows, _last.features) != (rows, features):
        _last = Checked(model, rows, features)
    return _last


def output_width(model: tuple[Layer, ...], rows: int, features: int) -> int:
    """Width of the model's output."""
    return checked(model, rows, features).width


def trains(model: Sequence[Layer]) -> bool:
    """Whether any parameter gets a gradient."""
    layers = [layer for _, layer in walk(model)]
    linears = [layer for layer in layers if isinstance(layer, Linear)]
    return any(layer.trains(linears) for layer in layers)
