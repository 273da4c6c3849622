"""How inputs are drawn: shapes by name, numbers of six kinds, from bytes that Hypothesis makes smaller."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import EllipsisType
from typing import Any

import numpy as np

from oracle.check.arrays import Array

Dim = int | str | EllipsisType
Shape = tuple[Dim, ...]

# What correct programs part over, or rather do not: ordinary numbers, a mean far from zero, large ones, zeros, equal ones,
# and so small ones that squares vanish.
KINDS = ("normal", "offset", "big", "zeros", "ties", "tiny")
SIZES = (3, 4, 5, 2, 7, 8, 1)  # of a dimension that has a name; 1 is drawn like any other, 0 comes on top
LEADING: tuple[tuple[int, ...], ...] = ((2,), (), (3, 2), (1, 1, 2))  # what ``...`` stands for
MOST_DRAWN = 512  # elements that are drawn one by one; those of a larger array come from a drawn seed


@lru_cache(maxsize=1)
def _numbers() -> Array:
    """65,536 numbers: 256 short ones, the shortest first, then normally distributed ones of three decimals."""
    whole = [0.0] + [s * n for n in range(1, 41) for s in (1.0, -1.0)]
    halves = [s * (n + 0.5) for n in range(20) for s in (1.0, -1.0)]
    tenths = [s * n / 10 for n in range(1, 70) if n % 5 for s in (1.0, -1.0)]
    short = (whole + halves + tenths)[:256]
    rest = np.round(np.random.RandomState(20240229).standard_normal(65536 - len(short)), 3)
    return np.concatenate([short, rest])


def numbers(drawn: bytes, shape: tuple[int, ...], kind: str, dtype: Any) -> Array:
    """An array out of drawn bytes: two for each element, or four in all for one that is large."""
    if kind not in KINDS:
        raise ValueError(f"kinds are {', '.join(KINDS)}, but got {kind!r}")
    size = int(np.prod(shape, dtype=int))
    if np.dtype(dtype).kind == "c":
        half = len(drawn) // 2
        real = np.zeros(0).real.dtype if dtype == np.complex128 else np.dtype(np.float32)
        parts = [numbers(d, shape, kind, real) for d in (drawn[:half], drawn[half:])]
        return np.asarray(parts[0] + 1j * parts[1], dtype=dtype)
    if size <= MOST_DRAWN:
        a = _numbers()[np.frombuffer(drawn, ">u2")].reshape(shape)
    else:
        a = np.random.default_rng(list(drawn)).standard_normal(shape)
    made = {
        "normal": lambda: a,
        "offset": lambda: a + 100,
        "big": lambda: a * 1e3,
        "zeros": lambda: a * 0,
        "ties": lambda: np.round(a * 2) / 2,
        "tiny": lambda: a * 1e-20,
    }
    return np.asarray(made[kind](), dtype=dtype)


def length(shape: tuple[int, ...], dtype: Any) -> int:
    """How many bytes `numbers` takes."""
    size = int(np.prod(shape, dtype=int))
    one = 2 * size if size <= MOST_DRAWN else 4
    return 2 * one if np.dtype(dtype).kind == "c" else one


def named(shapes: Sequence[Shape]) -> list[str]:
    """The names of dimensions that are to be drawn, in order; that of ``"3*hidden"`` is ``hidden``."""
    names: dict[str, None] = {}
    for shape in shapes:
        for dim in shape:
            if isinstance(dim, str):
                names[_multiple(dim, shape)[1]] = None
            elif not (dim is ... or (isinstance(dim, int) and dim >= 0)):
                raise TypeError(f"a shape has numbers from 0 on, names, or ..., but got {dim!r} in {shape}")
    return list(names)


def _multiple(dim: str, shape: Shape) -> tuple[int, str]:
    """``"3*hidden"`` as 3 and ``hidden``. Any other text would be one more name, of a size that has nothing to do with the rest."""
    found = re.fullmatch(r"(?:([1-9][0-9]*) *\* *)?(\w+)", dim)
    if found is None or not found[2].isidentifier():
        raise ValueError(
            f'{dim!r} in {shape} is no size: write a name, as in "hidden", or a multiple of one, as in "3*hidden", '
            f"or give arrays instead of shapes"
        )
    return int(found[1] or 1), found[2]


def choices(shapes: Sequence[Shape]) -> dict[str, tuple[int, ...]]:
    """The sizes that each name is drawn from. What comes first differs from name to name, and from the numbers beside them, as
    long as there are enough: what is mixed up does not show where sizes are equal.
    """
    taken = {dim for shape in shapes for dim in shape if isinstance(dim, int)}
    taken |= {2} if any(... in shape for shape in shapes) else set()  # the first of `LEADING`
    out: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(named(shapes)):
        first = next((n for n in SIZES if n not in taken), SIZES[i % len(SIZES)])
        taken.add(first)
        out[name] = (first, *(n for n in SIZES if n != first))
    return out


def resolved(shape: Shape, sizes: Mapping[str, int], leading: tuple[int, ...]) -> tuple[int, ...]:
    """A shape in numbers."""
    out: list[int] = []
    for dim in shape:
        if isinstance(dim, int):
            out.append(dim)
        elif isinstance(dim, str):
            factor, name = _multiple(dim, shape)
            out.append(factor * sizes[name])
        else:
            out.extend(leading)
    return tuple(out)


def written(a: Array) -> str:
    """An array as code: what is not 0 alone, where that is little; a large one by its shape."""
    kind = f"np.{a.dtype}"
    if not a.size or not a.any():
        return f"np.zeros({a.shape}, {kind})"
    if a.size > 1 and (a == a.flat[0]).all():
        return f"np.full({a.shape}, {_short(a.flat[0])}, {kind})"
    at = [tuple(int(i) for i in index) for index in np.argwhere(a)]
    if len(at) <= min(6, a.size // 3):
        name = "".join(f"; x[{', '.join(map(str, i))}] = {_short(a[i])}" for i in at)
        return f"x = np.zeros({a.shape}, {kind}){name}"
    if a.size > 64:
        return f"error.inputs[…]   # {a.shape}, {a.dtype}: too large to be shown"
    text = np.array2string(a, separator=", ", threshold=10**9, max_line_width=10**9, formatter={"all": _short})
    return f"np.array({' '.join(text.split())}, {kind})"


def assigned(name: str, a: Array) -> str:
    """``name = …`` as a line of code."""
    text = written(a)
    return f"{name} = {text[4:].replace('; x[', f'; {name}[')}" if text.startswith("x = ") else f"{name} = {text}"


def _short(x: Any) -> str:
    """The shortest text that gives the same number."""
    if np.iscomplexobj(x):
        return f"{_short(x.real)}{'' if str(x.imag).startswith('-') else '+'}{_short(x.imag)}j"
    size = abs(float(x))
    if not math.isfinite(size):
        return f"{'-' if x < 0 else ''}np.{'inf' if size > 0 else 'nan'}"
    if float(x).is_integer() and size < 1e6:
        return str(int(x))
    if 1e-4 <= size < 1e6:
        return np.format_float_positional(x, unique=True, trim="-")
    return np.format_float_scientific(x, unique=True, trim="-")
