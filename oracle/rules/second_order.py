"""Second-order cases: the gradient of ⟨first-order gradients, drawn directions⟩."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.rules import compare as cmp
from oracle.rules import same_bits
from oracle.rules.alone import findings_for
from oracle.rules.calls import Calls
from oracle.rules.hearing import promoted, raised
from oracle.rules.training import judge as judge_training
from oracle.rules.verdict import BACKWARD, FORWARD, Divergence, Evidence, Verdict
from oracle.systems import ours as ours_side
from oracle.systems.noise import Largest
from oracle.systems.second_order import directions, in_torch
from oracle.systems.trace import Clock
from oracle.systems.truth import DOMAIN, ON_THE_WAY


def judge(case: c.SecondOrderCase, ndl: Any) -> Verdict:
    """The verdict on a second-order case, by rule G on the gradients of both orders."""
    verdict = Verdict(case, steps=1)
    clock = Clock()
    clock.turn("observing")
    slots, batches = inputs.slots(case), inputs.batches(case)
    seen = ours_side.run_second(
        case,
        ndl,
        slots,
        batches,
        inputs.initial_state(case),
        directions(case),
        clock=clock,
    )
    clock.turn("rules")
    verdict.seconds = clock.seconds
    for divergence in raised(seen):
        verdict.divergence, verdict.search = divergence, functools.partial(_evidence, case, ndl)
        return verdict
    verdict.beside.extend(promoted(seen))
    relus = {path for path, layer in c.walk(case.model) if layer.kinked}
    kinks = {p: k for p, k in seen.kinks.items() if p in relus}
    clock.turn("truth")
    largest = Largest()
    exact = in_torch(case, kinks, torch.float64, None, written_out=True, largest=largest)
    if not largest.size < ON_THE_WAY:
        verdict.out_of_domain = 1
        return verdict
    noisy = in_torch(case, kinks, torch.float64, case.seed_for("rounding"), written_out=True)
    clock.turn("torch")
    peer = in_torch(case, kinks, torch.float32, None, written_out=False)
    clock.turn("rules")
    for quantity, values in exact.items():
        for name, value in values.items():
            replicas = np.concatenate([value[None], noisy[quantity][name]])[:, None]
            if not np.abs(replicas).max(initial=0) < DOMAIN:
                verdict.out_of_domain = 1
                return verdict
            ours, theirs = seen.values.get(quantity, {}).get(name), peer[quantity].get(name)
            if ours is None and not value.any():
                # a second derivative that is zero everywhere: needle may know that nothing flows there
                verdict.tally.count(f"G {quantity}", 0.0, 1, value.size)
                continue
            wrong = cmp.check_form(0, quantity, name, ours, value.shape, "float32")
            if wrong is None:
                assert ours is not None
                share = cmp.share_g(ours[None], replicas)[0]
                at = cmp.worst(share)
                verdict.tally.count(f"G {quantity}", float(share[at]), 1, ours.size, f"{case.digest} {quantity} {name}")
                if share[at] > 1:
                    allowed = cmp.G_LIMIT * cmp.tolerance(replicas)[0]
                    wrong = cmp.numeric(0, quantity, name, "G", at, ours, theirs, value, allowed)
            if wrong is not None and verdict.divergence is None:
                verdict.divergence = wrong
        for name in seen.values.get(quantity, {}).keys() - values.keys() if ours_side.is_ours(ndl) else ():
            if verdict.divergence is None and seen.values[quantity][name].any():
                message = f"needle has a {quantity} of {name}, which torch has not"
                verdict.divergence = Divergence(0, quantity, name, "unexpected", message)
    for name, same in seen.values.get("kept", {}).items():
        verdict.tally.count("exact kept", 0.0, 1, 1)
        if not same and verdict.divergence is None:
            verdict.divergence = Divergence(0, "kept", name, "exact", f"{name} has other bits")
    written = next(same_bits.handed_in(seen, verdict.tally), None)
    if written is not None:
        verdict.divergence = written
    elif verdict.divergence is not None:
        verdict.search = functools.partial(_evidence, case, ndl)
    clock.turn("")
    return verdict


def _evidence(case: c.SecondOrderCase, ndl: Any) -> Evidence:
    """The verdict on a plain training step on the same model, if that fails too; else rule OP on all walks."""
    evidence = Evidence()
    given = {n: getattr(case, n) for n in case.__struct_fields__}
    step = judge_training(c.TrainCase(**given, optimizer=c.SGD()), ndl, peer_too=False)
    step.evidence, step.search = step.evidence if step.search is None else step.search(), None
    # other quantities are another matter: the optimizer's, for one
    if step.divergence is not None and step.divergence.quantity in (*FORWARD, *BACKWARD):
        evidence.within = step
    else:
        evidence.findings, evidence.calls = findings_for(ndl, again=True), Calls()
        about = (inputs.slots(case), inputs.batches(case), inputs.initial_state(case), directions(case))
        with ours_side.calls(ndl, evidence.calls):
            ours_side.run_second(case, ndl, *about, evidence.findings)
        evidence.findings.close()
    return evidence
