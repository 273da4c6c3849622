"""torch without its compiler: nothing here is compiled, and to import what compiles takes longer than all of torch.

torch's optimizers import ``torch._dynamo``, 800 modules and 1.2 s, in order to tell it that they are not to be compiled;
``backward`` with a cotangent imports sympy, 0.6 s, in order to compare two shapes. Until somebody wants more of them,
stand-ins do.

So they do for what torch imports for the sake of its compiler, 0.35 s of 1.25, where `before_torch` comes first: a command that runs
in a process of its own, and no plugin or test.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Mapping
from typing import Any


class _Decompositions:
    """In place of torch's table of what operations are made of, all of it: vmap registers eight that nothing here asks for."""

    def __contains__(self, operation: Any) -> bool:
        return True

    def __getitem__(self, operation: Any) -> Any:
        return lambda *args, **kwargs: _real(TAKEN_APART).decomposition_table[operation](*args, **kwargs)

    def get(self, operation: Any) -> Any:
        """What an operation is made of, or None."""
        return _real(TAKEN_APART).decomposition_table.get(operation)


SHAPES, TAKEN_APART = "torch._meta_registrations", "torch._decomp"
EARLY: dict[str, dict[str, Any]] = {SHAPES: {}, TAKEN_APART: {"decomposition_table": _Decompositions()}}
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
        found = getattr(_real(self.__name__), name)
        _real(SHAPES)  # whoever wants more may want them, too, and does not ask
        return found


def _real(name: str) -> Any:
    """The module itself, in place of the one that stands in for it."""
    if isinstance(sys.modules.get(name), _StandIn):
        _put(name, None)
    return importlib.import_module(name)


def before_torch() -> None:
    """Put the stand-ins for what torch imports, if it has not been imported yet."""
    spec = importlib.util.find_spec("torch")
    if "torch" in sys.modules or spec is None or not spec.submodule_search_locations:
        return
    sys.modules.update(_made(EARLY))
    # what it has inside is found as ever: a name is taken from a package without a look at its folder alone if it has one
    inside = TAKEN_APART.rpartition(".")[2]
    vars(sys.modules[TAKEN_APART])["__path__"] = [os.path.join(spec.submodule_search_locations[0], inside)]


def without_compiler() -> None:
    """Put the other stand-ins where nothing has imported the modules yet."""
    for name, module in _made(STAND_INS).items():
        if name not in sys.modules:
            _put(name, module)


def _made(stand_ins: Mapping[str, Mapping[str, Any]]) -> dict[str, types.ModuleType]:
    made: dict[str, types.ModuleType] = {}
    for name, given in stand_ins.items():
        made[name] = _StandIn(name)
        vars(made[name]).update(given)
    return made


def _put(name: str, module: types.ModuleType | None) -> None:
    above, _, last = name.rpartition(".")
    package = importlib.import_module(above)
    if module is not None:
        sys.modules[name] = module
        setattr(package, last, module)
    else:
        del sys.modules[name]
        vars(package).pop(last, None)
