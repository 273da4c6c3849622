"""Runs one Case in both systems and judges it: ours against the truth, torch against the truth, update against update.

1. needle and torch run in lockstep, float32, synchronised from torch's state before every step; all observables are kept.
2. One pass of the truth covers all steps of the case.
3. The rules compare. The first divergence, in the order in which quantities arise, is the verdict.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oracle import case as c
from oracle import compare as cmp
from oracle import definitions as d
from oracle import inputs, locate, op_rule, pairs, truth
from oracle import needle_executor as ours_side
from oracle import torch_executor as peer_side
from oracle.compare import Divergence, Joined, Tally
from oracle.definitions import Noise
from oracle.trace import UNSEEN, Clock, Observation, State

Array = npt.NDArray[Any]
Values = Mapping[str, Mapping[str, Array]]  # quantity -> name -> array

LEFT_BEHIND = {
    "graph": "{number} Tensors with an op live on after the {after}, although the loss and all gradients were dropped",
    "live tensors": "the number of live Tensors changes by {number:+d} in the {after}",
    "cycles": "{number} objects are left by the {after} for the cycle collector to free",
}
CHUNK = 1 << 15  # rows x width x steps of the truth held at once; beyond it, steps are judged in several passes
COHERENT = 3  # noisy replicas of a training run in which all rows round alike
TOGETHER = 1 << 14  # elements x steps that rule G looks at together
VALIDATED = 1e-4  # limit of rule G for the truth's replica 0 against torch float64
FLOAT32 = np.dtype(np.float32)
NOTHING: Mapping[str, Any] = {}


def _keep_freed_memory() -> None:
    """glibc gives large blocks back to the system as soon as they are free, and gets them again, page by page: half of
    the time of the truth on wide models. (No other C library has, or needs, this switch.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 1 << 30)


_keep_freed_memory()


# Set for a needle other than ours, whose norms may use any order of operations and whose ops may be named otherwise:
# the truth then carries the noise of every order, and rule OP, which reads needle's tape, is left out.
foreign = False


class OracleError(RuntimeError):
    """The oracle contradicts itself: torch, or torch in float64, does not agree with the truth. Not needle's fault."""


@dataclass
class Verdict:
    """What came of a case."""

    case: c.Case
    divergence: Divergence | None = None
    oracle_errors: list[str] = field(default_factory=list)
    common: int = 0  # tensors that needle and torch round alike, beyond what the noise allows
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    out_of_domain: int = 0
    largest_difference: float = 0.0  # |ours - peer| in units of rule G's tolerance
    seconds: dict[str, float] = field(default_factory=dict)  # what the time went into, see `Clock`


@dataclass
class Step:
    """One synchronised step: the state it started from and what both sides showed."""

    before: State
    ours: Observation
    peer: Observation
    after: State | None = None  # synchronised state, if the step was followed by an evaluation
    ours_eval: Observation | None = None
    peer_eval: Observation | None = None


def judge(case: c.Case, ndl: Any, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """The verdict on a case. ``peer_too`` applies rule P; ``validate`` checks the truth against torch float64."""
    with np.errstate(all="ignore"):
        if isinstance(case, c.TrainCase):
            return _Train(case, ndl).judge(peer_too, validate)
        if isinstance(case, c.OpCase):
            return _judge_op(case, ndl, peer_too)
        from oracle import second_order

        second: Verdict = second_order.judge(case, ndl)
        return second


def trajectory(case: c.TrainCase, ndl: Any) -> Iterator[Step]:
    """Both systems on a case, step by step, without a verdict."""
    with np.errstate(all="ignore"):
        yield from _Train(case, ndl).trajectory()


# -- training runs ----------------------------------------------------------------------------------------------------


def _not_kept(name: str, message: str) -> str:
    return f"other bits: {name}" if name.endswith(UNSEEN) else message


class _Train:
    def __init__(self, case: c.TrainCase, ndl: Any) -> None:
        self.case, self.ndl = case, ndl
        self.digest = case.digest  # computed once: it is asked for with every tensor
        self.verdict = Verdict(case)
        self.clock = Clock()
        self.clock.turn("inputs")
        self.slots = inputs.slots(case)
        self.batches = inputs.batches(case)
        self.masks = inputs.masks(case, case.steps)
        self.found: list[Divergence] = []
        self.peer_found: list[Divergence] = []
        self.findings = op_rule.Findings()
        self._last_layer = f"{len(case.model) - 1}"
        self._gap, self._late = inputs.gap(case)

    def judge(self, peer_too: bool, validate: bool) -> Verdict:
        verdict, case = self.verdict, self.case
        chunk = max(1, CHUNK // (case.data.rows * max(case.data.features, 64)))
        trajectory = self.trajectory()
        in_domain = True
        while in_domain and not self.found:
            part = list(itertools.islice(trajectory, chunk))
            self.clock.turn("rules")
            if not part:
                break
            complete = [s for s in part if s.ours.failure is None]
            usable = self._judge_part(complete, verdict.steps, peer_too, validate) if complete else 0
            if not complete and not verdict.steps and "initial" in part[0].ours.values:
                self._structure(part[:1])
            if usable and not verdict.steps:
                self._operators()
            verdict.steps += usable
            in_domain = usable == len(complete)
            if in_domain:
                self._exceptions(part)
        verdict.out_of_domain = int(not in_domain)
        if self.found:
            verdict.divergence = self._named(min(self.found, key=lambda f: f.order), part)
        verdict.oracle_errors.extend(f"rule P: torch's {f.message} at step {f.step}" for f in self.peer_found)
        self.clock.turn("")
        verdict.seconds = self.clock.seconds
        return verdict

    # -- running ------------------------------------------------------------------------------------------------------

    def trajectory(self) -> Iterator[Step]:
        """Both systems, step by step; ends where needle raises."""
        case = self.case
        self.run = ours = ours_side.NeedleRun(case, self.ndl, pairs.NEEDLE_LAYERS, self.slots, self.batches, self.clock)
        self.clock.turn("torch")
        peer = peer_side.TorchRun(case, pairs.TORCH_LAYERS, self.slots, self.batches, self.masks, clock=self.clock)
        self.clock.turn("observing")
        self.peer_listed = peer.listed
        state = State(inputs.initial_state(case))
        for t in range(case.steps):
            if ours.failed is None:
                ours.load(state)
            peer.load(state)
            seen = ours.step(t, None if t or foreign else self.findings)
            if seen.failure is not None:
                yield Step(state, seen, Observation(step=t))
                return
            step = Step(state, seen, peer.step(t, _fitting(seen.kinks, self._shapes())))
            state = peer.state()
            if inputs.evaluated_after(t, case.steps):
                ours.load(state)
                step.after = state
                step.ours_eval = ours.evaluate(t)
                peer.load(state)
                if step.ours_eval.failure is None:
                    step.peer_eval = peer.evaluate(t, _fitting(step.ours_eval.kinks, self._shapes()))
            yield step
            finite = np.isfinite(np.concatenate(list(state.tensors.values()), axis=None)).all()
            if ours.failed is not None or not finite:
                return

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        if not hasattr(self, "_kink_shapes"):
            self._kink_shapes = {
                path: (self.case.data.rows, width)
                for path, layer, width, _ in inputs.plain_layers(self.case)
                if isinstance(layer, c.ReLU)
            }
        return self._kink_shapes

    # -- localisation -------------------------------------------------------------------------------------------------

    def _operators(self) -> None:
        """Rule OP has judged the tape of the first step."""
        found, tally = self.findings, self.verdict.tally
        tally.count("OP", found.largest, found.tensors, found.elements, f"{self.digest} {found.where}")
        if found.bad:
            self.found.append(_of_finding(0, found.bad[0]))

    def _named(self, divergence: Divergence, part: Sequence[Step]) -> Divergence:
        """The divergence with its suspect; the failing step is taken once more, from the state that it started from."""
        step = next((s for s in part if s.ours.step == divergence.step), None)
        evidence = locate.Evidence(self.ndl)
        if divergence.failure is None and step is not None:
            evidence.modes = self.run.modes(evaluation=divergence.quantity in ("evaluation", "untouched"))
            evidence.findings = self._again(divergence, step)
            evidence.step = self._update(divergence, step)
            evidence.clipping = self._clipped(divergence, step)
        return locate.named(self.case, divergence, evidence)

    def _again(self, divergence: Divergence, step: Step) -> op_rule.Findings | None:
        """Rule OP on the failing step."""
        if divergence.quantity not in (*locate.FORWARD, *locate.BACKWARD):
            return None
        evaluation, t = divergence.quantity == "evaluation", step.ours.step
        if t == 0 and not evaluation and self.findings.bad:
            return self.findings
        return self.run.again(step.after or step.before if evaluation else step.before, t, evaluation=evaluation)

    def _update(self, divergence: Divergence, step: Step) -> locate.Step | None:
        """The update of the parameter that diverged, in numbers."""
        states = (*_state_of(self.case), "parameter")
        name, seen, grads = divergence.name, step.ours.values, self._gradients(step.ours)
        if divergence.quantity not in (*states, "gradient after step") or name not in grads:
            return None
        if grads[name].shape != step.before.tensors[name].shape:
            return None

        def wide(arrays: Mapping[str, Array], key: str) -> Array:
            return arrays[key].astype(np.float64) if key in arrays else np.zeros(grads[key].shape)

        def state(key: str) -> dict[str, Array]:
            return {q: wide(step.before.slots.get(q, {}), key) for q in _state_of(self.case)}

        after = {"gradient after step": "gradient after step"} | {q: q for q in states}
        rates = [self.case.lr_at(t) for t in range(step.ours.step + 1)]
        raw = seen.get("gradient", {})
        return locate.Step(
            name,
            step.ours.step,
            tuple(peer_side.DEFAULT_LR if r is None else r for r in rates),
            wide(step.before.tensors, name),
            wide(grads, name),
            wide(raw, name) if self.case.clip is not None and name in raw else None,
            state(name),
            {q: wide(seen[q], name) for q in after if name in seen.get(q, {})},
            {n: (wide(grads, n), state(n)) for n in grads},
        )

    def _clipped(self, divergence: Divergence, step: Step) -> locate.Clipping | None:
        """Clipping, in numbers."""
        if divergence.quantity not in ("clip norm", "clipped"):
            return None
        seen = step.ours.values
        raw = {n: g.astype(np.float64) for n, g in seen.get("gradient", {}).items()}
        clipped = {n: g.astype(np.float64) for n, g in seen.get("clipped", {}).items()}
        norm = seen.get("clip norm", {}).get("norm", np.float64("nan"))
        return locate.Clipping(raw, clipped, float(norm), divergence.name)

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge_part(self, part: Sequence[Step], first: int, peer_too: bool, validate: bool) -> int:
        """Applies all rules to consecutive steps; returns how many of them are inside the domain."""
        kinks = [_fitting(s.ours.kinks, self._shapes()) for s in part]
        common = set.intersection(*(set(k) for k in kinks)) if kinks else set()
        kinks = [{p: k[p] for p in common} for k in kinks]
        states = [s.before.tensors for s in part]
        noise = Noise(self.case.seed_for("noise"), coherent=COHERENT)
        self.clock.turn("truth")
        expected = truth.training(self.case, *self.slots, states, self.batches, self.masks, kinks, noise, first)
        self.clock.turn("rules")
        usable = self._inside(expected, len(part))
        part = part[:usable]
        if not part:
            return 0
        own = _cut(expected.values, usable)
        self._structure(part)
        self._rule_g([s.ours for s in part], [s.peer for s in part], own, self.found, "G")
        self._optimizer([s.ours for s in part], part, self.found, "L", own)
        self._torch_optimizer(part)
        self._unchanged(part)
        self._left_behind(part)
        self._evaluations(part, peer_too)
        if peer_too:
            peers = [s.peer for s in part]
            self._rule_g(peers, [s.ours for s in part], own, self.peer_found, "P")
            self._acquit(part, kinks)
            self._optimizer(peers, part, self.peer_found, "P", own)
        if validate:
            self.clock.turn("validation")
            self._validate(part, own, kinks)
            self.clock.turn("rules")
        return usable

    def _inside(self, expected: truth.Truth, steps: int) -> int:
        """How many of the first ``steps`` there are until one is out of the domain."""
        softmax = isinstance(self.case.loss, c.SoftmaxLoss)
        bad = cmp.out_of_domain(expected.values, self._last_layer, softmax)[:steps]
        expected.values.pop("inside", None)  # nobody sees it
        return int(np.argmax(bad)) if bad.any() else steps

    def _structure(self, part: Sequence[Step]) -> None:
        """Parameters and initial values, on the first step."""
        for step in part:
            seen = step.ours.values
            if "parameters" not in seen:
                continue
            self.verdict.tally.count("parameters", 0.0, 1, len(self.peer_listed))
            listed = list(seen["parameters"]["model.parameters()"])
            if listed != self.peer_listed:
                message = f"model.parameters() gives {listed}, not {self.peer_listed}"
                self.found.append(Divergence(0, "parameters", "model.parameters()", "exact", message))
            built = inputs.built_state(self.case, self.case.seed_for("build"))
            joined = Joined([("initial", name) for name in built], [v.shape for v in built.values()])
            expected = joined.steps([list(built.values())])
            # drawn in float64, scaled with a few roundings, cast once
            allowed = 4 * d.U * np.abs(expected) + 1e-12
            wrong = self._within([step.ours], [step.peer], joined, expected, allowed, "exact")
            self.found.extend(wrong.values())

    def _within(
        self,
        seen: Sequence[Observation],
        peer: Sequence[Observation],
        joined: Joined,
        expected: Array,
        allowed: Array,
        rule: str,
        dtype: np.dtype[Any] = FLOAT32,
    ) -> dict[int, Divergence]:
        """Form first, then |seen - expected| <= allowed, (steps, elements) each: what is wrong, by place in ``joined``."""
        columns = [[s.values.get(quantity, NOTHING).get(name) for s in seen] for quantity, name in joined.keys]
        wrong: dict[int, Divergence] = {}
        for i, (key, shape, column) in enumerate(zip(joined.keys, joined.shapes, columns, strict=True)):
            divergence = _forms(seen, key, column, shape, dtype)
            if divergence is not None:
                wrong[i], columns[i] = divergence, [np.zeros(shape, dtype)] * len(seen)
        ours = joined.steps(list(zip(*columns, strict=True)))
        share = cmp.share_of(ours, expected, allowed)
        if rule == "G" and share.max(initial=0) > 1:
            common = (share > 1) & cmp.made_by_both(ours, _joined_or_nan(joined, peer), expected)
            share[common] = 1.0
            self.verdict.common += int(joined.largest(common).sum())
        tops = joined.largest(share)
        self._count(joined, tops, wrong, rule)
        if rule == "G":
            self._difference(ours, peer, joined, allowed)
        if tops.max() > 1:
            for i in np.flatnonzero(tops.max(axis=0) > 1).tolist():
                if i in wrong:
                    continue
                quantity, name = joined.keys[i]
                t = int(np.argmax(tops[:, i] > 1))
                values = [joined.part(a[t], i) for a in (ours, expected, allowed)]
                at = cmp.worst(joined.part(share[t], i))
                other = peer[t].values.get(quantity, NOTHING).get(name)
                wrong[i] = cmp.numeric(seen[t].step, quantity, name, rule, at, values[0], other, *values[1:])
        return dict(sorted(wrong.items()))

    def _count(self, joined: Joined, tops: Array, wrong: Mapping[int, Divergence], rule: str) -> None:
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

    def _rule_g(
        self,
        seen: Sequence[Observation],
        peer: Sequence[Observation],
        expected: Values,
        found: list[Divergence],
        rule: str,
    ) -> None:
        """Every tensor of the truth against what was seen, all steps at once."""
        aliased = _aliased(*seen)
        # without retain_grad, which another needle may lack, there is no adjoint to look at
        observed = set().union(*(s.values.get("adjoint", NOTHING) for s in seen))
        adjoints = {
            n: v
            for n, v in expected.get("adjoint", NOTHING).items()
            if n not in aliased and (n in observed or not foreign)
        }
        compared = {quantity: adjoints if quantity == "adjoint" else values for quantity, values in expected.items()}
        for joined, group in _side_by_side(compared, len(seen)):
            truth = joined.replicas(group, len(seen))
            allowed = cmp.G_LIMIT * cmp.tolerance(truth, joined)
            found.extend(self._within(seen, peer, joined, truth[0], allowed, rule).values())
        for observation in seen:
            for quantity in ("activation", "loss", "adjoint", "gradient", "buffer"):
                known = expected.get(quantity, NOTHING)
                for name in observation.values.get(quantity, NOTHING):
                    if name not in known and not (quantity == "adjoint" and name in aliased):
                        message = f"{quantity} {name} should not exist: nothing flows there"
                        found.append(Divergence(observation.step, quantity, name, "unexpected", message))

    def _acquit(self, steps: Sequence[Step], kinks: Sequence[dict[str, Array]], *, evaluation: bool = False) -> None:
        """Forget what rule P has found where needle makes the same error and torch in float64 gives the truth: the oracle
        is right, and the rounding is one that both share.
        """

        def stands(f: Divergence) -> bool:
            at = [i for i, s in enumerate(steps) if s.ours.step == f.step]
            numbers = (f.ours, f.peer, f.truth, f.error)
            if not at or (f.quantity == "evaluation") != evaluation or not all(isinstance(n, float) for n in numbers):
                return False
            ours, peer, right, error = (np.array(n, np.float64) for n in numbers)
            if not cmp.made_by_both(ours, peer, right):
                return False
            run = peer_side.TorchRun(
                self.case, pairs.TORCH_LAYERS, self.slots, self.batches, self.masks, dtype=torch.float64
            )
            step, kink = steps[at[0]], kinks[at[0]]
            run.load(step.after if evaluation and step.after else step.before)
            seen = run.evaluate(f.step, kink) if evaluation else run.gradients(f.step, kink)
            return bool(abs(seen.values[f.quantity][f.name][f.index] - right) <= VALIDATED * error)

        self.peer_found[:] = [f for f in self.peer_found if not stands(f)]

    def _gradients(self, seen: Observation) -> Mapping[str, Array]:
        """The gradients that the optimizer was given."""
        return seen.values.get("clipped" if self.case.clip is not None else "gradient", NOTHING)

    def _rates(self, steps: Sequence[int]) -> Array:
        """The learning rate of each step, (steps, 1)."""
        rates = [peer_side.DEFAULT_LR if self.case.lr_at(t) is None else self.case.lr_at(t) for t in steps]
        return np.array(rates, dtype=np.float64)[:, None]

    def _optimizer(
        self,
        seen: Sequence[Observation],
        part: Sequence[Step],
        found: list[Divergence],
        rule: str,
        expected: Values,
    ) -> None:
        """Rule L: clipping and the update, from the gradients that were seen, in float64."""
        case, graded = self.case, list(expected.get("gradient", {}))  # in order: a set of names has another in each run
        peers = [s.peer for s in part]
        if case.clip is not None:
            self._clipping(seen, peers, found, rule, graded)
        wrong: dict[str, list[Divergence]] = {slot.name: [] for slot in self.slots[0]}
        updated = []
        for slot in self.slots[0]:
            name = slot.name
            after = [s.values.get("parameter", NOTHING).get(name) for s in seen]
            form = _forms(seen, ("parameter", name), after, slot.shape)
            if form is not None:
                wrong[name].append(form)
                for quantity in _state_of(case) if name in graded and rule == "L" else ():
                    # the state may have gone wrong before
                    states = [s.values.get(quantity, NOTHING).get(name) for s in seen]
                    earlier = _forms(seen, (quantity, name), states, slot.shape)
                    if earlier is not None:
                        wrong[name].append(earlier)
            elif name not in graded:
                self._skipped(seen, [s.before.tensors[name] for s in part], name, after, wrong[name], rule)
            else:
                grads = [self._gradients(s).get(name) for s in seen]
                if all(g is not None and g.shape == slot.shape for g in grads):  # else reported by rule G
                    updated.append(slot)
        if updated:
            names = [slot.name for slot in updated]
            joined = Joined([("parameter", n) for n in names], [slot.shape for slot in updated])
            steps = [s.step for s in seen]
            p = joined.steps([[s.before.tensors[n] for n in names] for s in part]).astype(np.float64)
            g = joined.steps([[self._gradients(s)[n] for n in names] for s in seen]).astype(np.float64)
            old = {q: _state(joined, part, q).astype(np.float64) for q in _state_of(case)}
            count = np.array(steps, dtype=np.float64)[:, None] + 1
            gap, late = self._gap, self._late
            if late in names:
                place = joined.place(names.index(late))
                count = np.repeat(count, joined.size, axis=1)
                count[np.array(steps) > gap, place] -= 1
            update = cmp.expected_update(case, self._rates(steps), p, g, old, count, 4)
            for quantity, (value, bound) in update.values.items():
                if late in names and gap in steps:
                    row = steps.index(gap)
                    value[row, place] = {"parameter": p, **old}[quantity][row, place]
                    # without momentum torch keeps no velocity: there is none to go on from
                    known = quantity == "parameter" or late in part[row].before.slots.get(quantity, NOTHING)
                    bound[row, place] = cmp.EXACT if known else np.inf
                if rule == "P" and quantity == "velocity" and not case.optimizer.momentum:  # type: ignore[union-attr]
                    continue  # torch keeps no buffer without momentum
                of = Joined([(quantity, n) for n in names], joined.shapes)
                off = self._within(seen, peers, of, value, cmp.L_LIMIT * bound, rule)
                for i, divergence in off.items():
                    wrong[names[i]].append(divergence)
        found.extend(itertools.chain.from_iterable(wrong.values()))

    def _skipped(
        self, seen: Sequence[Observation], before: Sequence[Array], name: str, after: Sequence[Array | None],
        found: list[Divergence], rule: str,
    ) -> None:  # fmt: skip
        """A parameter without a gradient stays as it is, bit for bit, and gets no optimizer state."""
        for s, old, value in zip(seen, before, after, strict=True):
            assert value is not None
            self.verdict.tally.count(f"{rule} skipped parameter", 0.0, 1, value.size)
            if not np.array_equal(value, old):
                message = f"parameter {name} has no gradient, but the step changed it"
                found.append(Divergence(s.step, "parameter", name, "exact", message))
            for quantity in _state_of(self.case):
                if name in s.values.get(quantity, NOTHING):
                    message = f"parameter {name} has no gradient, but the step made a {quantity} for it"
                    found.append(Divergence(s.step, quantity, name, "unexpected", message))

    def _clipping(
        self, seen: Sequence[Observation], peers: Sequence[Observation], found: list[Divergence], rule: str,
        graded: Sequence[str],
    ) -> None:  # fmt: skip
        assert self.case.clip is not None
        max_norm = 0.25 if self.case.clip.max_norm is None else self.case.clip.max_norm
        raw = [[s.values.get("gradient", NOTHING).get(n) for n in graded] for s in seen]
        rows = [[g for g in row if g is not None] for row in raw]
        shapes = [g.shape for g in rows[0]]
        if any(len(row) != len(graded) or [g.shape for g in row] != shapes for row in rows):
            return  # reported by rule G
        joined = Joined([("clipped", n) for n in graded], shapes)
        g = joined.steps(rows).astype(np.float64)
        norm = np.sqrt((g * g).sum(axis=1, keepdims=True))
        count = joined.size
        # a float32 accumulation in any order errs by about sqrt(count) roundings
        bound = (4 + np.sqrt(count)) * d.U * norm + d.TINY
        # squares below the smallest float32 are lost: count x TINY in the square of the norm
        lost = count * d.TINY
        bound = bound + np.minimum(np.sqrt(lost), lost / np.maximum(norm, d.TINY))
        alone = Joined([("clip norm", "norm")], [()])
        off = self._within(seen, peers, alone, norm, bound, rule, np.dtype(np.float64))
        found.extend(off.values())
        value = g * cmp.clip_factor(norm, max_norm)
        rounding = 6 * d.U if rule == "L" else (6 + np.sqrt(count)) * d.U
        allowed = cmp.L_LIMIT * (rounding * np.abs(value) + d.TINY)
        found.extend(self._within(seen, peers, joined, value, allowed, rule).values())

    def _torch_optimizer(self, part: Sequence[Step]) -> None:
        """Rule T: torch's own optimizer, fed with our gradients and the old state, makes our update.

        All steps of a case that have the same gradients go into one torch optimizer, as a parameter each.
        """
        alike: dict[tuple[tuple[str, ...], int], list[Step]] = {}
        for step in part:
            before, seen = step.before.tensors, step.ours.values
            grads, after = seen.get("gradient", NOTHING), seen.get("parameter", NOTHING)
            names = tuple(s.name for s in self.slots[0] if s.name in grads)
            if names and all(grads[n].shape == before[n].shape == after.get(n, grads[n]).shape for n in names):
                for some, missed in self._by_steps_missed(names, step.ours.step):
                    alike.setdefault((some, missed), []).append(step)
        for (names, missed), steps in alike.items():
            self._torch_update(names, steps, missed)

    def _by_steps_missed(self, names: tuple[str, ...], step: int) -> Iterator[tuple[tuple[str, ...], int]]:
        """The parameters that are updated in a step, by how many steps the optimizer has not made of them before."""
        if step < self._gap or self._late not in names:
            yield names, 0
            return
        if len(names) > 1:
            yield tuple(n for n in names if n != self._late), 0
        if step > self._gap:
            yield (self._late,), 1

    def _torch_update(self, names: Sequence[str], steps: Sequence[Step], missed: int) -> None:
        case = self.case
        joined = Joined([("parameter", n) for n in names], [steps[0].before.tensors[n].shape for n in names])
        before = joined.steps([[s.before.tensors[n] for n in names] for s in steps]).astype(np.float32)
        grads = joined.steps([[s.ours.values["gradient"][n] for n in names] for s in steps]).astype(np.float32)
        old = {q: _state(joined, steps, q) for q in _state_of(case)}
        times = [s.ours.step for s in steps]
        made = [t - missed for t in times]
        rates, count = self._rates(times), np.array(made, dtype=np.float64)[:, None] + 1
        theirs, off = self._stepped_by_torch(before, grads, old, made, rates[:, 0].tolist())
        # torch adds up squares in float32: what its norm is off by in fact is no fault of needle's
        k = 4.0 if case.clip is None else 12.0 + off[:, None]
        p, g = before.astype(np.float64), grads.astype(np.float64)
        wide = {q: v.astype(np.float64) for q, v in old.items()}
        update = cmp.expected_update(case, rates, p, g, wide, count, k)
        for quantity, (right, bound) in update.values.items():
            stepped = theirs[quantity]
            mine: list[list[Any]] = [[s.ours.values.get(quantity, NOTHING).get(n) for n in names] for s in steps]
            whole = [
                all(a is not None and a.shape == s for a, s in zip(row, joined.shapes, strict=True)) for row in mine
            ]
            # torch has no velocity without momentum; what needle lacks is rule L's to report
            rows = [i for i in range(len(steps)) if whole[i] and stepped[i] is not None]
            if not rows:
                continue
            ours = joined.steps([mine[i] for i in rows]).astype(np.float64)
            value = np.stack([stepped[i].numpy() for i in rows])
            allowed = cmp.T_LIMIT * bound[rows]
            share = cmp.share_of(ours, value, allowed)
            most = cmp.worst(share)
            self.verdict.tally.count(
                f"T {quantity}", float(share[most]), len(rows) * len(names), share.size,
                f"{self.digest} {quantity} {names[joined.tensor(most[1])]}",
            )  # fmt: skip
            for r in np.flatnonzero(share.max(axis=1) > 1):
                at = int(np.argmax(share[r]))
                i = joined.tensor(at)
                index = cmp.unravelled(at - joined.starts[i], joined.shapes[i])
                message = f"{quantity} {names[i]} is not what torch's optimizer makes of needle's gradients (rule T)"
                self.found.append(
                    Divergence(times[rows[r]], quantity, names[i], "T", message, index, float(ours[r, at]),
                               float(value[r, at]), float(right[rows[r], at]), "float32",
                               abs(float(ours[r, at]) - float(value[r, at])), float(allowed[r, at]))
                )  # fmt: skip

    def _stepped_by_torch(
        self, before: Array, grads: Array, old: Mapping[str, Array], made: Sequence[int], rates: Sequence[float]
    ) -> tuple[dict[str, list[Any]], Array]:
        """What torch's optimizer, which has ``made`` so many steps, makes of the rows of ``before``: quantity -> a torch
        tensor or None for each row; and by how many roundings the norms are off with which it has clipped ``grads``, in
        place.
        """
        case = self.case
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
        return {"parameter": [p.detach() for p in parameters], **state}, cmp.roundings_apart(
            np.array(norms), np.array(exact)
        )

    def _unchanged(self, part: Sequence[Step]) -> None:
        """Bits that must not change: gradients during the step, arrays kept from earlier steps."""
        for step in part:
            seen, t = step.ours.values, step.ours.step
            given, after = self._gradients(step.ours), seen.get("gradient after step", NOTHING)
            if t == self._gap:
                given = {name: g for name, g in given.items() if name != self._late}
            self.verdict.tally.count("exact gradient after step", 0.0, len(given), sum(g.size for g in given.values()))
            for name, before in given.items():
                value = after.get(name)
                wrong = cmp.check_form(t, "gradient after step", name, value, before.shape, before.dtype)
                if wrong is None and not cmp.same_bits(value, before):  # type: ignore[arg-type]
                    message = f"the step changed the gradient {name} in place"
                    wrong = Divergence(t, "gradient after step", name, "exact", message)
                if wrong is not None:
                    self.found.append(wrong)
            kept = seen.get("kept", NOTHING)
            self.verdict.tally.count("exact kept", 0.0, len(kept), len(kept))
            for name, same in kept.items():
                if not same:
                    message = _not_kept(name, f"what must stay as it is has changed: {name}")
                    self.found.append(Divergence(t, "kept", name, "exact", message))

    def _left_behind(self, part: Sequence[Step]) -> None:
        """Gates A and B: what a step, or an evaluation, leaves in memory. The bar is zero."""
        for step in part:
            for observation in (step.ours, step.ours_eval):
                for quantity, text in LEFT_BEHIND.items():
                    for name, number in (observation.values if observation else {}).get(quantity, {}).items():
                        self.verdict.tally.count(f"exact {quantity}", 0.0, 1, 1)
                        if number:
                            after = "evaluation" if observation is step.ours_eval else "step"
                            message = text.format(number=int(number), after=after)
                            self.found.append(Divergence(step.ours.step, quantity, name, "exact", message))

    def _evaluations(self, part: Sequence[Step], peer_too: bool) -> None:
        done = [s for s in part if s.after is not None and s.ours_eval is not None and s.ours_eval.failure is None]
        if not done:
            return
        kinks = [_fitting(s.ours_eval.kinks, self._shapes()) for s in done]  # type: ignore[union-attr]
        common = set.intersection(*(set(k) for k in kinks))
        kinks = [{p: k[p] for p in common} for k in kinks]
        x = np.stack([self.batches.x[s.ours.step, 0] for s in done])
        states = [s.after.tensors for s in done]  # type: ignore[union-attr]
        self.clock.turn("truth")
        noise = Noise(self.case.seed_for("evaluation"), coherent=COHERENT)
        expected = truth.evaluation(self.case, states, x, kinks, noise)
        self.clock.turn("rules")
        usable = self._inside(expected, len(done))
        done = done[:usable]
        if not done:
            return
        own = _cut(expected.values, usable)
        seen = [s.ours_eval for s in done if s.ours_eval is not None]
        peers = [s.peer_eval for s in done if s.peer_eval is not None]
        self._rule_g(seen, peers, own, self.found, "G")
        if peer_too:
            self._rule_g(peers, seen, own, self.peer_found, "P")
            self._acquit(done, kinks, evaluation=True)
        for observation in seen:
            for name, same in observation.values.get("untouched", {}).items():
                self.verdict.tally.count("exact untouched", 0.0, 1, 1)
                if not same:
                    message = _not_kept(name, f"evaluation changed {name}")
                    self.found.append(Divergence(observation.step, "untouched", name, "exact", message))

    def _exceptions(self, steps: Sequence[Step]) -> None:
        for step in steps:
            for observation in (step.ours, step.ours_eval):
                if observation is not None and observation.failure is not None:
                    f = observation.failure
                    message = f"needle raised {f.kind} in {f.phase}: {f.message}"
                    self.found.append(
                        Divergence(observation.step, f"exception in {f.phase}", f.kind, "exception", message, failure=f)
                    )

    def _validate(
        self,
        part: Sequence[Step],
        own: Values,
        kinks: Sequence[dict[str, Array]],
    ) -> None:
        """Replica 0 against the same model in torch float64, under rule G with a limit of 1e-4."""
        run = peer_side.TorchRun(
            self.case, pairs.TORCH_LAYERS, self.slots, self.batches, self.masks, dtype=torch.float64
        )
        seen = []
        for i, step in enumerate(part):
            run.load(step.before)
            seen.append(run.gradients(step.ours.step, kinks[i]))
        aliased = _aliased(*seen)
        compared: dict[str, dict[str, Array]] = {}
        for quantity, values in own.items():
            for name, value in values.items():
                if quantity == "adjoint" and name in aliased:
                    continue
                if any(s.values.get(quantity, NOTHING).get(name) is None for s in seen):
                    self.verdict.oracle_errors.append(f"torch float64 has no {quantity} {name}")
                    continue
                compared.setdefault(quantity, {})[name] = value
        for joined, group in _side_by_side(compared, len(seen)):
            truth = joined.replicas(group, len(seen))
            exact = joined.steps([[s.values[quantity][name] for quantity, name in joined.keys] for s in seen])
            tops = joined.largest(cmp.share_of(exact, truth[0], VALIDATED * cmp.tolerance(truth, joined)))
            self._count(joined, tops, {}, "validation")
            for t, i in np.argwhere(tops > 1):
                quantity, name = joined.keys[i]
                self.verdict.oracle_errors.append(
                    f"the truth is wrong: {quantity} {name} is off by {tops[t, i] * VALIDATED:.3g} x tolerance"
                    f" from torch float64"
                )


def _of_finding(step: int, f: op_rule.Finding) -> Divergence:
    """A finding of rule OP as a divergence of its own."""
    return Divergence(step, "operator", f.name, "OP", f.message, f.index or None, f.ours, None, f.truth, f.dtype,
                      f.error, f.allowed)  # fmt: skip


def _state_of(case: c.TrainCase) -> tuple[str, ...]:
    return ("velocity",) if isinstance(case.optimizer, c.SGD) else ("first moment", "second moment")


def _cut(values: Mapping[str, Mapping[str, Array]], steps: int) -> dict[str, dict[str, Array]]:
    return {q: {n: v[:, :steps] for n, v in vs.items()} for q, vs in values.items()}


def _fitting(kinks: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Decisions of ours that have the right shape; a wrong shape is reported elsewhere."""
    return {p: k for p, k in kinks.items() if k.shape == shapes.get(p.split("#")[0])}


def _aliased(*seen: Observation) -> set[str]:
    """Layers that hand their input on as the same tensor: an adjoint of their own does not exist."""
    return set().union(*(s.aliases for s in seen))


def _forms(
    seen: Sequence[Observation], key: cmp.Key, arrays: Sequence[Array | None], shape: Sequence[int],
    dtype: np.dtype[Any] = FLOAT32,
) -> Divergence | None:  # fmt: skip
    for s, array in zip(seen, arrays, strict=True):
        if array is None or array.shape != shape or array.dtype != dtype:
            return cmp.check_form(s.step, *key, array, shape, dtype)
    return None


def _side_by_side(values: Values, steps: int) -> Iterator[tuple[Joined, list[Array]]]:
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


def _joined_or_nan(joined: Joined, seen: Sequence[Observation]) -> Array:
    """What was seen, (steps, elements); nan where a tensor is missing or has another shape."""
    rows = []
    for observation in seen:
        row = [observation.values.get(quantity, NOTHING).get(name) for quantity, name in joined.keys]
        fits = zip(row, joined.shapes, strict=True)
        rows.append([a if a is not None and a.shape == s else np.full(s, np.nan) for a, s in fits])
    return joined.steps(rows)


def _state(joined: Joined, steps: Sequence[Step], quantity: str) -> Array:
    """The optimizer's state before each step, (steps, elements) float32; what does not exist yet is zero."""
    zeros = {n: np.zeros(s, np.float32) for (_, n), s in zip(joined.keys, joined.shapes, strict=True)}
    return joined.steps([[s.before.slots.get(quantity, zeros).get(n, zeros[n]) for n in zeros] for s in steps])


# -- single operations ------------------------------------------------------------------------------------------------


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
    out = d.OPS[case.op](tape, *operands, **attributes)
    tape.backward([(out, case.cotangent_array.astype(np.float64)[None, None])])
    grads = {f"operand {i}": v.adjoint for i, v in enumerate(operands) if v.adjoint is not None}
    return out.value, grads


def _judge_op(case: c.OpCase, ndl: Any, peer_too: bool) -> Verdict:
    verdict = Verdict(case, steps=1)
    row, clock = pairs.OPS[case.op], Clock()
    clock.turn("observing")
    seen = ours_side.run_op(case, ndl, row.needle, graph=not foreign, clock=clock)
    clock.turn("torch")
    peer = peer_side.run_op(case, row.torch)
    clock.turn("rules")
    found: list[Divergence] = []
    peer_found: list[Divergence] = []
    if seen.failure is not None:
        f = seen.failure
        message = f"needle raised {f.kind} in {f.phase}: {f.message}"
        found.append(Divergence(0, f"exception in {f.phase}", f.kind, "exception", message, failure=f))
    else:
        clock.turn("truth")
        value, grads = op_truth(case, Noise(case.seed_for("noise")))
        expected = {"activation": {case.op: value}, "gradient": grads}
        clock.turn("rules")
        if not foreign:
            expected["gradient with graph"] = grads
        for quantity, values in expected.items():
            for name, array in values.items():
                theirs = peer.values[quantity.removesuffix(" with graph")][name]
                ours = seen.values.get(quantity, {}).get(name)
                wrong = cmp.check_form(0, quantity, name, ours, array.shape[2:], "float32")
                if wrong is None:
                    assert ours is not None
                    wrong = _op_values(verdict, case, quantity, name, ours, theirs, array, "G")
                if wrong is not None:
                    found.append(wrong)
                if peer_too and not quantity.endswith(" with graph"):
                    off = _op_values(verdict, case, quantity, name, theirs, theirs, array, "P")
                    if off is not None:
                        peer_found.append(off)
            for name in seen.values.get(quantity, {}).keys() - values.keys():
                message = f"needle has a {quantity} of {name}, which asks for none"
                found.append(Divergence(0, quantity, name, "unexpected", message))
        for name, same in seen.values["kept"].items():
            verdict.tally.count("exact kept", 0.0, 1, 1)
            if not same:
                found.append(Divergence(0, "kept", name, "exact", f"{case.op} changed its {name} in place"))
    if found:
        evidence = locate.Evidence(ndl)
        if seen.failure is None:
            evidence.findings = None if foreign else op_rule.Findings()
            ours_side.run_op(case, ndl, row.needle, evidence.findings, graph=True)
        verdict.divergence = locate.named(case, min(found, key=lambda f: f.order), evidence)
    verdict.oracle_errors.extend(f"rule P: torch's {f.message}" for f in peer_found)
    clock.turn("")
    verdict.seconds = clock.seconds
    return verdict


def _op_values(
    verdict: Verdict, case: c.OpCase, quantity: str, name: str, ours: Array, peer: Array, truth: Array, rule: str
) -> Divergence | None:
    """Rule G where truth is a float32 number; where it is not, ours must be nan or the same infinity as torch's.

    Where torch alone overflows on its way to a float32 number, ours is held against the truth.
    """
    exact = truth[0, 0]
    with np.errstate(all="ignore"):
        small = np.abs(exact) < 1e37
        calm = np.where(small, truth, 0.0)
        share = np.where(small, cmp.share_g(np.where(small, ours, 0.0)[None], calm)[0], 0.0)
        share = np.where(small & ~np.isfinite(ours), np.inf, share)
        tame = small & (np.isfinite(peer) | (share <= 1))
        share = np.where(tame, share, 0.0)
        # a result that overflows may do so a little earlier or later; nan and the sign of inf are not negotiable
        odd = ~tame & ~((np.isnan(ours) & np.isnan(peer)) | (ours == peer) | (np.abs(exact) >= 1e37) & ~np.isnan(ours))
    top = float(share.max(initial=0.0))
    verdict.tally.count(f"{rule} op {case.op}", top, 1, ours.size, f"{case.digest} {quantity} {name}")
    if odd.any():
        at = cmp.worst(odd)
        message = f"{quantity} {name} is {ours[at]} where torch gives {peer[at]} (nan and inf must agree)"
        return Divergence(0, quantity, name, "nonfinite", message, at, float(ours[at]), float(peer[at]),
                          float(exact[at]), str(ours.dtype))  # fmt: skip
    if top > 1:
        at = cmp.worst(share)
        allowed = cmp.G_LIMIT * cmp.tolerance(calm)[0]
        return cmp.numeric(0, quantity, name, rule, at, ours, peer, exact, allowed)
    return None


# -- real data --------------------------------------------------------------------------------------------------------


def judge_digits(case: c.TrainCase, ndl: Any) -> tuple[Verdict, float]:
    """The verdict on a run on the digits, and needle's accuracy on the held-out images afterwards."""
    train = _Train(case, ndl)
    with np.errstate(all="ignore"):
        verdict = train.judge(peer_too=True, validate=False)
    if verdict.divergence is not None:
        return verdict, float("nan")
    images, labels = inputs.digits(train=False)
    model = train.run.model
    model.eval()
    logits = np.asarray(model(ndl.Tensor(images, requires_grad=False)).cached_data)
    model.train()
    return verdict, float((logits.argmax(axis=1) == labels).mean())
