"""A model as source: its layers built by their own blocks, in a system that takes down what is asked of it."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.blame.sources import operations_text
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.cases.built import build_layers
from oracle.cases.layers.layer import Shape

DROPOUT = '''class Dropout(torch.nn.Module):
    """Dropout with the mask that needle draws."""

    def __init__(self, p):
        super().__init__()
        self.p, self.mask = p, None

    def forward(self, x):
        if not self.training:
            return x
        return x * (self.mask / (1 - self.p) if self.p < 1 else torch.zeros_like(x))
'''
TORCH_APPLY = '''class TorchApply(torch.nn.Module):
    """A function as a module of torch."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, torch.nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)
'''


class Written:
    """An expression that is not computed but written: attributes, calls and operators give longer ones.

    To set an attribute is a statement, and goes to ``lines``.
    """

    def __init__(self, text: str, lines: list[str], *, whole: bool = True) -> None:
        vars(self).update(_text=text, _lines=lines, _whole=whole)

    def __str__(self) -> str:
        return str(vars(self)["_text"])

    def __getattr__(self, name: str) -> Written:
        if name.startswith("__"):
            raise AttributeError(name)
        return Written(f"{_operand(self)}.{name}", vars(self)["_lines"])

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["_lines"].append(f"{self}.{name} = {_text(value)}")

    def __call__(self, *positional: Any, **keywords: Any) -> Written:
        return Written(f"{_operand(self)}({_arguments(positional, keywords)})", vars(self)["_lines"])

    def __getitem__(self, index: Any) -> Written:
        return Written(f"{_operand(self)}[{_text(index)}]", vars(self)["_lines"])


def _operator(sign: str) -> tuple[Callable[[Any, Any], Written], Callable[[Any, Any], Written]]:
    def there(self: Written, other: Any) -> Written:
        return Written(f"{_operand(self)} {sign} {_operand(other)}", vars(self)["_lines"], whole=False)

    def back(self: Written, other: Any) -> Written:
        return Written(f"{_operand(other)} {sign} {_operand(self)}", vars(self)["_lines"], whole=False)

    return there, back


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "matmul": "@", "pow": "**"}.items():
    _there, _back = _operator(_sign)
    setattr(Written, f"__{_name}__", _there)
    setattr(Written, f"__r{_name}__", _back)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Written) else repr(value)


def _operand(value: Any) -> str:
    whole = not isinstance(value, Written) or vars(value)["_whole"]
    return _text(value) if whole else f"({value})"


def _arguments(positional: Any, keywords: dict[str, Any]) -> str:
    return ", ".join([*map(_text, positional), *(f"{name}={_text(value)}" for name, value in keywords.items())])


class WrittenSide:
    """The `oracle.cases.layers.Side` that takes down how a model is built in needle, or in torch."""

    def __init__(self, *, in_torch: bool) -> None:
        self.lines: list[str] = []
        self.helpers: list[str] = []
        self.ops: list[str] = []
        self.nn = self.write("nn")
        self._in_torch = in_torch
        self._inside: list[Written] | None = None  # values of operations in the function that is being written

    def write(self, text: str) -> Written:
        """An expression."""
        return Written(text, self.lines)

    def named(self, path: str, module: Any) -> Written:
        """A variable for the layer at a path, which has been made."""
        name = variable(path)
        self.lines.append(f"{name} = {module}")
        return self.write(name)

    def sequential(self, *made: Any) -> Written:
        """A model of layers, or a body."""
        return self.nn.Sequential(*made)

    def applied(self, function: Callable[..., Any], *parts: Any) -> Written:
        """A module of the user's own: the function is called once on names, and what it does is written down."""
        if self._in_torch:
            self._help(TORCH_APPLY)
        names = list(inspect.signature(function).parameters)
        values: list[Written] = []
        self._inside = values
        out = function(*map(self.write, names))
        self._inside = None
        if len(values) > 1:  # each operation in a line of its own
            made = f"program_{len(self.lines)}"
            body = [f"    v{i} = {value}" for i, value in enumerate(values, 1)]
            self.lines += [f"def {made}({', '.join(names)}):", *body, f"    return {out}"]
        else:
            made = f"lambda {', '.join(names)}: {values[0] if values else out}"
        return self.write(f"{'TorchApply' if self._in_torch else 'Apply'}({', '.join([made, *map(_text, parts)])})")

    def op(self, name: str, *operands: Any, **attributes: Any) -> Written:
        """An operation, through a table of them."""
        self.ops.append(name)
        caller = self.write("torch_op" if self._in_torch else "needle_op")
        assert self._inside is not None, "an operation outside a function"
        self._inside.append(caller(name, *operands, **attributes))
        return self.write(f"v{len(self._inside)}")

    def zeros(self, size: int) -> Written:
        """A Tensor of zeros."""
        return self.write("torch.zeros" if self._in_torch else "ndl.init.zeros")(size)

    def either(self, name: str, otherwise: Callable[[], Any]) -> Written:
        """A layer that not every needle has; the script may be run with another one."""
        return self.write(f'nn.{name}() if hasattr(nn, "{name}") else {otherwise()}')

    def ReLU(self) -> Written:
        """Of torch."""
        return self.nn.ReLU()

    def Dropout(self, p: float) -> Written:
        """Of torch, with a mask that can be given."""
        self._help(DROPOUT)
        return self.write("Dropout")(p)

    def _help(self, text: str) -> None:
        if text not in self.helpers:
            self.helpers.append(text)


def variable(path: str) -> str:
    """The variable of a layer."""
    return "layer_" + path.replace(".", "_")


def layouts(case: c.TrainCase | c.SecondOrderCase) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Parameters that torch holds in another layout: the order of the axes, needle's shape, torch's."""
    found = {}
    for slot in inputs.slots(case)[0]:
        numbered = np.arange(math.prod(slot.shape)).reshape(slot.shape)
        there = c.LAYERS[slot.layer].to_torch(slot.name.rpartition(".")[2], numbered)
        if there.shape != slot.shape or not np.array_equal(there, numbered):
            axes = next(
                axes
                for axes in itertools.permutations(range(numbered.ndim))
                if np.array_equal(numbered.transpose(axes).ravel(), there.ravel())
            )
            found[slot.name] = axes, slot.shape, there.shape
    return found


def model_values(case: c.TrainCase | c.SecondOrderCase) -> dict[str, Any]:
    """What the templates say of the model."""
    needle, torch = WrittenSide(in_torch=False), WrittenSide(in_torch=True)
    built = build_layers(
        case, needle, lambda layer, *about: layer.needle(needle, *about), needle.sequential, needle.named
    )
    other = build_layers(case, torch, lambda layer, *about: layer.torch(torch, *about), torch.sequential, torch.named)
    needle.lines.append(f"model = {built.module}")
    torch.lines.append(f"model = {other.module}")
    return {
        "needle_lines": needle.lines,
        "torch_lines": torch.lines,
        "helpers": torch.helpers,
        "layers_text": ", ".join(f'"{path}": {module}' for path, module in built.modules.items()),
        "quiet_text": ", ".join(map(str, built.quiet)),
        "apply": any("Apply(" in line for line in needle.lines),
        "ops": operations_text(needle.ops) if needle.ops else "",
        "layouts": layouts(case),
        "loss": type(case.loss).__name__,
        "rows": case.data.rows,
    }
