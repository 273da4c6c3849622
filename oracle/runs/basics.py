"""What is wrong with every Tensor of a package, and so shows in whatever is made of it: looked for first, each by a small program.

A look is made in a child. What it finds is an `Entry`, and `mended` knows what would be right, so that what follows from it is known.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oracle.apart import Broken, Died, apart
from oracle.blame.entry import HAZARD, WRONG, Entry, functions_called, run
from oracle.runs import hazards
from oracle.systems.candidate import candidate
from oracle.systems.source import line_of

ADDED, SHARED, ASKS = "gradients added up", "arrays written into", "requires_grad"

_ADDED = """import numpy as np
import needle as ndl

x = ndl.Tensor(np.ones(2, dtype="float32"))
y = (x * 3.0).sum()
y.backward()
y.backward()
print(x.grad{numpy})
"""
_SHARED = """import numpy as np
import needle as ndl

a = np.ones(2, dtype="float32")
w = ndl.Tensor(a)
optimizer = ndl.optim.SGD([w], lr=0.5)
(w * w).sum().backward()
optimizer.step()
print(a)
"""
_ASKS = """import numpy as np
import needle as ndl

x = ndl.Tensor(np.ones(2, dtype="float32"))
k = ndl.Tensor(np.ones(2, dtype="float32"), requires_grad=False)
print((x * k).requires_grad, (k * x).requires_grad)
"""


def _added_up(ndl: Any) -> list[Entry]:
    """Gradients that a second pass through the same graph adds to."""
    for numpy in (".numpy()", ""):
        text = _ADDED.format(numpy=numpy)
        printed, raised = run(text)
        if not raised:
            break
    if raised or printed != "[6. 6.]":
        return []
    sentence = "a second backward pass adds to the gradients that the first one left, where the course overwrites them"
    return [Entry(ADDED, WRONG, sentence, hazards.walk_of(ndl), text, printed, exact="[3. 3.]")]


def _written_into(ndl: Any) -> list[Entry]:
    """Tensors that are the array that they are made of, with an optimizer that writes into it."""
    printed, raised = run(_SHARED)
    if raised or printed == "[1. 1.]":
        return []
    sentence = (
        "Tensor(array) keeps the array itself, without a copy, and SGD.step writes into what the user has handed in"
    )
    return [Entry(SHARED, HAZARD, sentence, line_of(ndl, "Tensor", "__init__"), _SHARED, printed, exact="[1. 1.]")]


def _asks_for_none(ndl: Any) -> list[Entry]:
    """Results that ask for no gradient, although one of their operands does."""
    printed, raised = run(_ASKS)
    if raised or "False" not in printed:
        return []
    sentence = "`x * k` is a constant if k asks for no gradient, although x does: nothing arrives at x"
    return [Entry(ASKS, WRONG, sentence, _decided(ndl), _ASKS, printed, exact="True True")]


def _decided(ndl: Any) -> str:
    """Where it is decided whether a result asks for a gradient: the last function that has the word, and is no property."""
    x = ndl.Tensor(np.ones(2, np.float32))
    with functions_called(ndl) as called:
        x * ndl.Tensor(np.ones(2, np.float32), requires_grad=False)
    for owner in (getattr(ndl, "Value", None), ndl.Tensor, *ndl.Tensor.__mro__):
        for name, thing in vars(owner).items() if owner is not None else ():
            function = getattr(thing, "__func__", thing)
            if not isinstance(function, types.FunctionType) or function.__qualname__ not in called:
                continue
            codes = [const for const in function.__code__.co_consts if isinstance(const, types.CodeType)]
            if any("requires_grad" in code.co_names for code in codes):  # any(x.requires_grad for x in …)
                return line_of(ndl, "Tensor", name)
    return line_of(ndl, "Tensor")


LOOKS: Mapping[str, Callable[[Any], list[Entry]]] = {
    ASKS: _asks_for_none,
    SHARED: _written_into,
    ADDED: _added_up,
    hazards.EXPONENTIAL: hazards.exponential,
}


def found() -> list[Entry]:
    """What they find."""
    entries: list[Entry] = []
    for key in LOOKS:
        try:
            entries += apart(_looked, key, patience=hazards.SECONDS, heard=bytearray())
        except (Broken, Died):
            continue
    if not any(entry.key == hazards.EXPONENTIAL for entry in entries) and hazards.is_exponential():
        entries += apart(hazards.endless, patience=hazards.SECONDS, heard=bytearray())
    return entries


def _looked(key: str) -> list[Entry]:
    with np.errstate(all="ignore"):
        return LOOKS[key](candidate())


# -- what is right -------------------------------------------------------------------------------------------------------


def put_init(ndl: Any, key: str) -> bool:
    """A Tensor that has an array of its own, or one that asks for a gradient whatever it is told."""
    theirs = ndl.Tensor.__init__

    def init(self: Any, array: Any, *args: Any, **given: Any) -> None:
        theirs(self, np.array(array) if key == SHARED and isinstance(array, np.ndarray) else array, *args, **given)
        if key == ASKS:
            self.requires_grad = True

    ndl.Tensor.__init__ = init
    return True
