"""Guards at work: in which cases one can show, and whether it does."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence

import numpy as np

from oracle.cases import case as c
from oracle.trust.guards import of_ops, of_programs, of_training
from oracle.trust.guards.guard import Guard, Guards
from oracle.trust.guards.watching import watching
from oracle.trust.kill_table import diverged

FAMILIES: tuple[Guards, ...] = (of_ops.guard, of_training.guard, of_programs.guard)
GUARDS: dict[str, Guard] = {}
for _family in FAMILIES:
    for _guard in _family:
        if GUARDS.setdefault(_guard.label, _guard) is not _guard:
            raise ValueError(f"{_guard.label} has two guards")

# Parts of NumPy are imported at their first use, and leave something for the cycle collector: not in the middle of a case.
for _function in (np.median, np.unique, np.round):
    _function(np.ones(3))
np.quantile(np.ones(3), (0.25, 0.75))


def looked_at(case: c.Case, guards: Sequence[Guard]) -> tuple[set[str], str]:
    """The labels of the guards that would be wrong somewhere in the case, and the divergence, of which there must be none: nothing is wrong."""
    found: set[str] = set()

    def at(moment: str, facts: object) -> bool:
        found.update(g.label for g in guards if g.moment == moment and g.label not in found and g.when(facts))
        return False

    with watching(at).applied():
        divergence = _apart(case)
    return found, divergence


def killed(case: c.Case, guard: Guard) -> str:
    """What is wrong with the case under the guard, in words; empty where nothing is."""
    with guard.patch().applied():
        return _apart(case)


def _apart(case: c.Case) -> str:
    # in a context of its own: what a guard does to needle's modes ends with the case
    work: Callable[[], str] = lambda: _worded(case)  # noqa: E731
    return contextvars.copy_context().run(work)


def _worded(case: c.Case) -> str:
    found = diverged(case)
    return "" if found is None else f"{found.rule}: {found.message}"
