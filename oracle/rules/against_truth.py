"""Rules G and P: every tensor against the truth, within the noise that is measured on this very tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from oracle.cases import case as c
from oracle.operations.tape import U
from oracle.rules import compare as cmp
from oracle.rules.hearing import NOTHING, Hearing, Values, aliases, side_by_side
from oracle.rules.verdict import Divergence
from oracle.systems.lockstep import Step
from oracle.systems.ours import is_ours
from oracle.systems.trace import Observation

# Units of the largest logit that the loss of another needle may be off by, on top: the course defines its SoftmaxLoss as
# logsumexp(z) - z_y, two numbers as large as the logits. Both, their difference, and the mean over the rows.
LOGITS = 4 * U


def against_truth(
    h: Hearing, seen: Sequence[Observation], peer: Sequence[Observation], expected: Values, rule: str = "G"
) -> Iterator[Divergence]:
    """Rule G: activations, loss, adjoints, gradients, buffers and evaluations are within 16 x the noise of the replicas,
    or torch makes at least half of the error; what the truth does not have must not exist. Fails on any tensor of any
    step. Proven by most faults of the groups op and layer, ``tanh-backward`` for one.
    """
    aliased = aliases(*seen)
    adjoints = {n: v for n, v in expected.get("adjoint", NOTHING).items() if n not in aliased}
    if not is_ours(h.lockstep.ndl):
        # without retain_grad, which another needle may lack, there is no adjoint to look at
        observed = set().union(*(s.values.get("adjoint", NOTHING) for s in seen))
        adjoints = {n: v for n, v in adjoints.items() if n in observed}
    compared = {quantity: adjoints if quantity == "adjoint" else values for quantity, values in expected.items()}
    for joined, group in side_by_side(compared, len(seen)):
        truth = joined.replicas(group, len(seen))
        allowed = cmp.G_LIMIT * h.tolerance(truth, joined)
        if isinstance(h.case.loss, c.SoftmaxLoss) and rule == "G" and not is_ours(h.lockstep.ndl):
            _of_large_logits(h, joined, allowed, expected)
        yield from h.within(seen, peer, joined, truth[0], allowed, rule).values()
    for observation in seen if is_ours(h.lockstep.ndl) or rule == "P" else ():  # the course gives constants gradients
        for quantity in ("activation", "loss", "adjoint", "gradient", "buffer"):
            known = expected.get(quantity, NOTHING)
            for name in observation.values.get(quantity, NOTHING):
                if name not in known and not (quantity == "adjoint" and name in aliased):
                    message = f"{quantity} {name} should not exist: nothing flows there"
                    yield Divergence(observation.step, quantity, name, "unexpected", message)


def _of_large_logits(h: Hearing, joined: cmp.Joined, allowed: cmp.Array, expected: Values) -> None:
    """`LOGITS` of those of its own micro-batch, for each loss."""
    for i, (quantity, name) in enumerate(joined.keys):
        of = f"{len(h.case.model) - 1}{name.removeprefix('loss')}"
        logits = expected.get("activation", NOTHING).get(of) if quantity == "loss" else None
        if logits is not None:
            largest = np.abs(logits[0]).reshape(len(allowed), -1).max(axis=1, initial=0.0)
            for row, size in zip(allowed, largest, strict=True):
                joined.part(row, i)[...] += LOGITS * size


def torch_against_truth(
    h: Hearing, steps: Sequence[Step], expected: Values, *, evaluation: bool = False
) -> Iterator[Divergence]:
    """Rule P: rule G on torch. It fails where the *oracle* is wrong, and never counts for or against needle. Where needle
    makes the same error as torch, and torch in float64 gives the truth, the rounding is shared and the oracle is right.
    Proven by a wrong definition planted in the tests.
    """
    ours = [(s.ours_eval if evaluation else s.ours) for s in steps]
    peers = [(s.peer_eval if evaluation else s.peer) for s in steps]
    seen = [s for s in ours if s is not None]
    for divergence in against_truth(h, [p for p in peers if p is not None], seen, expected, "P"):
        if not _shared(h, steps, divergence, evaluation=evaluation):
            yield divergence


def _shared(h: Hearing, steps: Sequence[Step], f: Divergence, *, evaluation: bool) -> bool:
    """Whether needle makes the same error, and torch in float64 confirms the truth."""
    at = next((i for i, s in enumerate(steps) if s.ours.step == f.step), None)
    numbers = (f.ours, f.peer, f.truth, f.error)
    if at is None or not all(isinstance(n, float) for n in numbers):
        return False
    # the observation that rule P judges is torch's: "ours" and "peer" have changed places
    theirs, mine, right, error = (np.array(n, np.float64) for n in numbers)
    if not cmp.made_by_both(theirs, mine, right):
        return False
    run = h.lockstep.peer()
    seen = [s.ours_eval if evaluation and s.ours_eval else s.ours for s in steps]
    step, kink = steps[at], h.lockstep.common_kinks(seen)[at]
    run.load(step.after if evaluation and step.after else step.before)
    exact = run.evaluate(f.step, kink) if evaluation else run.gradients(f.step, kink)
    return bool(abs(exact.values[f.quantity][f.name][f.index] - right) <= cmp.VALIDATED * error)
