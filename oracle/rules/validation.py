"""Validation: the truth itself against the same model in torch float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from oracle.rules import compare as cmp
from oracle.rules.compare import Array
from oracle.rules.hearing import NOTHING, Hearing, Values, aliases, side_by_side
from oracle.systems.lockstep import Step


def truth_against_torch(h: Hearing, part: Sequence[Step], truth: Values) -> Iterator[str]:
    """The exact replica is within 1e-4 of rule G's limit of torch in float64, tensor by tensor; a failure is one of the
    oracle. Proven by a wrong definition planted in the tests.
    """
    run = h.lockstep.peer()
    seen = []
    for step, kink in zip(part, h.lockstep.common_kinks([s.ours for s in part]), strict=True):
        run.load(step.before)
        seen.append(run.gradients(step.ours.step, kink))
    aliased = aliases(*seen)
    compared: dict[str, dict[str, Array]] = {}
    for quantity, values in truth.items():
        for name, value in values.items():
            if quantity == "adjoint" and name in aliased:
                continue
            if any(s.values.get(quantity, NOTHING).get(name) is None for s in seen):
                yield f"torch float64 has no {quantity} {name}"
                continue
            compared.setdefault(quantity, {})[name] = value
    for joined, group in side_by_side(compared, len(seen)):
        replicas = joined.replicas(group, len(seen))
        exact = joined.steps([[s.values[quantity][name] for quantity, name in joined.keys] for s in seen])
        tops = joined.largest(cmp.share_of(exact, replicas[0], cmp.VALIDATED * cmp.tolerance(replicas, joined)))
        h.count(joined, tops, {}, "validation")
        for t, i in np.argwhere(tops > 1):
            quantity, name = joined.keys[i]
            yield (
                f"the truth is wrong: {quantity} {name} is off by {tops[t, i] * cmp.VALIDATED:.3g} x tolerance"
                f" from torch float64"
            )
