"""What do numbers of a dtype round to, and what is lost below? The unit roundoff travels with the tensor."""

from __future__ import annotations

from dataclasses import dataclass

from oracle.operations.tape import SINGLE, Rounding


@dataclass(frozen=True)
class Dtype:
    """A float dtype."""

    rounding: Rounding
    least: float  # what a rounding may lose of a number near zero
    largest: float  # beyond it, a formula may overflow on its way


DTYPES = {
    "float16": Dtype(Rounding(2.0**-11, 2.0**-14), 2.0**-24, 1e4),
    "float32": Dtype(SINGLE, 2.0**-126, float("inf")),
    "float64": Dtype(Rounding(2.0**-53, 2.0**-1022), 2.0**-1022, float("inf")),
}


def wider(*dtypes: str) -> str:
    """The widest of them, which an op that has them as operands gives."""
    return max(dtypes, key=lambda dtype: int(dtype[5:]))
