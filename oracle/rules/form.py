"""Form: names, order, shapes and dtypes, and the values as the constructors made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from oracle.cases import inputs
from oracle.operations import tape as d
from oracle.rules.compare import Joined
from oracle.rules.hearing import Hearing
from oracle.rules.verdict import Divergence
from oracle.systems.lockstep import Step


def structure(h: Hearing, part: Sequence[Step]) -> Iterator[Divergence]:
    """On the first step: `model.parameters()` gives each parameter once, in torch's order; initial values are those that
    the global generator gives, within the roundings of their formula. Proven by ``parameters-reversed``, ``linear-init-fan-out``.
    """
    for step in part:
        seen = step.ours.values
        if "parameters" not in seen:
            continue
        right = h.lockstep.listed
        h.verdict.tally.count("parameters", 0.0, 1, len(right))
        listed = list(seen["parameters"]["model.parameters()"])
        if listed != right:
            message = f"model.parameters() gives {listed}, not {right}"
            yield Divergence(0, "parameters", "model.parameters()", "exact", message)
        built = inputs.built_state(h.case, h.case.seed_for("build"))
        joined = Joined([("initial", name) for name in built], [v.shape for v in built.values()])
        expected = joined.steps([list(built.values())])
        # drawn in float64, scaled with a few roundings, cast once
        unit = h.model.rounding.unit
        # near zero, the last rounding of float64 shows, of numbers up to 2; float16 has no smaller ones than its least
        near = {d.U: 1e-12}.get(unit, max(2.0**-47, h.model.least))
        allowed = 4 * unit * np.abs(expected) + near
        yield from h.within([step.ours], [step.peer], joined, expected, allowed, "exact").values()
