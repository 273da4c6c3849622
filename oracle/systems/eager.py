"""torch without its compiler: nothing here is compiled, and to import what compiles takes longer than all of torch.

torch's optimizers import ``torch._dynamo``, 800 modules and 1.2 s, in order to tell it that they are not to be compiled;
``backward`` with a cotangent imports sympy, 0.6 s, in order to compare two shapes. Until somebody wants more of them,
stand-ins do.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch  # noqa: F401 - before this, there is nothing to stand in for

STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"graph_break": lambda: None, "disable": lambda function, *args, **kwargs: function},
    "torch.fx.experimental.symbolic_shapes": {
        "sym_eq": lambda one, other: one == other,  # torch.Size, of plain numbers
        "expect_true": lambda holds: holds,
    },
}
PACKAGES = ("torch._dynamo",)


class _StandIn(types.ModuleType):
    """A few names of a module; who asks for any other gets the module itself, which then takes this one's place."""

    def __getattr__(self, name: str) -> Any:
        # inspect looks at all modules for the first two; an import asks for the third, and only packages have it
        if name in ("__file__", "__wrapped__") or (name == "__path__" and self.__name__ not in PACKAGES):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            _put(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


def without_compiler() -> None:
    """Put the stand-ins where nothing has imported the modules yet."""
    for name, given in STAND_INS.items():
        if name not in sys.modules:
            module = _StandIn(name)
            vars(module).update(given)
            _put(name, module)


def _put(name: str, module: types.ModuleType | None) -> None:
    above, _, last = name.rpartition(".")
    package = importlib.import_module(above)
    if module is not None:
        sys.modules[name] = module
        setattr(package, last, module)
    else:
        del sys.modules[name]
        delattr(package, last)
