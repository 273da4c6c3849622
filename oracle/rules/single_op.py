"""Single operations, with nan and infinities: both sides must agree on where they end up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.operations import tape as d
from oracle.operations.tape import Noise
from oracle.rules import compare as cmp
from oracle.rules.against_truth import LOGITS
from oracle.rules.alone import findings_for
from oracle.rules.calls import Calls
from oracle.rules.compare import Array
from oracle.rules.hearing import promoted, raised
from oracle.rules.verdict import Divergence, Evidence, Verdict
from oracle.systems import higher
from oracle.systems import ours as ours_side
from oracle.systems import peer as peer_side
from oracle.systems.trace import HIGHER, Clock, Observation
from oracle.systems.truth import DOMAIN, ON_THE_WAY


def op_truth(case: c.OpCase, noise: Noise | None) -> tuple[Array, dict[str, Array]]:
    """Value and operand gradients of one operation: (replicas, 1, *shape) each."""
    tape = d.Tape(noise, special=True)
    operands = [
        d.Var(o.array.astype(np.float64)[None, None], needs=i not in case.constants)
        for i, o in enumerate(case.operands)
    ]
    attributes = dict(case.attributes)
    if "labels" in attributes:
        attributes["labels"] = np.asarray(attributes["labels"])[None]
    out = OPERATIONS[case.op].definition(tape, *operands, **attributes)
    tape.backward([(out, case.cotangent_array.astype(np.float64)[None, None])])
    grads = {f"operand {i}": v.adjoint for i, v in enumerate(operands) if v.adjoint is not None}
    return out.value, grads


def judge(case: c.OpCase, ndl: Any, peer_too: bool) -> Verdict:
    """The verdict on a single operation, by rule G where the truth is a float32 number. Proven by the group op."""
    verdict = Verdict(case, steps=1)
    op, clock, ours = OPERATIONS[case.op], Clock(), ours_side.is_ours(ndl)
    clock.turn("observing")
    seen = ours_side.run_op(case, ndl, op.needle, graph=ours, clock=clock)
    clock.turn("torch")
    peer = peer_side.run_op(case, functools.partial(op.torch, torch))
    clock.turn("rules")
    found: list[Divergence] = []
    peer_found: list[Divergence] = []
    found.extend(raised(seen))
    verdict.beside.extend(promoted(seen))
    if not found and _too_large(case):
        verdict.out_of_domain = 1
    elif not found:
        clock.turn("truth")
        value, grads = op_truth(case, Noise(case.seed_for("noise")))
        expected = {"activation": {case.op: value}, "gradient": grads}
        clock.turn("rules")
        if ours:
            expected["gradient with graph"] = grads
        large = LOGITS * float(np.abs(case.operands[0].array).max(initial=0)) if case.op == "softmax_loss" else 0.0
        for quantity, values in expected.items():
            more = large if quantity == "activation" and not ours else 0.0
            for name, array in values.items():
                theirs = peer.values[quantity.removesuffix(" with graph")][name]
                made = seen.values.get(quantity, {}).get(name)
                wrong = cmp.check_form(0, quantity, name, made, array.shape[2:], "float32")
                if wrong is None:
                    assert made is not None
                    wrong = _values(verdict, case, quantity, name, made, theirs, array, "G", more)
                if wrong is not None:
                    found.append(wrong)
                if peer_too and not quantity.endswith(" with graph"):
                    off = _values(verdict, case, quantity, name, theirs, theirs, array, "P")
                    if off is not None:
                        peer_found.append(off)
            for name in seen.values.get(quantity, {}).keys() - values.keys():
                message = f"needle has a {quantity} of {name}, which asks for none"
                found.append(Divergence(0, quantity, name, "unexpected", message))
        if case.order > 1 and (ours or HIGHER[2] in seen.values):
            found.extend(_higher(verdict, seen, peer_too))
        for name, same in seen.values.get("kept", {}).items():
            verdict.tally.count("exact kept", 0.0, 1, 1)
            if not same:
                found.append(Divergence(0, "kept", name, "exact", f"{case.op} changed its {name} in place"))
    if found:
        verdict.divergence = min(found, key=lambda f: f.order)
        verdict.search = functools.partial(_evidence, case, ndl, raised=seen.failure is not None)
    verdict.oracle_errors.extend(f"rule P: torch's {f.message}" for f in peer_found)
    clock.turn("")
    verdict.seconds = clock.seconds
    return verdict


def _too_large(case: c.OpCase) -> bool:
    """Whether an operation that is kept to ordinary numbers is given others: their squares are beyond float32, whoever computes."""
    op = OPERATIONS[case.op]
    arrays = (*(o.array for o in case.operands), case.cotangent_array)
    return op.ordinary and not op.factors and not all(np.abs(a[np.isfinite(a)]).max(initial=0) < DOMAIN for a in arrays)


def _evidence(case: c.OpCase, ndl: Any, *, raised: bool) -> Evidence:
    """Rule OP on the tapes, and on every call of an op."""
    evidence = Evidence(findings_for(ndl, again=case.order > 1), Calls())
    with ours_side.calls(ndl, evidence.calls):
        ours_side.run_op(case, ndl, OPERATIONS[case.op].needle, evidence.findings, graph=ours_side.is_ours(ndl))
    if evidence.findings is not None:
        evidence.findings.close()
    return dataclasses.replace(evidence, findings=None) if raised else evidence


def _values(
    verdict: Verdict,
    case: c.OpCase,
    quantity: str,
    name: str,
    ours: Array,
    peer: Array,
    truth: Array,
    rule: str,
    more: float = 0.0,
) -> Divergence | None:
    """Rule G where truth is a float32 number; where it is not, ours must be nan or the same infinity as torch's.

    Where torch alone overflows on its way to a float32 number, ours is held against the truth. ``more`` is allowed on top.
    """
    exact = truth[0, 0]
    with np.errstate(all="ignore"):
        # where a replica is no number rounding alone decides whether there is one, as about the root of the smallest numbers
        settled = np.isfinite(truth).all(axis=(0, 1)) | ~np.isfinite(exact)
        small = (np.abs(exact) < 1e37) & settled
        calm = np.where(small, truth, 0.0)
        allowed = cmp.G_LIMIT * cmp.tolerance(calm) + more
        share = np.where(small, cmp.share_of(np.where(small, ours, 0.0)[None], calm[0], allowed)[0], 0.0)
        share = np.where(small & ~np.isfinite(ours), np.inf, share)
        tame = small & (np.isfinite(peer) | (share <= 1))
        share = np.where(tame, share, 0.0)
        # a result that overflows may do so a little earlier or later; nan and the sign of inf are not negotiable
        overflows = (np.abs(exact) >= 1e37) & (np.abs(ours) >= 1e36) & ((ours > 0) == (exact > 0))
        odd = ~tame & settled & ~((np.isnan(ours) & np.isnan(peer)) | (ours == peer) | overflows)
    top = float(share.max(initial=0.0))
    verdict.tally.count(f"{rule} op {case.op}", top, 1, ours.size, f"{case.digest} {quantity} {name}")
    if odd.any():
        at = cmp.worst(odd)
        message = f"{quantity} {name} is {ours[at]} where torch gives {peer[at]} (nan and inf must agree)"
        return Divergence(0, quantity, name, "nonfinite", message, at, float(ours[at]), float(peer[at]),
                          float(exact[at]), str(ours.dtype))  # fmt: skip
    if top > 1:
        at = cmp.worst(share)
        return cmp.numeric(0, quantity, name, rule, at, ours, peer, exact, allowed[0])
    return None


def _higher(verdict: Verdict, seen: Observation, peer_too: bool) -> Iterator[Divergence]:
    """Rule G on the gradients of the second order and the third; what torch does not have must be zero."""
    case = verdict.case
    assert isinstance(case, c.OpCase)
    truth, largest = higher.truth_and_largest(case)
    if not largest < ON_THE_WAY:
        verdict.out_of_domain = 1
        return
    peer = higher.peer(case) if peer_too else {}
    for quantity, values in truth.items():
        if quantity not in seen.values and HIGHER[2] in seen.values:
            return  # another needle's, which went no further
        for name, made in values.items():
            replicas, value = made[:, None], made[0]
            if not np.abs(replicas).max(initial=0) < DOMAIN:
                verdict.out_of_domain = 1
                return
            ours, theirs = seen.values.get(quantity, {}).get(name), peer.get(quantity, {}).get(name)
            if ours is None and not value.any():
                verdict.tally.count(f"G {quantity}", 0.0, 1, value.size)
                continue
            wrong = cmp.check_form(0, quantity, name, ours, value.shape, "float32")
            if wrong is None:
                assert ours is not None
                wrong = _within(verdict, quantity, name, ours, theirs, replicas, "G")
            if wrong is not None:
                yield wrong
            if theirs is not None:
                off = _within(verdict, quantity, name, theirs, theirs, replicas, "P")
                if off is not None:
                    verdict.oracle_errors.append(f"rule P: torch's {off.message}")
        for name in seen.values.get(quantity, {}).keys() - values.keys():
            if seen.values[quantity][name].any():
                message = f"needle has a {quantity} by {name}, which torch has not"
                yield Divergence(0, quantity, name, "unexpected", message)


def _within(
    verdict: Verdict, quantity: str, name: str, ours: Array, peer: Array | None, replicas: Array, rule: str
) -> Divergence | None:
    share = cmp.share_g(ours[None], replicas)[0]
    if not share.size:
        return None
    at = cmp.worst(share)
    where = f"{verdict.case.digest} {quantity} {name}"
    verdict.tally.count(f"{rule} {quantity}", float(share[at]), 1, ours.size, where)
    if share[at] <= 1:
        return None
    allowed = cmp.G_LIMIT * cmp.tolerance(replicas)[0]
    return cmp.numeric(0, quantity, name, rule, at, ours, peer, replicas[0, 0], allowed)
