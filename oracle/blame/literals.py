"""Values as Python source."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WRITTEN_OUT = 240  # elements; longer arrays are packed


def safe(text: str) -> str:
    """Text for a docstring."""
    return text.replace("\\", "/").replace('"""', "'''")


def number(value: float | str | None) -> str:
    """A float as Python reads it; inf and nan are imported by name."""
    return repr(float(value)) if value is not None else "None"


def literal(value: Array) -> str:
    """An array as an expression: numbers where they are few, packed otherwise."""
    value = np.asarray(value)
    if value.size > WRITTEN_OUT:
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        lines = "\n".join(f'    "{text[i : i + 104]}"' for i in range(0, len(text), 104))
        return f"unpack(\n{lines},\n    {value.shape},\n    np.{value.dtype.name},\n)"
    if value.size == 0:
        return f"np.zeros({value.shape}, dtype=np.{value.dtype.name})"
    return f"np.array({_nested(value)}, dtype=np.{_dtype(value)})"


def _dtype(value: Array) -> str:
    return "bool_" if value.dtype == bool else value.dtype.name


def _nested(value: Array) -> str:
    if value.ndim == 0:
        return _element(value[()])
    if value.ndim == 1:
        return f"[{', '.join(_element(v) for v in value)}]"
    rows = [_nested(v) for v in value]
    line = f"[{', '.join(rows)}]"
    return line if len(line) < 90 else "[\n" + textwrap.indent(",\n".join(rows), "    ") + ",\n]"


def _element(value: Any) -> str:
    """The shortest number that reads back as the same bits."""
    if isinstance(value, np.bool_):
        return str(bool(value))
    if not isinstance(value, np.floating):
        return str(int(value))
    short = str(value)
    return short if np.isnan(value) or value.dtype.type(float(short)) == value else repr(float(value))


def mapping(values: dict[Any, Any]) -> str:
    """A dict of ready expressions."""
    if not values:
        return "{}"
    return "{\n" + textwrap.indent("".join(f"{k!r}: {v},\n" for k, v in values.items()), "    ") + "}"


def listed(values: Sequence[str]) -> str:
    line = f"[{', '.join(values)}]"
    return line if len(line) < 90 else "[\n" + textwrap.indent("".join(f"{v},\n" for v in values), "    ") + "]"
