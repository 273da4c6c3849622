"""A model built from its layers, in any system: needle, torch, or as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oracle.cases import case as c
from oracle.cases.layers import Side


@dataclass
class Built:
    """A model with its layers."""

    module: Any = None
    modules: dict[str, Any] = field(default_factory=dict)  # by path, containers behind what is in them
    quiet: list[Any] = field(default_factory=list)  # those that stay in evaluation mode


def build_layers(
    case: c.TrainCase | c.SecondOrderCase,
    side: Side,
    make: Callable[[c.Layer, int, Callable[[str], Any]], Any],
    sequential: Callable[..., Any],
    named: Callable[[str, Any], Any] = lambda path, module: module,
) -> Built:
    """The model of a case: ``make(layer, width, body)`` for each layer, in the order of the model.

    ``named`` may give what has been made another form, as a variable of a script.
    """
    built, widths = Built(), c.input_widths(case)
    linears: list[Any] = []

    def body(prefix: str, part: Sequence[c.Layer]) -> Any:
        made = []
        for i, layer in enumerate(part):
            path = f"{prefix}{i}"
            prefixes = {name: f"{path}.{inner}" for inner, name in layer.bodies.items()}

            def inner(name: str, layer: c.Layer = layer, prefixes: dict[str, str] = prefixes) -> Any:
                return body(prefixes[name], getattr(layer, name))

            module = named(path, make(layer, widths[path], inner))
            layer.finish(side, module, linears)
            if getattr(layer, "frozen", False):
                for name in layer.parameters(widths[path]):
                    getattr(module, name).requires_grad = False
            if layer.quiet:
                built.quiet.append(module)
            built.modules[path] = module
            made.append(module)
        return sequential(*made)

    built.module = body("", case.model)
    body = None  # type: ignore[assignment]  # it refers to itself, and to the model
    return built
