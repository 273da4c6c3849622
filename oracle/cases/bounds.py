"""Within what everything in a case lies: numbers, sizes, the attributes of an op, and the work that a case may ask for.

What a file says is typed and bounded here before anything is allocated; `tests/unit/oracle/test_damaged.py` damages files.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from oracle.operations import MOST, MOST_AXES, OPERATIONS

FLOAT32 = 3.4028234663852886e38  # the largest there is
DEEPEST = 100  # levels of JSON: 49 containers in one another
LARGEST_FILE = 4 << 20  # bytes; a drawn case has some thousand
MOST_PARTS = 1000  # layers and operations of a model
MOST_BYTES = 2e9  # while a case is judged
MOST_SECONDS = 300.0

Width = Annotated[int, Meta(ge=1, le=4096)]
Rows = Annotated[int, Meta(ge=1, le=4096)]
Number = Annotated[float, Meta(ge=-FLOAT32, le=FLOAT32)]
NonNegative = Annotated[float, Meta(ge=0, le=FLOAT32)]
Scale = Annotated[float, Meta(ge=0, le=1e30)]  # of normal numbers, which float32 then holds
Positive = Annotated[float, Meta(gt=0, le=FLOAT32)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Place = Annotated[int, Meta(ge=0, lt=2**31)]  # counts elements or parameters, modulo their number
Step = Annotated[int, Meta(ge=1, le=100_000)]
Extent = Annotated[int, Meta(ge=1, le=64)]  # of an image or a kernel
Margin = Annotated[int, Meta(ge=0, le=64)]
Argument = Annotated[int, Meta(ge=0, lt=MOST_PARTS)]

_Axis = Annotated[int, Meta(ge=-MOST_AXES, lt=MOST_AXES)]
_Shape = Annotated[tuple[Annotated[int, Meta(ge=-1, le=MOST)], ...], Meta(max_length=MOST_AXES)]  # -1 in a reshape
_Whole = Annotated[int, Meta(gt=-(2**31), lt=2**31)]
_Slice = tuple[_Whole | None, _Whole | None, Annotated[int, Meta(ge=1, lt=2**31)] | None]
# {"array": (2, 0, 2)}, {"mask": (1, 0, 1)}, {"number": (2,)} or {"ellipsis": ()}: see oracle.operations.indexing.slices.
# Not a union with int and Literal, nor with bounds of its own: beside a tuple of fixed length msgspec crashes on those.
_Place = dict[str, Annotated[tuple[_Whole, ...], Meta(max_length=64)]]
_ATTRIBUTES: dict[str, Any] = {
    "c": Number,
    "c1": Number,
    "eps": Positive,
    "axis": _Axis,
    "shape": _Shape,
    "dilation": Annotated[int, Meta(ge=0, le=64)],
    "padding": Annotated[int, Meta(ge=0, le=64)],
    "stride": Annotated[int, Meta(ge=1, le=64)],
    "pick": _Whole,
    "labels": Annotated[tuple[Annotated[int, Meta(ge=0, lt=4096)], ...], Meta(max_length=4096)],
    "index": Annotated[tuple[_Slice | _Place | None, ...], Meta(max_length=MOST_AXES)],
    "low": Number | None,
    "high": Number | None,
    "correction": NonNegative,
    "largest": bool,
}
_AXES: dict[Any, Any] = {  # which forms an op takes, its definition says
    int | None: _Axis | None,
    int | tuple[int, ...] | None: _Axis | tuple[_Axis, ...] | None,
    int | tuple[int, ...]: _Axis | tuple[_Axis, ...],
    tuple[int, ...]: tuple[_Axis, ...],
    tuple[int, int] | None: tuple[_Axis, _Axis] | None,
}


class CaseError(ValueError):
    """A case, or a case file, that cannot be: the message names the field, the value and the rule."""


def require(condition: bool, message: str) -> None:
    """CaseError unless the condition holds."""
    if not condition:
        raise CaseError(message)


@functools.cache
def attribute_types(op: str) -> Mapping[str, Any]:
    """What a case may say of an op: the keywords of its definition, but for those that are no plain data."""
    definition = OPERATIONS[op].definition
    hints = typing.get_type_hints(definition)
    found = {}
    for name, parameter in inspect.signature(definition).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and hints[name] is not Any:
            found[name] = _AXES[hints[name]] if name == "axes" else _ATTRIBUTES[name]
    return found


@functools.cache
def _needed(op: str) -> frozenset[str]:
    """Those that needle or torch cannot be called without."""
    calls = (OPERATIONS[op].needle, OPERATIONS[op].torch)
    parameters = [p for call in calls for p in inspect.signature(call).parameters.values()]
    return frozenset(p.name for p in parameters if p.default is p.empty) & set(attribute_types(op))


def attributes(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an op, tuples for lists; CaseError for one that it does not have, or out of its range."""
    require(op in OPERATIONS, f"unknown op {op!r:.50}; known are {', '.join(sorted(OPERATIONS))}")
    types, found = attribute_types(op), {}
    for name, value in given.items():
        require(name in types, f"attributes: {op} has no {name!r:.50}, but {', '.join(types) or 'none at all'}")
        try:
            found[name] = msgspec.convert(value, types[name])  # 2 becomes 2.0 where that is meant, and lists tuples
        except msgspec.ValidationError as error:
            raise CaseError(f"attributes: {name} of {op}: {error}") from None
    for name in _needed(op):
        require(name in found, f"attributes: {op} needs {name!r}")
    return found


def affordable(size: float, seconds: float) -> None:
    """CaseError, with the figure, for a case that asks for too much memory (bytes) or work."""
    require(
        size <= MOST_BYTES and seconds <= MOST_SECONDS,
        f"the case asks for about {size / 1e9:,.1f} GB and {seconds:,.0f} s: at most {MOST_BYTES / 1e9:g} GB and "
        f"{MOST_SECONDS:g} s are given to one; take fewer rows, features, layers or steps",
    )


def shallow(raw: Any) -> None:
    """CaseError for JSON that is nested too deeply for a case."""
    level: Sequence[Any] = [raw]
    for _ in range(DEEPEST):
        level = [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return
    raise too_deep()


def too_deep() -> CaseError:
    """The error of JSON that is nested too deeply."""
    return CaseError(f"nested too deeply: {DEEPEST} levels are enough for every case")
