"""What all rules on a training case share: what the case gives, how tensors are compared, and the count of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases import dtypes, inputs
from oracle.operations import tape as d
from oracle.operations.dtypes import DTYPES, Dtype
from oracle.rules import compare as cmp
from oracle.rules.compare import Joined
from oracle.rules.tape import Findings
from oracle.rules.verdict import Divergence, Verdict
from oracle.systems.lockstep import Lockstep, Step
from oracle.systems.peer import DEFAULT_LR
from oracle.systems.trace import Observation

Array = npt.NDArray[Any]
Values = Mapping[str, Mapping[str, Array]]  # quantity -> name -> array

FLOAT32 = np.dtype(np.float32)
NOTHING: Mapping[str, Any] = {}
TOGETHER = 1 << 14  # elements x steps that rule G looks at together


class Hearing:
    """One training case before the rules."""

    def __init__(self, case: c.TrainCase, lockstep: Lockstep) -> None:
        self.case, self.lockstep = case, lockstep
        self.digest = case.digest  # computed once: it is asked for with every tensor
        self.verdict = Verdict(case)
        self.findings = Findings()  # rule OP on the tape of the first step
        self.gap, self.late = inputs.gap(case)
        sgd = isinstance(case.optimizer, c.SGD)
        self.states = ("velocity",) if sgd else ("first moment", "second moment")
        self._made = {} if case.dtypes is None else dtypes.made(case)
        self.model = DTYPES["float32" if case.dtypes is None else case.dtypes.model]  # of parameters and states
        data = DTYPES["float32" if case.dtypes is None else case.dtypes.data]
        self.largest = min(self.model.largest, data.largest)  # what a formula may reach in the narrowest dtype

    def dtype(self, quantity: str, name: str) -> np.dtype[Any]:
        """What a tensor has to have."""
        return np.dtype(dtypes.of_tensor(self.case, quantity, name, self._made)) if self._made else FLOAT32

    def tolerance(self, truth: Array, joined: Joined) -> Array:
        """That of rule G: the unit roundoff is that of each tensor."""
        if not self._made:
            return cmp.tolerance(truth, joined)
        kinds: list[Dtype] = [DTYPES[self.dtype(*key).name] for key in joined.keys]
        units, least = np.array([k.rounding.unit for k in kinds]), np.array([k.least for k in kinds])
        return cmp.tolerance(truth, joined, units, least)

    def hidden(self, quantity: str) -> bool:
        """Whether a needle of the course keeps a state of its optimizer where it cannot be found."""
        run = self.lockstep.ours
        return hasattr(run, "optimizer") and run.contract.hides(run.optimizer, quantity)

    def gradients(self, seen: Observation) -> Mapping[str, Array]:
        """The gradients that the optimizer was given."""
        return seen.values.get("clipped" if self.case.clip is not None else "gradient", NOTHING)

    def rates(self, steps: Sequence[int]) -> Array:
        """The learning rate of each step, (steps, 1)."""
        rates = [DEFAULT_LR if self.case.lr_at(t) is None else self.case.lr_at(t) for t in steps]
        return np.array(rates, dtype=np.float64)[:, None]

    def state(self, joined: Joined, steps: Sequence[Step], quantity: str) -> Array:
        """The optimizer's state before each step, (steps, elements); what does not exist yet is zero."""
        zeros = {n: np.zeros(s, self.dtype(quantity, n)) for (_, n), s in zip(joined.keys, joined.shapes, strict=True)}
        return joined.steps([[s.before.slots.get(quantity, zeros).get(n, zeros[n]) for n in zeros] for s in steps])

    def within(
        self,
        seen: Sequence[Observation],
        peer: Sequence[Observation],
        joined: Joined,
        expected: Array,
        allowed: Array,
        rule: str,
    ) -> dict[int, Divergence]:
        """Form first, then |seen - expected| <= allowed, (steps, elements) each: what is wrong, by place in ``joined``.

        Under rule G an error that torch makes at least half of is rounding that both share: counted, and no divergence.
        """
        columns = [[s.values.get(quantity, NOTHING).get(name) for s in seen] for quantity, name in joined.keys]
        wrong: dict[int, Divergence] = {}
        for i, (key, shape, column) in enumerate(zip(joined.keys, joined.shapes, columns, strict=True)):
            dtype = np.dtype(np.float64) if key[0] == "clip norm" else self.dtype(*key)
            divergence = forms(seen, key, column, shape, dtype)
            if divergence is not None:
                wrong[i], columns[i] = divergence, [np.zeros(shape, dtype)] * len(seen)
        ours = joined.steps(list(zip(*columns, strict=True)))
        share = cmp.share_of(ours, expected, allowed)
        if rule == "G" and share.max(initial=0) > 1:
            common = (share > 1) & cmp.made_by_both(ours, _joined_or_nan(joined, peer), expected)
            share[common] = 1.0
            self.verdict.common += int(joined.largest(common).sum())
        tops = joined.largest(share)
        self.count(joined, tops, wrong, rule)
        if rule == "G":
            self._difference(ours, peer, joined, allowed)
        if tops.max() > 1:
            for i in np.flatnonzero(tops.max(axis=0) > 1).tolist():
                if i in wrong:
                    continue
                quantity, name = joined.keys[i]
                t = int(np.argmax(tops[:, i] > 1))
                values = [joined.part(a[t], i) for a in (ours, expected, allowed)]
                values[0] = values[0].astype(columns[i][t].dtype)  # type: ignore[union-attr]
                at = cmp.worst(joined.part(share[t], i))
                other = peer[t].values.get(quantity, NOTHING).get(name)
                wrong[i] = cmp.numeric(seen[t].step, quantity, name, rule, at, values[0], other, *values[1:])
        return dict(sorted(wrong.items()))

    def count(self, joined: Joined, tops: Array, wrong: Mapping[int, Divergence], rule: str) -> None:
        """What was compared, and the largest share of each quantity; ``tops`` is (steps, tensors)."""
        top = tops.max(axis=0).tolist()
        first = 0
        for quantity, keys in itertools.groupby(joined.keys, key=lambda key: key[0]):
            end = first + len(list(keys))
            sound = [i for i in range(first, end) if i not in wrong]
            first = end
            if not sound:
                continue
            elements = len(tops) * sum(joined.sizes[i] for i in sound)
            i = max(sound, key=lambda i: top[i] if math.isfinite(top[i]) else -1.0)
            where = f"{self.digest} {quantity} {joined.keys[i][1]}"
            self.verdict.tally.count(f"{rule} {quantity}", top[i], len(tops) * len(sound), elements, where)

    def _difference(self, ours: Array, peer: Sequence[Observation], joined: Joined, allowed: Array) -> None:
        """The largest |ours - peer|, in units of rule G's tolerance."""
        # where nothing but an exact 0 is right, a difference of any size has no measure
        share = np.where(allowed > d.UNDERFLOW, np.abs(ours - _joined_or_nan(joined, peer)) / allowed, 0.0)
        largest = float(np.fmax.reduce(share, axis=None, initial=0.0))  # ignores nan
        self.verdict.largest_difference = max(self.verdict.largest_difference, largest)


def forms(
    seen: Sequence[Observation], key: cmp.Key, arrays: Sequence[Array | None], shape: Sequence[int],
    dtype: np.dtype[Any] = FLOAT32,
) -> Divergence | None:  # fmt: skip
    """Presence, shape and dtype of one tensor over all steps."""
    for s, array in zip(seen, arrays, strict=True):
        if array is None or array.shape != shape or array.dtype != dtype:
            return cmp.check_form(s.step, *key, array, shape, dtype)
    return None


def raised(seen: Observation) -> Iterator[Divergence]:
    """An exception out of needle is a divergence. Proven by ``sgd-none-crash``."""
    f = seen.failure
    if f is not None:
        message = f"needle raised {f.kind} in {f.phase}: {f.message}"
        yield Divergence(seen.step, f"exception in {f.phase}", f.kind, "exception", message, failure=f)


def promoted(seen: Observation) -> Iterator[Divergence]:
    """Under the course's contract, float64 is a finding of its own, the first place of a step; its numbers are judged on.
    Proven by ``the mask is float64`` of tests/needles.
    """
    if seen.promoted:
        quantity, name = seen.promoted[0]
        message = f"{quantity} {name} has dtype float64, not float32"
        yield Divergence(seen.step, quantity, name, "dtype", message, ours="float64", truth="float32")


def _joined_or_nan(joined: Joined, seen: Sequence[Observation]) -> Array:
    """What was seen, (steps, elements); nan where a tensor is missing or has another shape."""
    rows = []
    for observation in seen:
        row = [observation.values.get(quantity, NOTHING).get(name) for quantity, name in joined.keys]
        fits = zip(row, joined.shapes, strict=True)
        rows.append([a if a is not None and a.shape == s else np.full(s, np.nan) for a, s in fits])
    return joined.steps(rows)


def aliases(*seen: Observation) -> set[str]:
    """Layers that hand their input on as the same tensor: an adjoint of their own does not exist."""
    return set().union(*(s.aliases for s in seen))


def side_by_side(values: Values, steps: int) -> Iterator[tuple[Joined, list[Array]]]:
    """Values of the truth, as many at a time as stay in a processor's cache."""
    keys: list[cmp.Key] = []
    group: list[Array] = []
    size = 0
    for quantity, named in values.items():
        for name, value in named.items():
            keys.append((quantity, name))
            group.append(value)
            size += steps * math.prod(value.shape[d.LEAD :])
            if size >= TOGETHER:
                yield Joined(keys, [v.shape[d.LEAD :] for v in group]), group
                keys, group, size = [], [], 0
    if keys:
        yield Joined(keys, [v.shape[d.LEAD :] for v in group]), group
