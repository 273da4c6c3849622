"""Single operations in other dtypes than float32: the noise is scaled with the unit roundoff of the result. What keeps integers and bools
must be what NumPy makes of them.

By the table at the top of needle/ops.py the result has the widest float among the operands, integers take the dtype of the
float beside them, and in float16 what adds up does so in float32 and is rounded once. So the tolerance is that of rule G,
as measured for float32: times 2⁻²⁹ for float64 (to first order, noise is linear in the unit roundoff); as it is for sums in
float16; times 2¹³ for other formulas in float16; and one rounding to the dtype of the tensor on top of it.

That last rounding is certain, and half an ulp of it is common: where it is coarser than all before, shares of the limit are of
what goes beyond it. For a value v̂ that is off by at most e, |fl(v̂) − v| ≤ u·|v̂| + e ≤ u·|v| + (1 + u)·e, and e is what rule G allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.operations.dtypes import LARGEST_OF_AN_OPERATION
from oracle.operations.integers import in_numpy
from oracle.operations.tape import Noise, Tape, U, Var
from oracle.rules import compare as cmp
from oracle.rules.calls import Calls
from oracle.rules.compare import Array
from oracle.rules.hearing import raised
from oracle.rules.units import ADDING, LEAST, UNITS
from oracle.rules.verdict import Divergence, Evidence, Verdict
from oracle.systems import higher
from oracle.systems import ours as ours_side
from oracle.systems.trace import HIGHER, Clock


def judge(case: c.OpCase, ndl: Any) -> Verdict:
    """The verdict on an operation in given dtypes. Proven by ``sum-half-in-half``, ``tanh-double-by-single`` and others."""
    verdict = Verdict(case, steps=1)
    clock, ours = Clock(), ours_side.is_ours(ndl)
    clock.turn("observing")
    seen = ours_side.run_op(case, ndl, OPERATIONS[case.op].needle, graph=ours, clock=clock)
    clock.turn("truth")
    found = list(raised(seen)) or list(_parts(verdict, seen.values))
    if found and verdict.divergence is None and not verdict.out_of_domain:
        verdict.divergence = min(found, key=lambda f: f.order)
        verdict.search = partial(_evidence, case, ndl)
    clock.turn("")
    verdict.seconds = clock.seconds
    return verdict


def _evidence(case: c.OpCase, ndl: Any) -> Evidence:
    """Every call of an op."""
    evidence = Evidence(calls=Calls())
    with ours_side.calls(ndl, evidence.calls):
        ours_side.run_op(case, ndl, OPERATIONS[case.op].needle, graph=ours_side.is_ours(ndl))
    return evidence


def _parts(verdict: Verdict, seen: dict[str, dict[str, Array]]) -> Iterator[Divergence]:
    case = verdict.case
    assert isinstance(case, c.OpCase)
    arrays = [case.array(i) for i in range(len(case.operands))]
    right = in_numpy(case.op, arrays, case.attributes) if case.alone else None
    if right is not None:
        yield from _integers(verdict, case, seen, right)
        yield from _kept(case, seen)
        return
    value, grads = _truth(case)
    # what a small cotangent is multiplied with at the end may have overflowed before
    g = np.abs(case.cotangent_array)
    least = min(1.0, float(g[g > 0].min(initial=1.0)))
    sizes = [float(np.abs(v).max(initial=0)) for v in (value, *(v / least for v in grads.values()))]
    if not np.max(sizes) < LARGEST_OF_AN_OPERATION:  # nan is not, and Python's max may pass it over
        verdict.out_of_domain = 1
        return
    graph = {"gradient with graph": grads} if "gradient with graph" in seen else {}
    for quantity, values in ({"activation": {case.op: value}, "gradient": grads} | graph).items():
        for name, truth in values.items():
            dtype = case.dtype if quantity == "activation" else case.dtypes[int(name.split()[1])]
            made = seen.get(quantity, {}).get(name)
            wrong = cmp.check_form(0, quantity, name, made, truth.shape[2:], dtype)
            if wrong is None:
                assert made is not None
                wrong = _number(verdict, case, quantity, name, made, truth, dtype)
            if wrong is not None:
                yield wrong
        for name in seen.get(quantity, {}).keys() - values.keys():
            message = f"needle has a {quantity} of {name}, which asks for none"
            yield Divergence(0, quantity, name, "unexpected", message)
    yield from _kept(case, seen)
    if case.order > 1 and HIGHER[2] in seen:
        yield from _higher(verdict, case, seen)


def _kept(case: c.OpCase, seen: dict[str, dict[str, Array]]) -> Iterator[Divergence]:
    for name, same in seen.get("kept", {}).items():  # nothing was looked at behind a wrong shape
        if not same:
            yield Divergence(0, "kept", name, "exact", f"{case.op} changed its {name} in place")


def _integers(
    verdict: Verdict, case: c.OpCase, seen: dict[str, dict[str, Array]], right: Array
) -> Iterator[Divergence]:
    """The very same numbers, and their dtype. Proven by ``relu-many-bools`` and others of the group corner."""
    ours = seen.get("activation", {}).get(case.op)
    wrong = cmp.check_form(0, "activation", case.op, ours, right.shape, right.dtype)
    if wrong is not None or ours is None:
        yield from (f for f in (wrong,) if f is not None)
        return
    verdict.tally.count("exact integers", 0.0, 1, ours.size)
    for off in np.argwhere(ours != right)[:1]:
        at = tuple(int(i) for i in off)
        message = f"activation {case.op} is {ours[at]} where NumPy has {right[at]}, {right.dtype}"
        yield Divergence(0, "activation", case.op, "exact", message, at, float(ours[at]), None, float(right[at]),
                         str(ours.dtype))  # fmt: skip


def _higher(verdict: Verdict, case: c.OpCase, seen: dict[str, dict[str, Array]]) -> Iterator[Divergence]:
    """Rule G on the gradients of the second order and the third, as in `single_op`, with the noise of the dtype.

    The truth is computed in float64, that is with one sample of the very noise, of which 16 are allowed. In float16 each gradient on the
    way is a tensor, and rounded: nothing is as if in float32.
    """
    truth, largest = higher.truth_and_largest(case)
    results = [float(np.abs(replicas).max(initial=0)) for values in truth.values() for replicas in values.values()]
    if not np.max([largest, *results]) < LARGEST_OF_AN_OPERATION:
        verdict.out_of_domain = 1
        return
    for quantity, values in truth.items():
        for name, replicas in values.items():
            ours, exact = seen.get(quantity, {}).get(name), replicas[0]
            if ours is None and not exact.any():
                continue  # needle may know that nothing flows there
            wrong = cmp.check_form(0, quantity, name, ours, exact.shape, case.dtype)
            if wrong is None:
                assert ours is not None
                wrong = _number(verdict, case, quantity, name, ours, replicas[:, None], case.dtype)
            if wrong is not None:
                yield wrong
        for name in seen.get(quantity, {}).keys() - values.keys():
            if seen[quantity][name].any():
                message = f"needle has a {quantity} by {name}, which torch has not"
                yield Divergence(0, quantity, name, "unexpected", message)


def _number(
    verdict: Verdict, case: c.OpCase, quantity: str, name: str, ours: Array, truth: Array, dtype: str
) -> Divergence | None:
    exact = truth[0, 0]
    once = quantity not in HIGHER.values() and case.op in ADDING
    inner = "float32" if case.dtype == "float16" and once else case.dtype
    unit, computed = UNITS[dtype], UNITS[inner]
    allowed = cmp.G_LIMIT * cmp.tolerance(truth)[0] * (computed / U)
    allowed = (
        allowed + 1.01 * unit * np.abs(exact) + 4 * LEAST[dtype] + (16 * LEAST[inner] if inner == "float16" else 0)
    )
    last = unit * np.abs(exact) if unit > computed else np.zeros(exact.shape)
    wide = ours.astype(np.float64)
    beyond = wide - np.clip(wide - exact, -last, last)
    share = cmp.share_of(beyond[None], exact[None], allowed - last)[0]
    if not share.size:
        return None
    at = cmp.worst(share)
    told = f"G {case.dtype}" + f", {quantity}" * (quantity in HIGHER.values())
    verdict.tally.count(told, float(share[at]), 1, ours.size, f"{case.digest} {quantity} {name}")
    return cmp.numeric(0, quantity, name, "G", at, ours, None, exact, allowed) if share[at] > 1 else None


def _truth(case: c.OpCase) -> tuple[Array, dict[str, Array]]:
    """Value and gradients, (replicas, 1, *shape) each, in float64 with the noise of float32."""
    tape = Tape(Noise(case.seed_for("noise")))
    arrays = [case.array(i) for i in range(len(case.operands))]
    operands = [
        Var(a.astype(np.float64)[None, None], needs=i not in case.constants and a.dtype.kind == "f")
        for i, a in enumerate(arrays)
    ]
    attributes = dict(case.attributes)
    if "labels" in attributes:
        attributes["labels"] = np.asarray(attributes["labels"])[None]
    out = OPERATIONS[case.op].definition(tape, *operands, **attributes)
    start = case.cotangent_array.astype(case.dtype).astype(np.float64)  # it takes the dtype of the result
    tape.backward([(out, start[None, None])])
    return out.value, {f"operand {i}": v.adjoint for i, v in enumerate(operands) if v.needs and v.adjoint is not None}
