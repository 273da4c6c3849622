"""Rule T: the update that torch's own optimizer makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from oracle.cases import case as c
from oracle.rules import compare as cmp
from oracle.rules.compare import Array, Joined
from oracle.rules.hearing import NOTHING, Hearing
from oracle.rules.update import expected_update, roundings_apart
from oracle.rules.verdict import Divergence
from oracle.systems import peer as peer_side
from oracle.systems.lockstep import Step

T_LIMIT = 3.0  # in units of rule L's bound


def torch_update(h: Hearing, part: Sequence[Step]) -> Iterator[Divergence]:
    """Rule T: torch's own optimizer, fed with needle's gradients and the old state, makes needle's update, within 3 x the
    bound of rule L. Proven by ``sgd-undampened``, which rule L finds too: the one checks the other.

    All steps of a case that have the same gradients go into one torch optimizer, as a parameter each.
    """
    alike: dict[tuple[tuple[str, ...], int], list[Step]] = {}
    for step in part:
        before, seen = step.before.tensors, step.ours.values
        grads, after = seen.get("gradient", NOTHING), seen.get("parameter", NOTHING)
        names = tuple(s.name for s in h.lockstep.slots[0] if s.name in grads)
        if names and all(grads[n].shape == before[n].shape == after.get(n, grads[n]).shape for n in names):
            for some, missed in _by_steps_missed(h, names, step.ours.step):
                alike.setdefault((some, missed), []).append(step)
    for (names, missed), steps in alike.items():
        yield from _alike(h, names, steps, missed)


def _by_steps_missed(h: Hearing, names: tuple[str, ...], step: int) -> Iterator[tuple[tuple[str, ...], int]]:
    """The parameters that are updated in a step, by how many steps the optimizer has not made of them before."""
    if step < h.gap or h.late not in names:
        yield names, 0
        return
    if len(names) > 1:
        yield tuple(n for n in names if n != h.late), 0
    if step > h.gap:
        yield (h.late,), 1


def _alike(h: Hearing, names: Sequence[str], steps: Sequence[Step], missed: int) -> Iterator[Divergence]:
    """Steps whose gradients have the same names, after as many steps of the optimizer missed."""
    case = h.case
    joined = Joined([("parameter", n) for n in names], [steps[0].before.tensors[n].shape for n in names])
    before = joined.steps([[s.before.tensors[n] for n in names] for s in steps]).astype(np.float32)
    grads = joined.steps([[s.ours.values["gradient"][n] for n in names] for s in steps]).astype(np.float32)
    old = {q: h.state(joined, steps, q) for q in h.states}
    times = [s.ours.step for s in steps]
    made = [t - missed for t in times]
    rates, count = h.rates(times), np.array(made, dtype=np.float64)[:, None] + 1
    theirs, off = _stepped_by_torch(h, before, grads, old, made, rates[:, 0].tolist())
    # torch adds up squares in float32: what its norm is off by in fact is no fault of needle's
    k = 0.0 if case.clip is None else 8.0 + off[:, None]
    p, g = before.astype(np.float64), grads.astype(np.float64)
    wide = {q: v.astype(np.float64) for q, v in old.items()}
    update = expected_update(case, rates, p, g, wide, count, k)
    for quantity, (right, bound) in update.values.items():
        stepped = theirs[quantity]
        mine: list[list[Any]] = [[s.ours.values.get(quantity, NOTHING).get(n) for n in names] for s in steps]
        whole = [all(a is not None and a.shape == s for a, s in zip(row, joined.shapes, strict=True)) for row in mine]
        # torch has no velocity without momentum; what needle lacks is rule L's to report
        rows = [i for i in range(len(steps)) if whole[i] and stepped[i] is not None]
        if not rows:
            continue
        ours = joined.steps([mine[i] for i in rows]).astype(np.float64)
        value = np.stack([stepped[i].numpy() for i in rows])
        allowed = T_LIMIT * bound[rows]
        share = cmp.share_of(ours, value, allowed)
        most = cmp.worst(share)
        h.verdict.tally.count(
            f"T {quantity}", float(share[most]), len(rows) * len(names), share.size,
            f"{h.digest} {quantity} {names[joined.tensor(most[1])]}",
        )  # fmt: skip
        for r in np.flatnonzero(share.max(axis=1) > 1):
            at = int(np.argmax(share[r]))
            i = joined.tensor(at)
            index = cmp.unravelled(at - joined.starts[i], joined.shapes[i])
            message = f"{quantity} {names[i]} is not what torch's optimizer makes of needle's gradients (rule T)"
            yield (
                Divergence(times[rows[r]], quantity, names[i], "T", message, index, float(ours[r, at]),
                           float(value[r, at]), float(right[rows[r], at]), "float32",
                           abs(float(ours[r, at]) - float(value[r, at])), float(allowed[r, at]))
            )  # fmt: skip


def _stepped_by_torch(
    h: Hearing, before: Array, grads: Array, old: Mapping[str, Array], made: Sequence[int], rates: Sequence[float]
) -> tuple[dict[str, list[Any]], Array]:
    """What torch's optimizer, which has ``made`` so many steps, makes of the rows of ``before``: quantity -> a torch
    tensor or None for each row; and by how many roundings the norms are off with which it has clipped ``grads``, in
    place.
    """
    case = h.case
    parameters = [torch.from_numpy(row.copy()).requires_grad_() for row in before]
    norms, exact = [], []
    for p, g in zip(parameters, grads, strict=True):
        p.grad = torch.from_numpy(g)
        if case.clip is not None:
            max_norm = 0.25 if case.clip.max_norm is None else case.clip.max_norm
            exact.append(float(np.linalg.norm(g.astype(np.float64))))
            norms.append(float(torch.nn.utils.clip_grad_norm_([p], max_norm)))
    groups = [
        {"params": [p for p, rate in zip(parameters, rates, strict=True) if rate == lr], "lr": lr}
        for lr in dict.fromkeys(rates)
    ]
    optimizer = peer_side.torch_optimizer(case, groups)
    for i, p in enumerate(parameters):
        if isinstance(case.optimizer, c.Adam):
            optimizer.state[p] = {
                "step": torch.tensor(float(made[i])),
                "exp_avg": torch.from_numpy(old["first moment"][i].copy()),
                "exp_avg_sq": torch.from_numpy(old["second moment"][i].copy()),
            }
        elif case.optimizer.momentum:
            optimizer.state[p]["momentum_buffer"] = torch.from_numpy(old["velocity"][i].copy())
    optimizer.step()
    state = {q: [optimizer.state[p].get(key) for p in parameters] for q, key in peer_side.TORCH_STATE.items()}
    return {"parameter": [p.detach() for p in parameters], **state}, roundings_apart(np.array(norms), np.array(exact))
