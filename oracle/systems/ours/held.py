"""Modules of a user's own, with their layers in a list or a dict. By names of this file, so that they can be pickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oracle.cases.layers.containers import JOINS

_made: dict[tuple[Any, str], Any] = {}


def joined(ndl: Any, join: str, left: Any, right: Any) -> Any:
    """A module of two modules, whose results are joined."""
    name, base = "Joined", ndl.nn.Module
    if (base, name) not in _made:

        def init(self: Any, join: str, left: Any, right: Any) -> None:
            base.__init__(self)
            self.join, self.left, self.right = join, left, right

        def forward(self: Any, x: Any) -> Any:
            return JOINS[self.join](self.left(x), self.right(x))

        space = {"__init__": init, "forward": forward, "__module__": __name__, "__qualname__": name}
        _made[base, name] = globals()[name] = type(name, (base,), space)
    return _made[base, name](join, left, right)


def held(ndl: Any, kind: str, layers: Sequence[Any]) -> Any:
    """A module with these layers, one after the other."""
    name = {"list": "InList", "dict": "InDict", "ModuleList": "InModuleList"}[kind]
    base = ndl.nn.Module
    if (base, name) not in _made:

        def init(self: Any, layers: Sequence[Any]) -> None:
            base.__init__(self)
            self.layers = _in_modules(ndl, layers) if kind == "ModuleList" else list(layers)
            if kind == "dict":
                self.layers = {f"layer {i}": layer for i, layer in enumerate(layers)}

        def forward(self: Any, x: Any) -> Any:
            for layer in self.layers.values() if kind == "dict" else self.layers:
                x = layer(x)
            return x

        space = {"__init__": init, "forward": forward, "__module__": __name__, "__qualname__": name}
        _made[base, name] = globals()[name] = type(name, (base,), space)
    return _made[base, name](layers)


def _in_modules(ndl: Any, layers: Sequence[Any]) -> Any:
    """A ModuleList of them, made in every way in which one can be: empty, of some, and of one more."""
    first = ndl.nn.ModuleList()
    first.append(layers[0])
    whole = ndl.nn.ModuleList([first[0], *layers[1:-1]])
    if len(layers) > 1:
        whole.append(layers[-1])
    return whole
