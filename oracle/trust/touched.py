"""Which cases can a fault show in? Those that run something of what it replaces: in all others, needle does what it always does.

A case is run once with the right needle, and the functions that are entered are noted. What is replaced counts as entered if any
function is that can have to do with it: of a class, any method of it, of the classes that it is made of, and of those made of it.
What cannot be followed in this way counts as entered always.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

import needle
from oracle.trust.patches import Patch, find

# whatever is computed, everything is one of these
_EVERYWHERE = (
    object, needle.autograd.Op, needle.autograd.TensorOp, needle.autograd.TensorTupleOp, needle.autograd.Value,
    needle.Tensor, needle.nn.Parameter, needle.nn.Module, needle.optim.Optimizer,
)  # fmt: skip


def functions_of(path: str) -> frozenset[CodeType] | None:
    """The functions one of which is entered where what stands at this path may play a part; None where nobody knows."""
    owner, name = find(path)
    if not isinstance(owner, type):
        value = vars(owner)[name]
        plain = isinstance(value, FunctionType) and not hasattr(value, "__wrapped__")
        return frozenset([value.__code__]) if plain else None
    if owner in _EVERYWHERE:
        return None
    bases = [kind for kind in owner.__mro__ if kind not in _EVERYWHERE]
    # an op computes wherever it is used, and other things are made first
    begins = "compute" if issubclass(owner, needle.autograd.Op) else "__init__"
    if not any(begins in vars(kind) for kind in bases):
        return None
    kinds = [*bases, *_made_of(owner)]
    return frozenset(code for kind in kinds for value in vars(kind).values() for code in _codes(value))


def _made_of(kind: type[Any]) -> Iterable[type[Any]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _made_of(derived)


def _codes(value: Any) -> Iterable[CodeType]:
    parts = (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),)
    return [part.__code__ for part in parts if isinstance(part, FunctionType)]


class Touched:
    """The paths of many patches, and which of them the cases of a run can have to do with."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        paths = dict.fromkeys(path for patch in patches for path, _ in patch.changes)
        known = {path: functions_of(path) for path in paths}
        self.functions: Mapping[str, frozenset[CodeType]] = {
            p: codes for p, codes in known.items() if codes is not None
        }

    def by(self, run: Callable[[], object]) -> frozenset[str]:
        """The paths that what is run has to do with, of those that can be followed."""
        entered: set[CodeType] = set()

        def note(frame: FrameType, event: str, _: Any) -> None:
            if event == "call":
                entered.add(frame.f_code)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(before)
        return frozenset(path for path, codes in self.functions.items() if not codes.isdisjoint(entered))

    def may_show(self, patch: Patch, paths: frozenset[str]) -> bool:
        """Whether a case that has to do with these paths may be another one with the patch."""
        return any(path not in self.functions or path in paths for path, _ in patch.changes)
