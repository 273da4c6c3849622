"""Runs one Case in both systems and judges it: ours against the truth, torch against the truth, update against update.

1. needle and torch run in lockstep, float32, synchronised from torch's state before every step; all observables are kept.
2. One pass of the truth covers all steps of the case.
3. The rules compare. The first divergence, in the order in which quantities arise, is the verdict.
"""

from __future__ import annotations

import itertools
import time
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
from oracle.compare import Divergence, Tally
from oracle.definitions import Noise
from oracle.trace import Observation, State

Array = npt.NDArray[Any]

LEFT_BEHIND = {
    "graph": "{number} Tensors with an op live on after the {after}, although the loss and all gradients were dropped",
    "live tensors": "the number of live Tensors changes by {number:+d} in the {after}",
    "cycles": "{number} objects are left by the {after} for the cycle collector to free",
}
CHUNK = 1 << 15  # rows x width x steps of the truth held at once; beyond it, steps are judged in several passes
VALIDATED = 1e-4  # limit of rule G for the truth's replica 0 against torch float64


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
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    out_of_domain: int = 0
    largest_difference: float = 0.0  # |ours - peer| in units of rule G's tolerance
    seconds: dict[str, float] = field(default_factory=dict)


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


class _Train:
    def __init__(self, case: c.TrainCase, ndl: Any) -> None:
        self.case, self.ndl = case, ndl
        self.digest = case.digest  # computed once: it is asked for with every tensor
        self.verdict = Verdict(case)
        self.slots = inputs.slots(case)
        self.batches = inputs.batches(case)
        self.masks = inputs.masks(case, case.steps)
        self.found: list[Divergence] = []
        self.peer_found: list[Divergence] = []
        self.findings = op_rule.Findings()
        self._last_layer = f"{len(case.model) - 1}"

    def judge(self, peer_too: bool, validate: bool) -> Verdict:
        verdict, case = self.verdict, self.case
        chunk = max(1, CHUNK // (case.data.rows * max(case.data.features, 64)))
        trajectory = self.trajectory()
        in_domain = True
        while in_domain and not self.found:
            started = time.perf_counter()
            part = list(itertools.islice(trajectory, chunk))
            self._spend("systems", started + (0.0 if verdict.steps else self.findings.seconds))
            if not part:
                break
            started = time.perf_counter()
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
            self._spend("rules", started)
        verdict.out_of_domain = int(not in_domain)
        if self.found:
            started = time.perf_counter()
            verdict.divergence = self._named(min(self.found, key=lambda f: f.order), part)
            self._spend("rules", started)
        verdict.oracle_errors.extend(f"rule P: torch's {f.message} at step {f.step}" for f in self.peer_found)
        return verdict

    def _spend(self, what: str, started: float) -> None:
        seconds = self.verdict.seconds
        seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - started

    # -- running ------------------------------------------------------------------------------------------------------

    def trajectory(self) -> Iterator[Step]:
        """Both systems, step by step; ends where needle raises."""
        case = self.case
        self.run = ours = ours_side.NeedleRun(case, self.ndl, pairs.NEEDLE_LAYERS, self.slots, self.batches)
        peer = peer_side.TorchRun(case, pairs.TORCH_LAYERS, self.slots, self.batches, self.masks)
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
            if ours.failed is not None or not all(np.isfinite(v).all() for v in state.tensors.values()):
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
        self.verdict.seconds["rules"] = self.verdict.seconds.get("rules", 0.0) + found.seconds
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
        about = (self.case, *self.slots, states, self.batches, self.masks, kinks)
        noise = Noise(self.case.seed_for("noise"), coherent=3 if foreign else 0)
        expected = truth.training(*about, noise, usual_norms=foreign, first=first)
        bad = cmp.out_of_domain(expected.values, self._last_layer)
        usable = int(np.argmax(bad)) if bad.any() else len(part)
        part = part[:usable]
        if not part:
            return 0
        own = _cut(expected.values, usable)
        self._structure(part)
        self._rule_g([s.ours for s in part], [s.peer for s in part], own, self.found, first, "G")
        self._optimizer([s.ours for s in part], part, first, self.found, "L", own)
        self._torch_optimizer(part, first)
        self._unchanged(part)
        self._left_behind(part)
        self._evaluations(part, first, peer_too)
        if peer_too:
            if any(isinstance(layer, c.BatchNorm | c.LayerNorm) for _, layer in c.walk(self.case.model)):
                noise = Noise(self.case.seed_for("twin"), coherent=3)
                twin = truth.training(*about, noise, usual_norms=True, first=first)
                own = _cut(twin.values, usable)
            peers = [s.peer for s in part]
            self._rule_g(peers, peers, own, self.peer_found, first, "P")
            self._optimizer(peers, part, first, self.peer_found, "P", own)
        if validate:
            self._validate(part, own, first, kinks)
        return usable

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
            for name, expected in built.items():
                value = seen["initial"].get(name)
                wrong = cmp.check_form(0, "initial", name, value, expected.shape, "float32")
                if wrong is None:
                    assert value is not None
                    # drawn in float64, scaled with a few roundings, cast once
                    allowed = 4 * d.U * np.abs(expected) + 1e-12
                    share = np.abs(value - expected) / allowed
                    share = np.where(np.isnan(share), np.inf, share)
                    at = cmp.worst(share)
                    self.verdict.tally.count("initial", float(share[at]), 1, value.size, name)
                    if share[at] > 1:
                        wrong = cmp.numeric(0, "initial", name, "exact", at, value, None, expected, allowed)
                if wrong is not None:
                    self.found.append(wrong)

    def _rule_g(
        self,
        seen: Sequence[Observation],
        peer: Sequence[Observation],
        expected: Mapping[str, Mapping[str, Array]],
        found: list[Divergence],
        first: int,
        rule: str,
    ) -> None:
        """Every tensor of the truth against what was seen, all steps at once."""
        aliased = _aliased(*seen)
        for quantity, values in expected.items():
            for name, value in values.items():
                if quantity == "adjoint" and name in aliased:
                    continue
                arrays = [s.values.get(quantity, {}).get(name) for s in seen]
                if foreign and quantity == "adjoint" and all(a is None for a in arrays):
                    continue  # no retain_grad: nothing to look at
                wrong = _forms(seen, quantity, name, arrays, value.shape[2:], "float32")
                if wrong is not None:
                    found.append(wrong)
                    continue
                stacked = np.stack([a for a in arrays if a is not None])
                share = cmp.share_g(stacked, value)
                where = f"{self.digest} {quantity} {name}"
                top = float(share.max(initial=0.0))
                self.verdict.tally.count(f"{rule} {quantity}", top, len(seen), stacked.size, where)
                if rule == "G":
                    others = [p.values.get(quantity, {}).get(name) for p in peer]
                    self._difference(stacked, others, value)
                if top > 1:
                    t = int(np.argmax(share.reshape(len(seen), -1).max(axis=1) > 1))
                    allowed = cmp.G_LIMIT * cmp.tolerance(value)[t]
                    at = cmp.worst(share[t])
                    other = peer[t].values.get(quantity, {}).get(name)
                    found.append(
                        cmp.numeric(seen[t].step, quantity, name, rule, at, stacked[t], other, value[0, t], allowed)
                    )
        for observation in seen:
            for quantity in ("activation", "loss", "adjoint", "gradient", "buffer"):
                for name in observation.values.get(quantity, {}):
                    if name not in expected.get(quantity, {}) and not (quantity == "adjoint" and name in aliased):
                        message = f"{quantity} {name} should not exist: nothing flows there"
                        found.append(Divergence(observation.step, quantity, name, "unexpected", message))

    def _difference(self, ours: Array, peer: Sequence[Array | None], value: Array) -> None:
        if all(p is not None and p.shape == ours.shape[1:] for p in peer):
            gap = np.abs(ours - np.stack([p for p in peer if p is not None]))
            share = gap / (cmp.G_LIMIT * cmp.tolerance(value))
            self.verdict.largest_difference = max(self.verdict.largest_difference, float(np.nanmax(share, initial=0)))

    def _gradients(self, seen: Observation) -> dict[str, Array]:
        """The gradients that the optimizer was given."""
        return seen.values.get("clipped" if self.case.clip is not None else "gradient", {})

    def _optimizer(
        self,
        seen: Sequence[Observation],
        part: Sequence[Step],
        first: int,
        found: list[Divergence],
        rule: str,
        expected: Mapping[str, Mapping[str, Array]],
    ) -> None:
        """Rule L: clipping and the update, from the gradients that were seen, in float64."""
        case, graded = self.case, list(expected.get("gradient", {}))  # in order: a set of names has another in each run
        if case.clip is not None:
            self._clipping(seen, found, rule, graded)
        steps = [s.step for s in seen]
        for slot in self.slots[0]:
            name = slot.name
            after = [s.values.get("parameter", {}).get(name) for s in seen]
            wrong = _forms(seen, "parameter", name, after, slot.shape, "float32")
            if wrong is not None:
                found.append(wrong)
                for quantity in _state_of(case) if name in graded and rule == "L" else ():
                    # the state may have gone wrong before
                    states = [s.values.get(quantity, {}).get(name) for s in seen]
                    earlier = _forms(seen, quantity, name, states, slot.shape, "float32")
                    if earlier is not None:
                        found.append(earlier)
                continue
            p = np.stack([s.before.tensors[name] for s in part]).astype(np.float64)
            if name not in graded:
                self._skipped(seen, p, name, after, found, rule)
                continue
            grads = [self._gradients(s).get(name) for s in seen]
            if any(g is None or g.shape != slot.shape for g in grads):
                continue  # reported by rule G
            g = np.stack([x for x in grads if x is not None]).astype(np.float64)
            wide = (-1,) + (1,) * len(slot.shape)
            rates = [peer_side.DEFAULT_LR if case.lr_at(t) is None else case.lr_at(t) for t in steps]
            lr = np.array(rates, dtype=np.float64).reshape(wide)
            old = {
                q: np.stack([s.before.slots.get(q, {}).get(name, np.zeros(slot.shape)) for s in part]).astype(float)
                for q in _state_of(case)
            }
            count = np.array(steps, dtype=np.float64).reshape(wide) + 1
            update = cmp.expected_update(case, lr, p, g, old, count, 4)
            for quantity, (value, bound) in update.values.items():
                arrays = [s.values.get(quantity, {}).get(name) for s in seen]
                if rule == "P" and quantity == "velocity" and not case.optimizer.momentum:  # type: ignore[union-attr]
                    continue  # torch keeps no buffer without momentum
                self._within(seen, quantity, name, rule, arrays, value, bound, cmp.L_LIMIT, found, part)

    def _skipped(
        self, seen: Sequence[Observation], p: Array, name: str, after: Sequence[Array | None],
        found: list[Divergence], rule: str,
    ) -> None:  # fmt: skip
        """A parameter without a gradient stays as it is, bit for bit, and gets no optimizer state."""
        for s, before, value in zip(seen, p, after, strict=True):
            assert value is not None
            self.verdict.tally.count(f"{rule} skipped parameter", 0.0, 1, value.size)
            if not np.array_equal(value, before.astype(np.float32)):
                message = f"parameter {name} has no gradient, but the step changed it"
                found.append(Divergence(s.step, "parameter", name, "exact", message))
            for quantity in _state_of(self.case):
                if name in s.values.get(quantity, {}):
                    message = f"parameter {name} has no gradient, but the step made a {quantity} for it"
                    found.append(Divergence(s.step, quantity, name, "unexpected", message))

    def _clipping(self, seen: Sequence[Observation], found: list[Divergence], rule: str, graded: Sequence[str]) -> None:
        assert self.case.clip is not None
        max_norm = 0.25 if self.case.clip.max_norm is None else self.case.clip.max_norm
        raw = {n: [s.values.get("gradient", {}).get(n) for s in seen] for n in graded}
        if any(g is None for gs in raw.values() for g in gs):
            return
        squares = np.zeros(len(seen))
        for gs in raw.values():
            squares += [float((np.asarray(g, dtype=np.float64) ** 2).sum()) for g in gs]
        norm = np.sqrt(squares)
        norms = [s.values.get("clip norm", {}).get("norm") for s in seen]
        count = sum(gs[0].size for gs in raw.values() if gs[0] is not None)
        # a float32 accumulation in any order errs by about sqrt(count) roundings
        bound = (4 + np.sqrt(count)) * d.U * norm + d.TINY
        # squares below the smallest float32 are lost: count x TINY in the square of the norm
        lost = count * d.TINY
        bound = bound + np.minimum(np.sqrt(lost), lost / np.maximum(norm, d.TINY))
        self._within(seen, "clip norm", "norm", rule, norms, norm, bound, 1.0, found, None, dtype="float64")
        factor = cmp.clip_factor(norm, max_norm)
        for name, gs in raw.items():
            g = np.stack([x for x in gs if x is not None]).astype(np.float64)
            value = g * factor.reshape((-1,) + (1,) * (g.ndim - 1))
            arrays = [s.values.get("clipped", {}).get(name) for s in seen]
            rounding = 6 * d.U if rule == "L" else (6 + np.sqrt(count)) * d.U
            bound = rounding * np.abs(value) + d.TINY
            self._within(seen, "clipped", name, rule, arrays, value, bound, cmp.L_LIMIT, found, None)

    def _within(
        self,
        seen: Sequence[Observation],
        quantity: str,
        name: str,
        rule: str,
        arrays: Sequence[Array | None],
        value: Array,
        bound: Array,
        limit: float,
        found: list[Divergence],
        part: Sequence[Step] | None,
        dtype: str = "float32",
    ) -> None:
        """Form first, then |seen - value| <= limit x bound."""
        wrong = _forms(seen, quantity, name, arrays, value.shape[1:], dtype)
        if wrong is not None:
            found.append(wrong)
            return
        stacked = np.stack([a for a in arrays if a is not None])
        share = np.abs(stacked - value) / (limit * bound)
        share = np.where(np.isnan(share), np.inf, share)
        top = float(share.max(initial=0.0))
        where = f"{self.digest} {quantity} {name}"
        self.verdict.tally.count(f"{rule} {quantity}", top, len(seen), stacked.size, where)
        if top > 1:
            t = int(np.argmax(share.reshape(len(seen), -1).max(axis=1) > 1))
            other = part[t].peer.values.get(quantity, {}).get(name) if part is not None else None
            at = cmp.worst(share[t])
            found.append(
                cmp.numeric(seen[t].step, quantity, name, rule, at, stacked[t], other, value[t], limit * bound[t])
            )

    def _torch_optimizer(self, part: Sequence[Step], first: int) -> None:
        """Rule T: torch's own optimizer, fed with our gradients and the old state, makes our update."""
        case = self.case
        for step in part:
            seen, t = step.ours.values, step.ours.step
            grads = seen.get("gradient", {})
            names = [s.name for s in self.slots[0] if s.name in grads]
            fits = all(
                grads[n].shape == step.before.tensors[n].shape == seen.get("parameter", {}).get(n, grads[n]).shape
                for n in names
            )
            if not names or not fits:
                continue
            flat = _Flat(names, step)
            p = torch.from_numpy(flat.join(step.before.tensors)).requires_grad_()
            p.grad = torch.from_numpy(flat.join(grads))
            if case.clip is not None:
                max_norm = 0.25 if case.clip.max_norm is None else case.clip.max_norm
                torch.nn.utils.clip_grad_norm_([p], max_norm)
            optimizer = peer_side.torch_optimizer(case, [p])
            lr = case.lr_at(t)
            optimizer.param_groups[0]["lr"] = peer_side.DEFAULT_LR if lr is None else lr
            old = {q: flat.join(step.before.slots.get(q, {})) for q in _state_of(case)}
            if isinstance(case.optimizer, c.Adam):
                optimizer.state[p] = {
                    "step": torch.tensor(float(t)),
                    "exp_avg": torch.from_numpy(old["first moment"]),
                    "exp_avg_sq": torch.from_numpy(old["second moment"]),
                }
            elif case.optimizer.momentum:
                optimizer.state[p]["momentum_buffer"] = torch.from_numpy(old["velocity"])
            g = p.grad.numpy().astype(np.float64)
            before = p.detach().numpy().astype(np.float64)
            optimizer.step()
            rate = np.float64(peer_side.DEFAULT_LR if lr is None else lr)
            wide = {q: v.astype(np.float64) for q, v in old.items()}
            k = 12.0 if case.clip is not None else 4.0
            update = cmp.expected_update(case, rate, before, g, wide, np.float64(t + 1), k)  # type: ignore[arg-type]
            made = {q: optimizer.state[p].get(key) for q, key in peer_side.TORCH_STATE.items()}
            made["parameter"] = p.detach()
            for quantity, (_, bound) in update.values.items():
                theirs, mine = made.get(quantity), seen.get(quantity, {})
                if theirs is None or any(n not in mine or mine[n].shape != step.before.tensors[n].shape for n in names):
                    continue  # no such state in torch (no momentum), or reported by rule L
                ours, value = flat.join(mine), theirs.numpy()
                allowed = cmp.T_LIMIT * bound
                share = np.abs(ours.astype(np.float64) - value) / allowed
                share = np.where(np.isnan(share), np.inf, share)
                at = cmp.worst(share)
                name, index = flat.locate(at[0])
                where = f"{self.digest} {quantity} {name}"
                self.verdict.tally.count(f"T {quantity}", float(share[at]), len(names), share.size, where)
                if share[at] > 1:
                    error = abs(float(ours[at]) - float(value[at]))
                    message = f"{quantity} {name} is not what torch's optimizer makes of needle's gradients (rule T)"
                    self.found.append(
                        Divergence(t, quantity, name, "T", message, index, float(ours[at]), float(value[at]),
                                   float(update.values[quantity][0][at]), "float32", error, float(allowed[at]))
                    )  # fmt: skip

    def _unchanged(self, part: Sequence[Step]) -> None:
        """Bits that must not change: gradients during the step, arrays kept from earlier steps."""
        for step in part:
            seen, t = step.ours.values, step.ours.step
            after = seen.get("gradient after step", {})
            for name, before in self._gradients(step.ours).items():
                value = after.get(name)
                wrong = cmp.check_form(t, "gradient after step", name, value, before.shape, str(before.dtype))
                self.verdict.tally.count("exact gradient after step", 0.0, 1, before.size)
                if wrong is None and not np.array_equal(value, before, equal_nan=True):  # type: ignore[arg-type]
                    message = f"the step changed the gradient {name} in place"
                    wrong = Divergence(t, "gradient after step", name, "exact", message)
                if wrong is not None:
                    self.found.append(wrong)
            for name, same in seen.get("kept", {}).items():
                self.verdict.tally.count("exact kept", 0.0, 1, 1)
                if not same:
                    message = f"what must stay as it is has changed: {name}"
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

    def _evaluations(self, part: Sequence[Step], first: int, peer_too: bool) -> None:
        done = [s for s in part if s.after is not None and s.ours_eval is not None and s.ours_eval.failure is None]
        if not done:
            return
        kinks = [_fitting(s.ours_eval.kinks, self._shapes()) for s in done]  # type: ignore[union-attr]
        common = set.intersection(*(set(k) for k in kinks))
        kinks = [{p: k[p] for p in common} for k in kinks]
        x = np.stack([self.batches.x[s.ours.step, 0] for s in done])
        states = [s.after.tensors for s in done]  # type: ignore[union-attr]
        expected = truth.evaluation(self.case, states, x, kinks, Noise(self.case.seed_for("evaluation")))
        bad = cmp.out_of_domain(expected.values, self._last_layer)
        usable = int(np.argmax(bad)) if bad.any() else len(done)
        done = done[:usable]
        if not done:
            return
        own = _cut(expected.values, usable)
        seen = [s.ours_eval for s in done if s.ours_eval is not None]
        peers = [s.peer_eval for s in done if s.peer_eval is not None]
        self._rule_g(seen, peers, own, self.found, first, "G")
        if peer_too:
            self._rule_g(peers, peers, own, self.peer_found, first, "P")
        for observation in seen:
            for name, same in observation.values.get("untouched", {}).items():
                self.verdict.tally.count("exact untouched", 0.0, 1, 1)
                if not same:
                    message = f"evaluation changed {name}"
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
        own: Mapping[str, Mapping[str, Array]],
        first: int,
        kinks: Sequence[dict[str, Array]],
    ) -> None:
        """Replica 0 against the same model in torch float64, under rule G with a limit of 1e-4."""
        run = peer_side.TorchRun(
            self.case, pairs.TORCH_LAYERS, self.slots, self.batches, self.masks, dtype=torch.float64
        )
        for i, step in enumerate(part):
            run.load(step.before)
            seen = run.step(step.ours.step, kinks[i])
            for quantity, values in own.items():
                for name, value in values.items():
                    array = seen.values.get(quantity, {}).get(name)
                    if quantity == "adjoint" and name in _aliased(seen):
                        continue
                    if array is None:
                        self.verdict.oracle_errors.append(f"torch float64 has no {quantity} {name}")
                        continue
                    share = float(cmp.share_g(array[None], value[:, i : i + 1]).max(initial=0)) * cmp.G_LIMIT
                    key = f"validation {quantity}"
                    self.verdict.tally.count(key, share / VALIDATED, 1, array.size, f"{self.digest} {name}")
                    if share > VALIDATED:
                        self.verdict.oracle_errors.append(
                            f"the truth is wrong: {quantity} {name} is off by {share:.3g} x tolerance from torch float64"
                        )


class _Flat:
    """Several tensors as one vector, so that one torch optimizer serves them all."""

    def __init__(self, names: Sequence[str], step: Step) -> None:
        self.names = names
        self.shapes = [step.before.tensors[n].shape for n in names]
        sizes = [int(np.prod(s)) for s in self.shapes]
        self.ends = np.cumsum(sizes)
        self.sizes = sizes

    def join(self, arrays: Mapping[str, Array]) -> Array:
        """The vector; a missing tensor is zero."""
        parts = [
            np.asarray(arrays[n], dtype=np.float32).reshape(-1) if n in arrays else np.zeros(size, np.float32)
            for n, size in zip(self.names, self.sizes, strict=True)
        ]
        return np.concatenate(parts)

    def locate(self, at: int) -> tuple[str, tuple[int, ...]]:
        """The tensor and the index in it."""
        i = int(np.searchsorted(self.ends, at, side="right"))
        start = int(self.ends[i]) - self.sizes[i]
        return self.names[i], tuple(int(k) for k in np.unravel_index(at - start, self.shapes[i]))


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
    seen: Sequence[Observation], quantity: str, name: str, arrays: Sequence[Array | None],
    shape: Sequence[int], dtype: str,
) -> Divergence | None:  # fmt: skip
    for s, array in zip(seen, arrays, strict=True):
        wrong = cmp.check_form(s.step, quantity, name, array, shape, dtype)
        if wrong is not None:
            return wrong
    return None


# -- single operations ------------------------------------------------------------------------------------------------


def op_truth(case: c.OpCase, noise: Noise | None, usual_norms: bool = False) -> tuple[Array, dict[str, Array]]:
    """Value and operand gradients of one operation: (replicas, 1, *shape) each."""
    tape = d.Tape(noise, usual_norms=usual_norms, special=True)
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
    row = pairs.OPS[case.op]
    started = time.perf_counter()
    seen = ours_side.run_op(case, ndl, row.needle, graph=not foreign)
    peer = peer_side.run_op(case, row.torch)
    verdict.seconds["systems"] = time.perf_counter() - started
    started = time.perf_counter()
    found: list[Divergence] = []
    peer_found: list[Divergence] = []
    if seen.failure is not None:
        f = seen.failure
        message = f"needle raised {f.kind} in {f.phase}: {f.message}"
        found.append(Divergence(0, f"exception in {f.phase}", f.kind, "exception", message, failure=f))
    else:
        value, grads = op_truth(case, Noise(case.seed_for("noise")), usual_norms=foreign)
        expected = {"activation": {case.op: value}, "gradient": grads}
        twin_value, twin_grads = op_truth(case, Noise(case.seed_for("twin")), usual_norms=True)
        twin = {"activation": {case.op: twin_value}, "gradient": twin_grads}
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
                if peer_too and quantity in twin:
                    off = _op_values(verdict, case, quantity, name, theirs, theirs, twin[quantity][name], "P")
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
    verdict.seconds["rules"] = time.perf_counter() - started
    return verdict


def _op_values(
    verdict: Verdict, case: c.OpCase, quantity: str, name: str, ours: Array, peer: Array, truth: Array, rule: str
) -> Divergence | None:
    """Rule G where truth is a float32 number; where it is not, ours must be nan or the same infinity as torch's."""
    exact = truth[0, 0]
    with np.errstate(all="ignore"):
        tame = (np.abs(exact) < 1e37) & np.isfinite(peer)
        calm = np.where(tame, truth, 0.0)
        share = np.where(tame, cmp.share_g(np.where(tame, ours, 0.0)[None], calm)[0], 0.0)
        share = np.where(tame & ~np.isfinite(ours), np.inf, share)
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
