"""The verdict on a training run: a lockstep of two systems, and a list of rules.

1. needle and torch run in lockstep, float32, synchronised from torch's state before every step; all observables are kept.
2. One pass of the truth covers all steps of the case.
3. The rules compare. The first divergence, in the order in which quantities arise, is the verdict.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.operations.tape import COHERENT, Noise
from oracle.rules import same_bits
from oracle.rules.against_truth import against_truth, torch_against_truth
from oracle.rules.alone import findings_for
from oracle.rules.calls import Calls
from oracle.rules.compare import Array
from oracle.rules.domain import large_data, out_of_domain
from oracle.rules.form import structure
from oracle.rules.hearing import NOTHING, Hearing, promoted, raised
from oracle.rules.torch_update import torch_update
from oracle.rules.units import HUGE
from oracle.rules.update import update
from oracle.rules.validation import truth_against_torch
from oracle.rules.verdict import BACKWARD, FORWARD, Clipping, Divergence, Evidence, Update, Verdict
from oracle.systems import ours as ours_side
from oracle.systems import trace, truth
from oracle.systems.lockstep import Lockstep, Step
from oracle.systems.surroundings import without_advice
from oracle.systems.trace import HANDED_IN, UNSEEN

CHUNK = 1 << 15  # rows x width x steps of the truth held at once; beyond it, steps are judged in several passes


def judge(case: c.TrainCase, ndl: Any, *, peer_too: bool, validate: bool = False) -> Verdict:
    """The verdict on a training run. ``peer_too`` applies rule P; ``validate`` checks the truth against torch float64."""
    return judge_run(Lockstep(case, ndl), peer_too=peer_too, validate=validate)


def judge_run(lockstep: Lockstep, *, peer_too: bool, validate: bool = False) -> Verdict:
    """The verdict on a run, which remains at hand."""
    case, clock = lockstep.case, lockstep.clock
    hearing = Hearing(case, lockstep)
    verdict = hearing.verdict
    chunk = max(1, CHUNK // (case.data.rows * max(case.data.features, 64)))
    steps = lockstep.steps(hearing.findings)
    found: list[Divergence] = []
    in_domain = True
    part: list[Step] = []
    while in_domain and not found:
        part = list(itertools.islice(steps, chunk))
        clock.turn("rules")
        if not part:
            break
        complete = [s for s in part if s.ours.failure is None]
        usable = 0
        if complete:
            usable = _training(hearing, complete, verdict.steps, found, peer_too=peer_too, validate=validate)
        elif not verdict.steps and "initial" in part[0].ours.values:
            found.extend(structure(hearing, part[:1]))
        if usable and not verdict.steps and case.dtypes is None:
            found.extend(_operators(hearing))
        verdict.steps += usable
        in_domain = usable == len(complete)
        if in_domain:
            for step in part:
                found.extend(raised(step.ours))
                found.extend(raised(step.ours_eval) if step.ours_eval is not None else ())
                verdict.beside.extend(promoted(step.ours))
                verdict.beside.extend(promoted(step.ours_eval) if step.ours_eval is not None else ())
    verdict.out_of_domain = int(not in_domain)
    if found:
        verdict.divergence = min(found, key=lambda f: f.order)
        if not ours_side.is_ours(lockstep.ndl):
            verdict.beside += independent(verdict.divergence, found)
        verdict.search = functools.partial(_search, hearing, part)
    clock.turn("")
    verdict.seconds = clock.seconds
    return verdict


def independent(first: Divergence, found: Sequence[Divergence]) -> list[Divergence]:
    """What is wrong beside the first divergence, and cannot come of it: of another needle, one mistake must not hide another.

    Both systems take over the same state before every step and every evaluation, and an update is judged from the gradients that
    needle itself has made: so an update, a clipping, an evaluation and the rest each stand alone. What a step gives is right as
    far as the first divergence in it; a layer that is wrong in training is not told again in evaluation.
    """
    told, others = {_part_of(first)}, []
    shapeless = {f.step for f in found if f.rule in ("shape", "missing", "unexpected")} | {
        f.step for f in found if f.failure is not None
    }
    wrong = {f.name.partition("#")[0] for f in found if f.quantity == "activation"}
    clipped = any(_part_of(f) == "clip" for f in found)  # then the update starts from what is wrong
    for f in sorted(found, key=lambda f: f.order):
        part = _part_of(f)
        if part in told or f.failure is not None or f.step in shapeless:
            continue
        # from a gradient that is no number nothing can be said of what is made of it
        known = f.allowed is None or math.isfinite(f.allowed)
        numbers = f.rule in ("L", "T") and known if part in ("update", "clip") else f.rule == "G"
        again = part == "evaluation" and f.name.partition("#")[0] in wrong
        after = part == "buffer" and (first.quantity in FORWARD or bool(wrong))
        following = (part == "pass" and f.step <= first.step) or (part == "update" and clipped)
        if again or after:
            told.add(part)  # and so may be whatever else of this part is wrong
        elif numbers and not following:
            told.add(part)
            others.append(f)
    return others


_PARTS = {
    **dict.fromkeys(("velocity", "first moment", "second moment", "parameter", "gradient after step"), "update"),
    **dict.fromkeys(("clip norm", "clipped"), "clip"),
    **dict.fromkeys(("evaluation", "untouched"), "evaluation"),
    "buffer": "buffer",
    "initial": "initial",
}


def _part_of(f: Divergence) -> str:
    """Which part of a step, as far as they stand alone."""
    return _PARTS.get(f.quantity, "pass")


def _training(
    h: Hearing, part: list[Step], first: int, found: list[Divergence], *, peer_too: bool, validate: bool
) -> int:
    """Applies all rules to consecutive steps; returns how many of them are inside the domain."""
    lockstep, clock = h.lockstep, h.lockstep.clock
    clock.turn("truth")
    expected = truth.training(
        h.case,
        *lockstep.slots,
        [s.before.tensors for s in part],
        lockstep.batches,
        lockstep.masks,
        lockstep.common_kinks([s.ours for s in part]),
        Noise(h.case.seed_for("noise"), coherent=COHERENT),
        first,
    )
    clock.turn("rules")
    usable = _inside(h, expected, part)
    part = part[:usable]
    if not part:
        return 0
    own = _cut(expected, usable)
    ours, peers = [s.ours for s in part], [s.peer for s in part]
    found.extend(structure(h, part))
    found.extend(against_truth(h, ours, peers, own))
    found.extend(update(h, ours, part, own))
    if h.case.dtypes is None:
        found.extend(torch_update(h, part))
    found.extend(same_bits.unchanged(h, part))
    for seen in ours:
        found.extend(same_bits.handed_in(seen, h.verdict.tally))
    found.extend(same_bits.left_behind(h, part))
    _evaluations(h, part, found, peer_too=peer_too)
    if peer_too:
        _contradicted(h, [*torch_against_truth(h, part, own), *update(h, peers, part, own, "P")])
    if validate:
        clock.turn("validation")
        h.verdict.oracle_errors.extend(truth_against_torch(h, part, own))
        clock.turn("rules")
    return usable


def _evaluations(h: Hearing, part: Sequence[Step], found: list[Divergence], *, peer_too: bool) -> None:
    done = [s for s in part if s.after is not None and s.ours_eval is not None and s.ours_eval.failure is None]
    if not done:
        return
    lockstep, clock = h.lockstep, h.lockstep.clock
    clock.turn("truth")
    expected = truth.evaluation(
        h.case,
        [s.after.tensors for s in done if s.after is not None],
        np.stack([lockstep.batches.x[s.ours.step, 0] for s in done]),
        lockstep.common_kinks([s.ours_eval for s in done if s.ours_eval is not None]),
        Noise(h.case.seed_for("evaluation"), coherent=COHERENT),
    )
    clock.turn("rules")
    usable = _inside(h, expected, done)
    done = done[:usable]
    if not done:
        return
    own = _cut(expected, usable)
    seen = [s.ours_eval for s in done if s.ours_eval is not None]
    found.extend(against_truth(h, seen, [s.peer_eval for s in done if s.peer_eval is not None], own))
    if peer_too:
        _contradicted(h, torch_against_truth(h, done, own, evaluation=True))
    found.extend(same_bits.untouched(h, done))


def _contradicted(h: Hearing, found: Sequence[Divergence] | Any) -> None:
    """What rule P has found is said of the oracle."""
    h.verdict.oracle_errors.extend(f"rule P: torch's {f.message} at step {f.step}" for f in found)


def _inside(h: Hearing, expected: truth.Truth, part: Sequence[Step]) -> int:
    """How many of the first steps there are until one is out of the domain."""
    steps = len(part)
    bad = out_of_domain(expected.values, f"{len(h.case.model) - 1}", isinstance(h.case.loss, c.SoftmaxLoss))[:steps]
    if h.largest < np.inf:
        bad = bad | _too_large(h, expected, part)
    bad = bad | _leaps(h, expected, part) | large_data(h.lockstep.batches.x[[s.ours.step for s in part]])
    expected.values.pop("inside", None)  # nobody sees it
    return int(np.argmax(bad)) if bad.any() else steps


def _too_large(h: Hearing, expected: truth.Truth, part: Sequence[Step]) -> Array:
    """Steps in which a number of the truth, or of the state, is so large that a formula in float16 may overflow."""
    bad: Array = np.array([any(np.abs(v).max(initial=0) > h.largest for v in s.before.tensors.values()) for s in part])
    for values in expected.values.values():
        for value in values.values():
            size = np.abs(value).max(axis=(0, *range(2, value.ndim)), initial=0)
            bad = bad | ~(size < h.largest)
    return bad


def _leaps(h: Hearing, expected: truth.Truth, part: Sequence[Step]) -> Array:
    """Steps in which the update may overflow on its way: in SGD's (|u| + |g| + λ|θ|) · max(lr, 1), in Adam's (|g| + λ|θ|)², or lr."""

    def top(arrays: Iterable[Array]) -> float:
        return max((float(np.abs(v).max(initial=0)) for v in arrays), default=0.0)

    decay, rates = h.case.optimizer.weight_decay or 0.0, h.rates([s.ours.step for s in part])[:, 0]
    bad = np.zeros(len(part), dtype=bool)
    for i, (step, rate) in enumerate(zip(part, rates, strict=True)):
        slope = top(v[0, i] for v in expected.values.get("gradient", {}).values()) + decay * top(
            step.before.tensors.values()
        )
        velocity = top(step.before.slots.get("velocity", {}).values())
        size = (slope + velocity) * max(rate, 1.0) if isinstance(h.case.optimizer, c.SGD) else max(slope**2, rate)
        bad[i] = not size < min(h.model.largest, HUGE)
    return bad


def _cut(expected: truth.Truth, steps: int) -> dict[str, dict[str, Array]]:
    return {q: {n: v[:, :steps] for n, v in vs.items()} for q, vs in expected.values.items()}


def _operators(h: Hearing) -> Sequence[Divergence]:
    """Rule OP on the tape of the first step: every node by itself, from needle's own inputs and adjoint, within a
    first-order bound. Proven by ``sigmoid-backward``, and most of the group op.
    """
    found = h.findings
    h.verdict.tally.count("OP", found.largest, found.tensors, found.elements, f"{h.digest} {found.where}")
    if not found.bad:
        return ()
    f = found.bad[0]
    return [Divergence(0, "operator", f.name, "OP", f.message, f.index or None, f.ours, None, f.truth, f.dtype,
                       f.error, f.allowed)]  # fmt: skip


# -- evidence: the failing step in numbers, and taken once more -----------------------------------------------------------


def _search(h: Hearing, part: Sequence[Step]) -> Evidence:
    """What there is about the divergence; about those beside it, where the verdict keeps it."""
    verdict = h.verdict
    assert verdict.divergence is not None
    for i, other in enumerate(verdict.beside):
        verdict.evidence_beside[i] = _evidence(h, other, part)
    return _evidence(h, verdict.divergence, part)


def _evidence(h: Hearing, divergence: Divergence, part: Sequence[Step]) -> Evidence:
    evidence = Evidence()
    step = next((s for s in part if s.ours.step == divergence.step), None)
    if step is None:
        return evidence
    run, quiet = h.lockstep.ours, divergence.quantity in ("evaluation", "untouched")
    if divergence.failure is None:
        evidence.modes = ours_side.modes(run, evaluation=quiet)
        evidence.update = _updates(h, divergence, step, part)
        evidence.clipping = _clipped(divergence, step)
        listed = run.optimizer.params if ours_side.is_ours(run.ndl) else ()
        evidence.repeated = len({id(p) for p in listed}) < len(listed)
        # what was seen of gradients after the last step, or before they were clipped, somebody may have written into since; what
        # they are added to is seen first in a pass that nobody watches
        about = divergence.quantity in ("gradient after step", "clip norm", "clipped") or divergence.name.endswith(
            UNSEEN
        )
        if about and ours_side.is_ours(run.ndl):  # the course leaves open what is left
            evidence.reset = ours_side.reset_does(run)
        evidence.eval_draws = divergence.name == "random state" and ours_side.eval_draws(run)
    elif not hasattr(run, "watch"):  # there is no model
        return evidence
    else:
        quiet = divergence.failure.phase == "evaluation"
        # gradients are taken down before the pass that nobody watches
        evidence.alone = divergence.failure.phase in ("forward", "backward") and "gradient" in step.ours.values
        if divergence.failure.phase == "taking over the state" and ours_side.is_ours(run.ndl):
            names = {slot.name: ("buffer" if slot in run.buffer_slots else "parameter", slot.shape)
                     for slot in (*run.parameter_slots, *run.buffer_slots)}  # fmt: skip
            right = {name: (shape, h.dtype(quantity, name)) for name, (quantity, shape) in names.items()}
            evidence.misbuilt = ours_side.misshapen({name: run.array(name) for name in names}, right)
    _again(h, divergence, step, evidence, evaluation=quiet)
    return evidence


def _again(h: Hearing, divergence: Divergence, step: Step, evidence: Evidence, *, evaluation: bool) -> None:
    """The failing step once more: rule OP on its tapes, and on every call of an op."""
    seen = divergence.quantity in (*FORWARD, *BACKWARD)
    held = divergence.quantity in ("kept", "handed in") or divergence.name == HANDED_IN
    if not (seen or held or divergence.failure is not None):
        return
    run, t = h.lockstep.ours, step.ours.step
    found = findings_for(h.lockstep.ndl)
    start = step.after or step.before if evaluation else step.before
    evidence.calls = Calls()
    closely = ours_side.again(run, start, t, found, evidence.calls, evaluation=evaluation)
    evidence.detached, evidence.wrote = closely.detached, closely.wrote
    if seen and divergence.failure is None and not (closely.wrote or evidence.calls.bad or found.bad):
        # on a tape, what was a constant is none
        closely = ours_side.again(run, start, t, None, None, evaluation=evaluation, taped=False)
        evidence.wrote = closely.wrote
    if seen and h.case.dtypes is None:  # the bounds of rule OP are those of float32
        evidence.findings = h.findings if t == 0 and not evaluation and h.findings.bad else found
    if seen and ours_side.is_ours(run.ndl):
        for _ in range(2):  # into the arrays, and by other arrays
            run.load(start)
            off = (n for n, right in start.tensors.items() if not trace.same_bits(run.array(n), right))
            evidence.lost = evidence.lost or next(off, "")


UPDATES = 60  # of other parameters, and in other steps, that the words must explain, too


def _updates(h: Hearing, divergence: Divergence, step: Step, part: Sequence[Step]) -> Update | None:
    """The update of the parameter that diverged, in numbers, and those of other parameters and in other steps."""
    if divergence.quantity not in (*h.states, "parameter", "gradient after step"):
        return None
    found = _update(h, divergence.name, step)
    if found is None:
        return None
    near = sorted((s for s in part if s.ours.failure is None), key=lambda s: abs(s.ours.step - step.ours.step))
    about = [(s, n) for s in near for n in h.gradients(s.ours) if (s.ours.step, n) != (step.ours.step, divergence.name)]
    others = (_update(h, n, s) for s, n in about[:UPDATES])
    return dataclasses.replace(found, beside=tuple(u for u in others if u is not None))


def _update(h: Hearing, name: str, step: Step) -> Update | None:
    """The update of a parameter, in numbers; None where it had none."""
    states = (*h.states, "parameter")
    seen, grads = step.ours.values, h.gradients(step.ours)
    missed = h.late == name and step.ours.step == h.gap  # its gradient was set to None before the step
    if name not in grads or missed or grads[name].shape != step.before.tensors[name].shape:
        return None

    def wide(arrays: Any, key: str) -> Array:
        return arrays[key].astype(np.float64) if key in arrays else np.zeros(grads[key].shape)

    def state(key: str) -> dict[str, Array]:
        return {q: wide(step.before.slots.get(q, {}), key) for q in h.states}

    raw = seen.get("gradient", NOTHING)
    return Update(
        name,
        step.ours.step - (h.late == name and step.ours.step > h.gap),
        tuple(h.rates(range(step.ours.step + 1))[:, 0].tolist()),
        wide(step.before.tensors, name),
        wide(grads, name),
        wide(raw, name) if h.case.clip is not None and name in raw else None,
        state(name),
        {q: wide(seen[q], name) for q in ("gradient after step", *states) if name in seen.get(q, {})},
        {n: (wide(grads, n), state(n)) for n in grads},
    )


def _clipped(divergence: Divergence, step: Step) -> Clipping | None:
    """Clipping, in numbers."""
    if divergence.quantity not in ("clip norm", "clipped"):
        return None
    seen = step.ours.values
    raw = {n: g.astype(np.float64) for n, g in seen.get("gradient", {}).items()}
    clipped = {n: g.astype(np.float64) for n, g in seen.get("clipped", {}).items()}
    norm = seen.get("clip norm", {}).get("norm", np.float64("nan"))
    return Clipping(raw, clipped, float(norm), divergence.name)


# -- real data ------------------------------------------------------------------------------------------------------------


def judge_digits(case: c.TrainCase, ndl: Any) -> tuple[Verdict, float]:
    """The verdict on a run on the digits, and needle's accuracy on the held-out images afterwards."""
    lockstep = Lockstep(case, ndl)
    with np.errstate(all="ignore"), without_advice(ndl):
        verdict = judge_run(lockstep, peer_too=True)
        verdict.look()
    if verdict.divergence is not None:
        return verdict, float("nan")
    images, labels = inputs.digits(train=False)
    logits = ours_side.outputs(lockstep.ours, images)
    return verdict, float((logits.argmax(axis=1) == labels).mean())
