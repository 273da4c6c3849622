"""Rule L: the optimizer's update, from the gradients that it was given and the old state, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oracle.cases import case as c
from oracle.operations.bounds import Bounded
from oracle.operations.tape import TINY, U
from oracle.rules import compare as cmp
from oracle.rules.compare import Array, Joined
from oracle.rules.hearing import NOTHING, Hearing, Values, forms
from oracle.rules.verdict import Divergence
from oracle.systems.lockstep import Step
from oracle.systems.trace import Observation

L_LIMIT = 2.0  # in units of the bound


def update(
    h: Hearing, seen: Sequence[Observation], part: Sequence[Step], expected: Values, rule: str = "L"
) -> Iterator[Divergence]:
    """Rule L: clipping and the update, from the gradients that were seen and the old state, in float64: within 2 x a
    first-order bound. A parameter without gradient stays as it is. Proven by most faults of the group optimizer,
    ``sgd-undampened`` for one. (As part of rule P, the same of torch.)
    """
    case, graded = h.case, list(expected.get("gradient", {}))  # in order: a set of names has another in each run
    peers = [s.peer for s in part]
    if case.clip is not None:
        yield from clipping(h, seen, peers, rule, graded)
    wrong: dict[str, list[Divergence]] = {slot.name: [] for slot in h.lockstep.slots[0]}
    updated = []
    for slot in h.lockstep.slots[0]:
        name = slot.name
        after = [s.values.get("parameter", NOTHING).get(name) for s in seen]
        form = forms(seen, ("parameter", name), after, slot.shape, h.dtype("parameter", name))
        if form is not None:
            wrong[name].append(form)
            for quantity in h.states if name in graded and rule == "L" else ():
                # the state may have gone wrong before
                states = [s.values.get(quantity, NOTHING).get(name) for s in seen]
                earlier = forms(seen, (quantity, name), states, slot.shape, h.dtype(quantity, name))
                if earlier is not None:
                    wrong[name].append(earlier)
        elif name not in graded:
            _skipped(h, seen, [s.before.tensors[name] for s in part], name, after, wrong[name], rule)
        else:
            grads = [h.gradients(s).get(name) for s in seen]
            if all(g is not None and g.shape == slot.shape for g in grads):  # else reported by rule G
                updated.append(slot)
    if updated:
        names = [slot.name for slot in updated]
        joined = Joined([("parameter", n) for n in names], [slot.shape for slot in updated])
        steps = [s.step for s in seen]
        p = joined.steps([[s.before.tensors[n] for n in names] for s in part]).astype(np.float64)
        g = joined.steps([[h.gradients(s)[n] for n in names] for s in seen]).astype(np.float64)
        old = {q: h.state(joined, part, q).astype(np.float64) for q in h.states}
        count = np.array(steps, dtype=np.float64)[:, None] + 1
        gap, late = h.gap, h.late
        if late in names:
            place = joined.place(names.index(late))
            count = np.repeat(count, joined.size, axis=1)
            count[np.array(steps) > gap, place] -= 1
        update = expected_update(case, h.rates(steps), p, g, old, count, 0)
        for quantity, (value, bound) in update.values.items():
            if case.dtypes is not None:  # to first order, a bound is linear in the unit roundoff
                own = 2 if case.dtypes.model == "float64" else 1  # what is expected here is computed in float64 too
                bound = own * bound * (h.model.rounding.unit / U) + 4 * h.model.least
            if late in names and gap in steps:
                row = steps.index(gap)
                value[row, place] = {"parameter": p, **old}[quantity][row, place]
                # without momentum torch keeps no velocity: there is none to go on from
                known = quantity == "parameter" or late in part[row].before.slots.get(quantity, NOTHING)
                bound[row, place] = cmp.EXACT if known else np.inf
            if rule == "P" and quantity == "velocity" and not case.optimizer.momentum:  # type: ignore[union-attr]
                continue  # torch keeps no buffer without momentum
            if rule == "L" and h.hidden(quantity):
                continue
            of = Joined([(quantity, n) for n in names], joined.shapes)
            off = h.within(seen, peers, of, value, L_LIMIT * bound, rule)
            for i, divergence in off.items():
                wrong[names[i]].append(divergence)
    yield from itertools.chain.from_iterable(wrong.values())


def _skipped(
    h: Hearing, seen: Sequence[Observation], before: Sequence[Array], name: str, after: Sequence[Array | None],
    found: list[Divergence], rule: str,
) -> None:  # fmt: skip
    """A parameter without a gradient stays as it is, bit for bit, and gets no optimizer state."""
    for s, old, value in zip(seen, before, after, strict=True):
        assert value is not None
        h.verdict.tally.count(f"{rule} skipped parameter", 0.0, 1, value.size)
        if not np.array_equal(value, old):
            message = f"parameter {name} has no gradient, but the step changed it"
            found.append(Divergence(s.step, "parameter", name, "exact", message))
        for quantity in h.states:
            if name in s.values.get(quantity, NOTHING):
                message = f"parameter {name} has no gradient, but the step made a {quantity} for it"
                found.append(Divergence(s.step, quantity, name, "unexpected", message))


def clipping(
    h: Hearing, seen: Sequence[Observation], peers: Sequence[Observation], rule: str, graded: Sequence[str]
) -> Iterator[Divergence]:
    """The norm that clip_grad_norm returns, and the gradients after it. Proven by ``clip-per-parameter``, ``clip-l1``."""
    assert h.case.clip is not None
    max_norm = 0.25 if h.case.clip.max_norm is None else h.case.clip.max_norm
    raw = [[s.values.get("gradient", NOTHING).get(n) for n in graded] for s in seen]
    rows = [[g for g in row if g is not None] for row in raw]
    shapes = [g.shape for g in rows[0]]
    if any(len(row) != len(graded) or [g.shape for g in row] != shapes for row in rows):
        return  # reported by rule G
    joined = Joined([("clipped", n) for n in graded], shapes)
    g = joined.steps(rows).astype(np.float64)
    norm = np.sqrt((g * g).sum(axis=1, keepdims=True))
    count = joined.size
    # a float32 accumulation errs by about sqrt(count) roundings; a long one, of squares alone, by one and the same way in
    # every term that is small beside the sum so far: with 16 sums side by side, as in torch, by count/32 at most
    added = max(math.sqrt(count), count / 32)
    bound = (4 + added) * min(U, h.model.rounding.unit) * norm + TINY  # nothing adds up in float16
    # squares below the smallest float32 are lost: count x TINY in the square of the norm
    lost = count * TINY
    bound = bound + np.minimum(np.sqrt(lost), lost / np.maximum(norm, TINY))
    alone = Joined([("clip norm", "norm")], [()])
    off = h.within(seen, peers, alone, norm, bound, rule)
    yield from off.values()
    value = g * clip_factor(norm, max_norm)
    rounding = 6 * h.model.rounding.unit if rule == "L" else (6 + added) * U
    allowed = L_LIMIT * (rounding * np.abs(value) + h.model.least)
    yield from h.within(seen, peers, joined, value, allowed, rule).values()


@dataclass
class Expected:
    """What an optimizer must give, in float64, each with the bound E of its error: quantity -> (value, E)."""

    values: dict[str, tuple[Array, Array]]


def expected_update(
    case: c.TrainCase, lr: Array, p: Array, g: Array, old: Mapping[str, Array], t: Array, k: float | Array
) -> Expected:
    """Rule L for one parameter over all steps: the update, run on arrays that carry error bounds.

    Arrays are (steps, *shape); lr and t (steps, 1, …); k: by how many roundings g is off.
    """
    spec, decay = case.optimizer, float(case.optimizer.weight_decay or 0.0)
    grad, rate = Bounded(g, k * U * np.abs(g)), _rounded(lr)
    d = grad + Bounded(p) * decay if decay else grad
    if isinstance(spec, c.SGD):
        beta = float(spec.momentum or 0.0)
        u = Bounded(old["velocity"]) * beta + d * (1 - beta)
        return _expected(velocity=u, parameter=p - rate * u)
    b1 = 0.9 if spec.beta1 is None else float(spec.beta1)
    b2 = 0.999 if spec.beta2 is None else float(spec.beta2)
    eps = 1e-8 if spec.eps is None else float(spec.eps)
    m = Bounded(old["first moment"]) * b1 + d * (1 - b1)
    v = Bounded(old["second moment"], low=0.0) * b2 + d * d * (1 - b2)
    root = np.sqrt(v / _rounded(1 - b2**t))
    return _expected(first_moment=m, second_moment=v, parameter=p - rate * (m / _rounded(1 - b1**t)) / (root + eps))


def _rounded(x: Array) -> Bounded:
    """Numbers of the optimizer's own, which are not negative; float32 may round them."""
    return Bounded(x, U * x, 0.0)


def _expected(**quantities: Bounded) -> Expected:
    return Expected({name.replace("_", " "): (x.v, x.error) for name, x in quantities.items()})


def roundings_apart(value: Array, right: Array) -> Array:
    """How far apart numbers are, in roundings of the right ones; 0 where either is no finite number or zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        apart = np.abs(value / right - 1) / U
    return np.where(np.isfinite(apart), apart, 0.0)


def clip_factor(norm: Array, max_norm: float) -> Array:
    """min(1, max_norm / (norm + 1e-6))."""
    return np.minimum(1.0, max_norm / (norm + 1e-6))
