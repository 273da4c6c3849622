"""What do numbers of a dtype round to, and what is lost below? The unit roundoff travels with the tensor."""

from __future__ import annotations

from dataclasses import dataclass

from oracle.operations.tape import SINGLE, Rounding

# Numbers of float16 end at 65,504, and two limits lie below. A single operation is judged up to nearly half of that: its formula may
# add two such numbers. In a training run sums, losses and updates follow each other, none of them seen by itself, and each may be
# some times what goes in: there a sixth of it ends the domain.
LARGEST_OF_AN_OPERATION, LARGEST_OF_A_RUN = 3e4, 1e4


@dataclass(frozen=True)
class Dtype:
    """A float dtype."""

    rounding: Rounding
    least: float  # what a rounding may lose of a number near zero
    largest: float  # in a training run: beyond it, a formula may overflow on its way


DTYPES = {
    "float16": Dtype(Rounding(2.0**-11, 2.0**-14), 2.0**-24, LARGEST_OF_A_RUN),
    "float32": Dtype(SINGLE, 2.0**-126, float("inf")),
    "float64": Dtype(Rounding(2.0**-53, 2.0**-1022), 2.0**-1022, float("inf")),
}


def wider(*dtypes: str) -> str:
    """The widest of them, which an op that has them as operands gives."""
    return max(dtypes, key=lambda dtype: int(dtype[5:]))
