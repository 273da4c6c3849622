"""A difference that rounding does not explain, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from oracle.check.arrays import Array


class Difference(AssertionError):
    """What rounding cannot explain. The message says it; ``name``, ``index``, ``ours``, ``torch``, ``truth``, ``error``,
    ``allowed`` and ``share`` (of 16) have the numbers, ``shape`` is that of the tensor, ``bad`` has all names that differ, ``inputs`` and ``cotangents`` the arrays of a drawn case.
    """

    name: str = ""
    index: tuple[int, ...] = ()
    ours: Any = None
    torch: Any = None
    truth: Any = None
    error: float = math.inf
    allowed: float = math.nan
    share: float = math.inf
    bad: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    inputs: tuple[Array, ...] = ()
    cotangents: tuple[Array, ...] = ()


def line(what: str, text: str) -> str:
    """A line of a message."""
    return f"  {what:<10} {text}"


def number(x: Any) -> str:
    """A number with as many digits as float32 has; a complex one too."""
    if np.iscomplexobj(x):
        return f"{x.real:.9g}{x.imag:+.9g}j"
    return f"{x:.9g}"


def as_if(ours: Array, truth: Array, name: str, others: Mapping[str, Array]) -> str:
    """What the numbers look like instead: a usual mistake in words, or ""."""
    if np.isnan(ours).any() and not np.isnan(truth).any():
        return f"{int(np.isnan(ours).sum())} nan"
    if not (np.isfinite(ours).all() and np.isfinite(truth).all()) or not truth.size:
        return ""
    if not ours.any() and truth.any():
        return "all zero"
    if truth.size > 1 and ours.shape != truth.shape:
        swapped = ours.ndim == truth.ndim and ours.ndim > 1 and ours.shape == np.swapaxes(truth, -1, -2).shape
        if swapped and _near(ours, np.swapaxes(truth, -1, -2)):
            return "transposed"
        if ours.size == truth.size and _near(ours.ravel(), truth.ravel()):
            return "torch's numbers in another shape"
        return ""
    if ours.shape != truth.shape:
        return ""
    if truth.ndim > 1 and truth.shape[-1] == truth.shape[-2] and _near(ours, np.swapaxes(truth, -1, -2)):
        return "transposed"
    for axis in range(truth.ndim):
        if truth.shape[axis] > 1 and _near(ours, np.flip(truth, axis)):
            return f"reversed along axis {axis}"
    for other, value in others.items():
        if other != name and value.shape == ours.shape and value.any() and _near(ours, value):
            return f"torch's {other}"
    with np.errstate(all="ignore"):
        factor = (ours * truth.conj()).sum() / (np.abs(truth) ** 2).sum() if truth.any() else 0.0
        mean = (ours - truth).mean()
    several = np.unique(truth[truth != 0]).size > 1  # one number is some multiple of any other
    if factor and 1e-6 < abs(factor) < 1e6 and _near(ours, factor * truth):
        return "" if abs(factor - 1) < 1e-5 or not (several or _usual(factor)) else times(factor)
    if np.unique(truth).size > 1 and _near(ours, truth + mean):
        return f"torch's plus {mean:.6g}"
    return ""


def _usual(factor: Any) -> bool:
    """−1, a whole number or one part of it: a sign, a mean for a sum, a 2 that is left out."""
    if np.iscomplexobj(factor):
        return False
    value = max(abs(factor), 1 / abs(factor))
    return round(value) <= 64 and math.isclose(value, round(value), rel_tol=1e-5)


def times(factor: Any, reason: str = "") -> str:
    """A factor, and what it may come from; for itself, what it is: no size of one tensor is a reason."""
    if reason or np.iscomplexobj(factor):
        return f"torch's times {factor:.6g}" + (f" ({reason})" if reason else "")
    for value, words in ((1 / factor, f"1/{round(abs(1 / factor))}"), (factor, "")):
        if round(abs(value)) > 1 and math.isclose(value, round(value), rel_tol=1e-5):
            return f"torch's times {factor:.6g}" + (f" ({words})" if words else "")
    root = round(1 / factor**2) if factor > 0 else 0
    if 2 <= root <= 4096 and math.isclose(factor, 1 / math.sqrt(root), rel_tol=1e-5):
        return f"torch's times {factor:.6g} (1/√{root})"
    root = round(factor**2)
    if factor > 0 and 2 <= root <= 4096 and math.isclose(factor, math.sqrt(root), rel_tol=1e-5):
        return f"torch's times {factor:.6g} (√{root})"
    return f"torch's times {factor:.6g}"


def reasons(shape: tuple[int, ...]) -> dict[str, float]:
    """What a factor may come from in a tensor of this shape: numbers by name, and one divided by each. That one fits one factor
    says little: √4 columns are as many as 2 rows.
    """
    sides = [("columns", shape[-1]), ("rows", shape[0])] if len(shape) > 1 else []
    sizes = {f"the number of {what}": float(n) for what, n in (*sides, ("elements", math.prod(shape))) if n > 1}
    known = sizes | {f"√ of {what}": math.sqrt(n) for what, n in sizes.items()}
    return known | {f"1 / {what}": 1 / value for what, value in known.items()}


def fits(factor: Any, value: float) -> bool:
    """Whether a factor may be a number of `reasons`, but for its sign."""
    return not np.iscomplexobj(factor) and math.isclose(abs(factor), value, rel_tol=1e-4)


def _near(a: Array, b: Array) -> bool:
    """The same but for a ten-thousandth: for words, never for a verdict."""
    with np.errstate(all="ignore"):
        return bool(np.all(np.abs(a - b) <= 1e-4 * np.abs(b) + 1e-5 * np.abs(b).max(initial=0)))
