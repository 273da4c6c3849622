"""Which mistakes must the oracle find?

The catalogue: deliberate mistakes in needle, each a few lines, with the part of needle to blame, a file per group. A fault
is a `Patch`; `oracle.trust.kill_table` runs them all and says which are found, how fast, and by which rule. `CONTROLS` are
the skeletons of the faults without a fault: they must survive, or a kill would say nothing about what is planted in them.

The suspect is written as words that must occur in what the oracle says ("Tanh backward"; alternatives with "|"); a class
of needle.ops stands for the names of its operations (`oracle.operations`).
"""

from oracle.trust.faults import (
    adam,
    arguments,
    clipping,
    conditional,
    containers,
    corners,
    dropout,
    dtypes,
    elementwise,
    handed,
    higher,
    in_place,
    large,
    layers,
    loading,
    losses,
    mishaps,
    nonfinite,
    norms,
    products,
    programs,
    reductions,
    schedules,
    sgd,
    shapes,
    small,
    tuples,
    walk,
    whole,
)
from oracle.trust.faults.chapter import Fault
from oracle.trust.patches import Patch

__all__ = ["CONTROLS", "FAULTS", "Fault"]

_CHAPTERS = [
    chapter.fault
    for chapter in (
        *(sgd, adam, clipping, walk),
        *(elementwise, shapes, reductions, products, tuples, losses, arguments),
        *(
            norms,
            dropout,
            layers,
            conditional,
            small,
            large,
            higher,
            programs,
            schedules,
            containers,
            loading,
            in_place,
            mishaps,
        ),
        *(dtypes, whole, handed, corners, nonfinite),
    )
]
FAULTS: dict[str, Fault] = {}
CONTROLS: dict[str, Patch] = {}
for _chapter in _CHAPTERS:
    CONTROLS |= _chapter.controls
    for _fault in _chapter.faults:
        if FAULTS.setdefault(_fault.name, _fault) is not _fault:
            raise ValueError(f"two faults are called {_fault.name}")
