"""How far float32 may be from the truth, whatever the order of its sums: computed from the data, never a constant.

A number carries its value in float64 and a first-order bound of the error that any float32 program makes that takes the
same operations: u|value| where an operation rounds, and k·u·Σ|terms| for a sum of k terms in any order or blocking (Higham, 2002,
chapters 3 and 4). What is exact in any order, sums of numbers on a coarse grid, has no error at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

U = 2.0**-24  # unit roundoff of float32
ELEMENTARY = 8  # exp and log: 4 ulp at most, that is 8 u, which is what NumPy's own tests hold them to
TINY = float(np.finfo(np.float32).tiny)


class Rounded:
    """A float64 array and, element by element, by how much float32 may miss it."""

    __array_ufunc__ = None  # array * Rounded is Rounded

    def __init__(self, value: Any, error: Any = 0.0) -> None:
        self.value = np.asarray(value, float)
        self.error = np.broadcast_to(np.asarray(error, float), self.value.shape)

    @staticmethod
    def of(operand: Any) -> Rounded:
        """What has no error but that of its own conversion to float32."""
        return operand if isinstance(operand, Rounded) else _after(np.asarray(operand, float), 0.0)

    def __add__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        return _after(self.value + other.value, self.error + other.error)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __sub__(self, other: Any) -> Rounded:
        return self + -Rounded.of(other)

    def __mul__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        carried = np.abs(self.value) * other.error + np.abs(other.value) * self.error
        return _after(self.value * other.value, carried)

    def __truediv__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        carried = (self.error + np.abs(self.value / other.value) * other.error) / np.abs(other.value)
        return _after(self.value / other.value, carried)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Any) -> Rounded:
        return Rounded.of(other) - self

    def __rtruediv__(self, other: Any) -> Rounded:
        return Rounded.of(other) / self

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.value[index], self.error[index])

    def sqrt(self) -> Rounded:
        """The root, which may be taken as a power: that is an elementary function."""
        y = np.sqrt(self.value)
        return Rounded(y, self.error / (2 * y) + ELEMENTARY * U * y)

    def exp(self) -> Rounded:
        y = np.exp(self.value)
        return Rounded(y, y * self.error + ELEMENTARY * U * y)

    def log(self) -> Rounded:
        y = np.log(self.value)
        return Rounded(y, self.error / self.value + ELEMENTARY * U * np.abs(y))

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Rounded:
        """In any order: k u times the sum of absolute values, or nothing where no order can round."""
        size = np.abs(self.value).sum(axis, keepdims=keepdims)
        y = self.value.sum(axis, keepdims=keepdims)
        k = self.value.size // max(y.size, 1)
        rounds = 0.0 if not self.error.any() and _on_a_grid(self.value, size) else (k - 1) * U * size
        return Rounded(y, self.error.sum(axis, keepdims=keepdims) + rounds)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Rounded:
        total = self.sum(axis, keepdims)
        return total / float(self.value.size // max(total.value.size, 1))

    def __matmul__(self, other: Any) -> Rounded:
        """As sums of products, which may be rounded or not (FMA)."""
        other = Rounded.of(other)
        terms = Rounded(self.value[..., :, None]) * Rounded(other.value)
        carried = np.abs(self.value) @ other.error + self.error @ np.abs(other.value)
        summed = terms.sum(-2)
        return Rounded(self.value @ other.value, summed.error + carried)


def _after(value: Any, carried: Any) -> Rounded:
    """One operation: it rounds its result, unless nothing is carried and the result is a float32 number."""
    carried = np.broadcast_to(np.asarray(carried, float), np.shape(value))
    return Rounded(value, carried + U * np.abs(value) * ((carried > 0) | (np.float32(value) != value)))


def _on_a_grid(terms: Any, size: Any) -> bool:
    """Whether all terms are multiples of one power of two of which no partial sum has 2²⁴: then no order rounds."""
    terms = np.abs(terms[terms != 0])
    if not terms.size:
        return True
    mantissa, exponent = np.frexp(terms)
    whole = (mantissa * 2**53).astype(np.int64)
    grid = 2.0 ** (exponent - 53) * (whole & -whole)
    return bool(np.max(size) <= 2.0**24 * grid.min())


def within(ours: Any, expected: Rounded, what: str = "") -> None:
    """Shape, and each element within its bound; where the bound is 0, the same number."""
    ours = np.asarray(ours.numpy() if hasattr(ours, "numpy") else ours)
    assert ours.shape == expected.value.shape, (what, ours.shape, expected.value.shape)
    # what is left out of first order is U times smaller than the bound; and what is 0 in theory may underflow
    allowed = expected.error * (1 + 2.0**-10) + TINY * (expected.error > 0)
    error = np.abs(ours - expected.value)
    assert np.all(error <= allowed + 2.0**-50 * np.abs(expected.value)), (
        f"{what}: off by {np.max(error):.3g}, {np.max(error / np.maximum(allowed, TINY)):.3g} times what any order explains:\n"
        f"{ours}\n{expected.value}"
    )
