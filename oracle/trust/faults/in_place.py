"""What shows only where a user changes a parameter in place, compares one, or is to be refused."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from needle.autograd import Tensor, no_grad
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import around, replace

fault = Chapter("program")


def _whole(old: Any, self: Any, other: Any) -> Any:
    """As a change of the array itself, which somebody else may hold."""
    if not self.cached_data.flags.writeable:
        return old(self, other)
    before = self.cached_data
    made = old(self, other)
    before[...] = self.cached_data
    return made


def _always(old: Any, self: Any, other: Any) -> Any:
    with no_grad():
        return old(self, other)


def _turned(old: Any, self: Any, other: Any) -> Any:
    return old(self, Tensor.make_const(other.cached_data.T * 2))


def _assigned(self: Any, index: Any, value: Any) -> None:
    array = np.array(self.cached_data)
    array[index] = value
    self.data = Tensor.make_const(array)


fault(
    "program-iadd-twice",
    "p += … adds twice",
    "data +=",
    around("autograd.Parameter.__iadd__", lambda old, self, other: old(old(self, other), other)),
)
fault(
    "program-iadd-always",
    "p += … is taken while a graph is recorded",
    "data +=",
    around("autograd.Parameter.__iadd__", _always),
)
fault(
    "program-isub-reversed",
    "p -= x is x - p",
    "data -=",
    around("autograd.Parameter.__isub__", lambda old, self, other: (old(self, other), self.__imul__(-1.0))[0]),
)
fault(
    "program-isub-in-place",
    "p -= … writes into the array, which a user may hold",
    "alias|data -=",
    around("autograd.Parameter.__isub__", _whole),
)
fault(
    "program-itruediv-multiplies",
    "p /= … multiplies",
    "data /=",
    around("autograd.Parameter.__itruediv__", lambda old, self, other: self.__imul__(other)),
)
fault(
    "program-ipow-once",
    "p **= n is p ** (n - 1)",
    "data **=",
    around("autograd.Parameter.__ipow__", lambda old, self, other: old(self, other - 1)),
)
fault(
    "program-imatmul-transposed",
    "p @= x multiplies with twice the transposed",
    "data @=",
    around("autograd.Parameter.__imatmul__", _turned),
)
fault(
    "program-setitem-taken",
    "elements of a Tensor can be assigned",
    "data [...] =",
    replace("Tensor.__setitem__", _assigned),
)


def _compares(name: str, how: Any) -> Any:
    def compared(self: Any, other: Any) -> Any:
        return Tensor.make_const(how(self.cached_data, getattr(other, "cached_data", other)))

    return replace(f"Tensor.{name}", compared)


_TURNED = {
    "gt": operator.lt,
    "ge": operator.le,
    "lt": operator.gt,
    "le": operator.ge,
    "eq": operator.ne,
    "ne": operator.eq,
}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_WITH = {"gt": "> and <", "lt": "> and <", "ge": ">= and <=", "le": ">= and <=", "eq": "== and !=", "ne": "== and !="}
for _name, _how in _TURNED.items():
    fault(
        f"program-{_name}-turned",
        f"x {_SIGNS[_name]} y is the other way round",
        f"data masked by {_WITH[_name]}",
        _compares(f"__{_name}__", _how),
    )
