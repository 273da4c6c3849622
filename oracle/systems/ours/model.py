"""The model of a case in a needle, as a user would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c

Array = npt.NDArray[Any]
Build = Callable[[Any, Any, int, "Callable[[str, Sequence[c.Layer]], Any]"], Any]

BESIDE = Path(__file__).resolve().parents[3] / "needle"


def is_ours(ndl: Any) -> bool:
    """Whether it is the needle beside this oracle: whose tape rule OP can read, and which offers more than the course asks."""
    return Path(str(getattr(ndl, "__file__", ""))).resolve().parent == BESIDE


def array_of(value: Any) -> Array:
    """The ndarray of a Tensor, or of a plain array; a needle may compute it only now."""
    if not hasattr(value, "cached_data"):
        return np.asarray(value)
    data = value.cached_data
    return np.asarray(value.realize_cached_data() if data is None else data)


def grad_of(tensor: Any) -> Any:
    """Its gradient; in the course there is no attribute before the first backward pass."""
    return getattr(tensor, "grad", None)


@dataclass
class NeedleModel:
    """A model built from a Case."""

    module: Any
    modules: dict[str, Any]  # by path
    eval_modules: list[Any]


def build(case: c.TrainCase | c.SecondOrderCase, ndl: Any, layers: Mapping[type, Build]) -> NeedleModel:
    """The model of a case as a user would write it."""
    model = NeedleModel(None, {}, [])
    linears: list[Any] = []
    widths = c.input_widths(case)

    def body(prefix: str, part: Sequence[c.Layer]) -> Any:
        made = []
        for i, layer in enumerate(part):
            path = f"{prefix}{i}"

            def inner(name: str, sub: Sequence[c.Layer], path: str = path) -> Any:
                return body(f"{path}.{name}", sub)

            module = layers[type(layer)](ndl, layer, widths[path], inner)
            if isinstance(layer, c.Linear):
                if layer.tie is not None:
                    module.weight = linears[layer.tie].weight
                linears.append(module)
            if isinstance(layer, c.Linear | c.BatchNorm | c.LayerNorm) and layer.frozen:
                bare = isinstance(layer, c.Linear) and not layer.bias
                for parameter in (module.weight,) if bare else (module.weight, module.bias):
                    parameter.requires_grad = False
            if isinstance(layer, c.Eval):
                model.eval_modules.append(module)
            model.modules[path] = module
            made.append(module)
        return ndl.nn.Sequential(*made)

    model.module = body("", case.model)
    body = None  # type: ignore[assignment]  # it refers to itself, and to the model
    return model
