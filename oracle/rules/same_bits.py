"""What must be the same bits, and what must be nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oracle.rules import compare as cmp
from oracle.rules.hearing import NOTHING, Hearing
from oracle.rules.verdict import Divergence, Tally
from oracle.systems.lockstep import Step
from oracle.systems.trace import UNSEEN, Observation, same_bits

LEFT_BEHIND = {
    "graph": "{number} Tensors with an op live on after the {after}, although the loss and all gradients were dropped",
    "live tensors": "the number of live Tensors changes by {number:+d} in the {after}",
    "cycles": "{number} objects are left by the {after} for the cycle collector to free",
}


def unchanged(h: Hearing, part: Sequence[Step]) -> Iterator[Divergence]:
    """Gradients during the step, arrays kept from earlier steps, what is computed twice: the same bits. Proven by
    ``sgd-gradient-scaled`` and ``sgd-parameter-in-place``.
    """
    for step in part:
        seen, t = step.ours.values, step.ours.step
        given, after = h.gradients(step.ours), seen.get("gradient after step", NOTHING)
        if t == h.gap:
            given = {name: g for name, g in given.items() if name != h.late}
        h.verdict.tally.count("exact gradient after step", 0.0, len(given), sum(g.size for g in given.values()))
        for name, before in given.items():
            value = after.get(name)
            wrong = cmp.check_form(t, "gradient after step", name, value, before.shape, before.dtype)
            if wrong is None and not same_bits(value, before):  # type: ignore[arg-type]
                message = f"the step changed the gradient {name} in place"
                wrong = Divergence(t, "gradient after step", name, "exact", message)
            if wrong is not None:
                yield wrong
        kept = seen.get("kept", NOTHING)
        h.verdict.tally.count("exact kept", 0.0, len(kept), len(kept))
        for name, same in kept.items():
            if not same:
                message = _not_kept(name, f"what must stay as it is has changed: {name}")
                yield Divergence(t, "kept", name, "exact", message)


def handed_in(seen: Observation, tally: Tally) -> Iterator[Divergence]:
    """Data, labels, targets and cotangents are what they were, after every pass and after the step. Proven by
    ``loss-shifts-labels``, ``backward-clears-cotangent`` and others.
    """
    for name, same in seen.values.get("handed in", NOTHING).items():
        tally.count("exact handed in", 0.0, 1, 1)
        if not same:
            message = f"needle has written into what it was handed: {name}"
            yield Divergence(seen.step, "handed in", name, "exact", message)


def left_behind(h: Hearing, part: Sequence[Step]) -> Iterator[Divergence]:
    """Gates A and B: a step, or an evaluation, leaves nothing in memory. Proven by the leaks of tests/memory."""
    for step in part:
        for observation in (step.ours, step.ours_eval):
            for quantity, text in LEFT_BEHIND.items():
                for name, number in (observation.values if observation else {}).get(quantity, {}).items():
                    h.verdict.tally.count(f"exact {quantity}", 0.0, 1, 1)
                    if number:
                        after = "evaluation" if observation is step.ours_eval else "step"
                        message = text.format(number=int(number), after=after)
                        yield Divergence(step.ours.step, quantity, name, "exact", message)


def untouched(h: Hearing, part: Sequence[Step]) -> Iterator[Divergence]:
    """Evaluation changes no buffer and no random state, and gives what it gives when nobody looks: the same bits. Proven by
    ``bn-updates-in-eval``.
    """
    for step in part:
        seen = step.ours_eval
        kept = (seen.values if seen else {}).get("untouched", {})
        # a buffer that has changed is why the second time gives something else
        for name, same in sorted(kept.items(), key=lambda item: item[0].endswith(UNSEEN)):
            h.verdict.tally.count("exact untouched", 0.0, 1, 1)
            if not same:
                message = _not_kept(name, f"evaluation changed {name}")
                yield Divergence(step.ours.step, "untouched", name, "exact", message)


def _not_kept(name: str, message: str) -> str:
    return f"other bits: {name}" if name.endswith(UNSEEN) else message
