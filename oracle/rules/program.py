"""The verdict on a program: after each action, what it changes is right, and everything else keeps its bits.

needle goes its own way, undisturbed. Each action is judged from the state in which needle was before it: passes and evaluations
by rule G, with torch from the same state; clipping and updates by the rules L and T; all the rest bit by bit.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import torch

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.cases.known import SETTINGS, STATES, Known
from oracle.operations.tape import COHERENT, Noise
from oracle.rules import compare as cmp
from oracle.rules.against_truth import against_truth
from oracle.rules.calls import Calls
from oracle.rules.compare import Array, Joined
from oracle.rules.domain import large_data, out_of_domain
from oracle.rules.hearing import Hearing, promoted, raised
from oracle.rules.tape import Findings
from oracle.rules.torch_update import T_LIMIT
from oracle.rules.units import HUGE
from oracle.rules.update import L_LIMIT, clipping, expected_update
from oracle.rules.verdict import BACKWARD, FORWARD, Clipping, Divergence, Evidence, Update, Verdict
from oracle.systems import peer, truth
from oracle.systems.ours import is_ours, misbuilt
from oracle.systems.program import Looking, ProgramRun, Turn, alike
from oracle.systems.trace import Observation

_Values = dict[str, dict[str, Array]]


def judge(case: c.ProgramCase, ndl: Any, *, peer_too: bool, validate: bool = False) -> Verdict:
    """The verdict on a program. ``peer_too`` applies rule P; ``validate`` checks the truth against torch float64.

    In a context of its own: a ``no_grad`` that is never left must not reach the next case.
    """
    return contextvars.copy_context().run(_judge, case, ndl, peer_too, validate)


def _judge(case: c.ProgramCase, ndl: Any, peer_too: bool, validate: bool) -> Verdict:
    run = ProgramRun(case, ndl)
    hearing = Hearing(case.training, cast("Any", run))
    hearing.digest = case.digest
    verdict = hearing.verdict = Verdict(case)
    turns = list(run.turns())
    found: list[Divergence] = []
    run.clock.turn("rules")
    sound = [turn for turn in turns if turn.ours.failure is None]
    passes = [turn for turn in sound if isinstance(turn.action, a.Pass)]
    end = len(turns)
    for judged in (
        _passes(hearing, run, passes, peer_too=peer_too, validate=validate),
        _evaluations(hearing, run, sound, peer_too=peer_too),
    ):
        end = min(end, judged[0])
        found += judged[1]
    for turn in sound:
        found += _exact(hearing, turn)
        if isinstance(turn.action, a.Step):
            expected = _expected(hearing, turn, turn.action)
            if expected is not None:
                found += [*_updated(hearing, turn, expected), *_updated_by_torch(hearing, turn, expected)]
        elif isinstance(turn.action, a.ClipNorm):
            found += _clipped(hearing, turn, turn.action)
    for turn in turns:
        found += raised(turn.ours)
        verdict.beside.extend(promoted(turn.ours))
    found = [f for f in found if f.step < end]
    verdict.steps, verdict.out_of_domain = end, int(end < len(turns))
    if found:
        verdict.divergence = min(found, key=lambda f: f.order)
        look = functools.partial(_evidence, hearing, run, verdict.divergence, turns)
        verdict.search = functools.partial(contextvars.copy_context().run, look)
    run.clock.turn("")
    verdict.seconds = run.clock.seconds
    return verdict


def _view(case: c.TrainCase, **fields: Any) -> c.TrainCase:
    """The training run with other fields, which nobody checks once more."""
    other = copy.copy(case)
    for name, value in fields.items():
        msgspec.structs.force_setattr(other, name, value)
    return other


# -- rule G ---------------------------------------------------------------------------------------------------------------


def _passes(
    h: Hearing, run: ProgramRun, turns: Sequence[Turn], *, peer_too: bool, validate: bool
) -> tuple[int, list[Divergence]]:
    """Rule G on all passes, those that run alike together: the first action out of the domain, and what is wrong. Proven by
    ``program-eval-part-ignored``, ``program-freeze-ignored``.
    """
    case, found, end = run.case, list[Divergence](), 1 << 30
    alike: dict[Any, list[Turn]] = {}
    for turn in turns:
        alike.setdefault(_alike(case, turn), []).append(turn)
    for about, group in alike.items():
        to_input = about[2]
        run.clock.turn("truth")
        expected = _truth(run, group, *about)
        run.clock.turn("rules")
        usable = len(group)
        softmax = isinstance(case.loss, c.SoftmaxLoss)
        bad = out_of_domain(expected.values, programs.last(case), softmax)[: len(group)]
        bad = bad | large_data(run.batches.x[[turn.before.passes for turn in group]])
        if bad.any():
            usable = int(np.argmax(bad))
            end = min(end, group[usable].ours.step)
        if not usable:
            continue
        own = _of_program(case, expected.values, usable)
        seen, peers = [t.ours for t in group[:usable]], [t.peer for t in group[:usable]]
        for turn in group[:usable]:
            turn.ours.values["buffer"] = {n[7:]: v for n, v in turn.after.items() if n.startswith("buffer ")}
        found += against_truth(h, seen, peers, own)
        if peer_too:
            _contradicted(h, against_truth(h, peers, seen, own, "P"))
        if validate:
            run.clock.turn("validation")
            exact = run.exact()
            theirs = [exact.run(t.before, t.before.passes, t.masks, to_input=to_input, index=0) for t in group[:usable]]
            _validated(h, own, theirs)
            run.clock.turn("rules")
    return end, found


def _truth(
    run: ProgramRun,
    group: Sequence[Turn],
    frozen: Sequence[str],
    modes: Sequence[tuple[str, bool]],
    to_input: bool,
    model: tuple[c.Layer, ...],
) -> truth.Truth:
    """The truth of passes that run alike."""
    case = run.case
    steps = [turn.before.passes for turn in group]
    pick: Any = {n: None if (v := getattr(run.batches, n)) is None else v[steps] for n in ("x", "labels", "drawn")}
    masks = {path: np.concatenate([turn.masks[path] for turn in group]) for path in group[0].masks}
    slots, buffers = inputs.slots(case.training)
    return truth.training(
        _view(case.training, input_grad=to_input, model=model),
        [replace(s, frozen=case.alias(s.name) in frozen) for s in slots],
        buffers,
        [_tensors(case, turn.before) for turn in group],
        inputs.Batches(**pick),
        masks,
        [{} for _ in group],
        Noise(case.seed_for(f"noise {steps[0]}"), coherent=COHERENT),
        modes=dict(modes),
        unseen=True,
    )


def _alike(
    case: c.ProgramCase, turn: Turn
) -> tuple[tuple[str, ...], tuple[tuple[str, bool], ...], bool, tuple[c.Layer, ...]]:
    """What passes must have in common to be judged together: what is frozen, the modes, whether the input is asked for, and the
    settings of layers.
    """
    about = turn.before
    frozen = tuple(n for n in about.parameters if not about.values[f"requires_grad {n}"])
    modes, to_input = tuple(programs.modes(case, about).items()), cast("a.Pass", turn.action).to_input
    return frozen, modes, to_input, programs.training_now(case, about).model


def _tensors(case: c.ProgramCase, k: Known) -> dict[str, Array]:
    """Parameters and buffers by their names in the training run."""
    kinds = zip(("parameter", "buffer"), inputs.slots(case.training), strict=True)
    return {s.name: k.values[f"{kind} {case.alias(s.name)}"] for kind, slots in kinds for s in slots}


def _of_program(case: c.ProgramCase, values: Mapping[str, Mapping[str, Array]], steps: int) -> _Values:
    """What of the truth can be seen of a program: nobody looks inside; a layer that is applied twice gets both gradients."""
    own: _Values = {}
    kept = {"activation": programs.last(case), "evaluation": programs.last(case), "adjoint": "input"}
    for quantity, named in values.items():
        for name, value in named.items():
            if quantity != "inside" and kept.get(quantity, name) == name:
                part, known = own.setdefault(quantity, {}), case.alias(name)
                part[known] = value[:, :steps] + part.get(known, 0.0) if quantity == "gradient" else value[:, :steps]
    return own


def _contradicted(h: Hearing, found: Iterator[Divergence]) -> None:
    """Rule P: torch against the truth; where needle makes the same error, it is rounding that both share."""
    for f in found:
        numbers = (f.ours, f.peer, f.truth)
        if all(isinstance(n, float) for n in numbers):
            theirs, mine, right = (np.array(n, np.float64) for n in numbers)
            if cmp.made_by_both(theirs, mine, right):
                continue
        h.verdict.oracle_errors.append(f"rule P: torch's {f.message} in action {f.step}")


def _validated(h: Hearing, own: _Values, theirs: Sequence[Observation]) -> None:
    """The exact replica is torch's in float64, within 1e-4 of rule G's limit."""
    for quantity, named in own.items():
        for name, value in named.items():
            exact = np.stack([t.values[quantity][name] for t in theirs]).astype(np.float64)
            allowed = cmp.VALIDATED * cmp.G_LIMIT * cmp.tolerance(value)
            share = cmp.share_of(exact, value[0], allowed)
            h.verdict.tally.count(
                "validation", float(share.max(initial=0)), len(theirs), share.size, f"{h.digest} {name}"
            )
            if share.max(initial=0) > 1:
                h.verdict.oracle_errors.append(f"the truth is wrong: {quantity} {name} is not torch's in float64")


def _evaluations(h: Hearing, run: ProgramRun, turns: Sequence[Turn], *, peer_too: bool) -> tuple[int, list[Divergence]]:
    """Rule G on what the model gives in evaluation mode, those with the same settings together."""
    found, end = list[Divergence](), 1 << 30
    alike: dict[Any, list[Turn]] = {}
    for turn in turns:
        if isinstance(turn.action, a.Evaluate):
            alike.setdefault(programs.training_now(run.case, turn.before).model, []).append(turn)
    for model, group in alike.items():
        until, wrong = _evaluated(h, run, _view(run.case.training, model=model), group, peer_too=peer_too)
        end = min(end, until)
        found += wrong
    return end, found


def _evaluated(
    h: Hearing, run: ProgramRun, view: c.TrainCase, group: Sequence[Turn], *, peer_too: bool
) -> tuple[int, list[Divergence]]:
    case = run.case
    run.clock.turn("truth")
    steps = [turn.before.passes for turn in group]
    states = [_tensors(case, turn.before) for turn in group]
    noise = Noise(case.seed_for("evaluation"), coherent=COHERENT)
    expected = truth.evaluation(view, states, run.batches.x[steps, 0], [{} for _ in group], noise, unseen=True)
    run.clock.turn("rules")
    bad = out_of_domain(expected.values, programs.last(case), isinstance(case.loss, c.SoftmaxLoss))[: len(group)]
    bad = bad | large_data(run.batches.x[steps, 0])
    usable = int(np.argmax(bad)) if bad.any() else len(group)
    end = group[usable].ours.step if bad.any() else 1 << 30
    if not usable:
        return end, []
    own = _of_program(case, expected.values, usable)
    seen, peers = [t.ours for t in group[:usable]], [t.peer for t in group[:usable]]
    if peer_too:
        _contradicted(h, against_truth(h, peers, seen, own, "P"))
    return end, list(against_truth(h, seen, peers, own))


# -- bits -----------------------------------------------------------------------------------------------------------------


def _exact(h: Hearing, turn: Turn) -> Iterator[Divergence]:
    """What an action does not name keeps its bits, what it names has those that it says, and needle keeps its promises. Proven by
    ``program-step-rounds-gradient`` and most of the group program.
    """
    index, words, right = turn.ours.step, turn.action.words, dict(turn.right.values)
    judged = set(turn.right.judged)
    if isinstance(turn.action, a.Pass):
        # a gradient that is judged is what the pass has left, or its sum with what was there before
        for name, fresh in turn.ours.values.get("gradient", {}).items():
            key = f"gradient {name}"
            old = turn.before.values.get(key) if turn.action.add else None
            right[key] = fresh if old is None or old.dtype != fresh.dtype else old + fresh
            judged.discard(key)
    if isinstance(turn.action, a.ClipNorm) and _unclipped(turn, turn.action):
        judged = {key for key in judged if not key.startswith("gradient ")}
    compared = [key for key in {**right, **turn.after} if key not in judged]
    if turn.ours.promoted:  # what it adds up in float64 has other bits, which is told already
        compared = [key for key in compared if not key.startswith("gradient ")]
    h.verdict.tally.count("exact state", 0.0, len(compared), sum(np.size(right.get(key, 0)) for key in compared))
    for key in compared:
        mine, due = turn.after.get(key), right.get(key)
        if key in turn.right.within and isinstance(mine, float) and isinstance(due, float):
            found = _within(h, turn, key, mine, due)
            if found is not None:
                yield found
        elif not alike(mine, due):
            message = f"after action {index}, {words}: {key} {_parted(mine, due)}"
            at, numbers = _where(mine, due)
            yield Divergence(index, "state", key, "exact", message, at, numbers[0], None, numbers[1])
    h.verdict.tally.count("exact promise", 0.0, len(turn.promises), len(turn.promises))
    for name, kept in turn.promises.items():
        if not kept:
            later = name.startswith("a copy goes on") and not isinstance(turn.action, a.Copy)
            quantity = "twin" if later else "promise"  # the action may be wrong by itself, and is then judged first
            yield Divergence(index, quantity, name, "exact", f"action {index}, {words}: it does not hold that {name}")


def _within(h: Hearing, turn: Turn, key: str, mine: float, due: float) -> Divergence | None:
    """Rule L on a number of Python's that a schedule has made. Proven by ``program-steplr-early``."""
    error, allowed = abs(mine - due), L_LIMIT * turn.right.within[key]
    share = error / allowed if allowed else 0.0 if mine == due else np.inf
    h.verdict.tally.count("L schedule", share, 1, 1, h.digest)
    if share <= 1:
        return None
    index, words = turn.ours.step, turn.action.words
    message = f"after action {index}, {words}: {key} {_parted(mine, due)}"
    return Divergence(index, "state", key, "L", message, None, mine, None, due, "float64", error, allowed)


def _parted(mine: Any, due: Any) -> str:
    if mine is None or due is None:
        return "is gone" if mine is None else "should not be there"
    if isinstance(mine, np.ndarray) and isinstance(due, np.ndarray):
        if mine.dtype != due.dtype:
            return f"has dtype {mine.dtype}, not {due.dtype}"
        return f"has shape {mine.shape}, not {due.shape}" if mine.shape != due.shape else "has other bits"
    return f"is {mine}, not {due}"


def _where(mine: Any, due: Any) -> tuple[tuple[int, ...] | None, tuple[float | None, float | str | None]]:
    """The element that differs most plainly, and both numbers; what cannot be one is a text, and what must not be None."""
    if isinstance(due, np.ndarray) and due.size:
        if mine is None:
            at = cmp.unravelled(0, due.shape)
            return at, (None, float(due[at]))
        if mine.shape != due.shape or mine.dtype != due.dtype:
            return None, (None, f"{due.dtype} of shape {due.shape}")
        at = cmp.worst(mine != due)
        return at, (float(mine[at]), float(due[at]))
    plain = [float(v) if isinstance(v, bool | int | float) else None for v in (mine, due)]
    return None, (plain[0], plain[1])


# -- rules L and T --------------------------------------------------------------------------------------------------------


def _spec(turn: Turn, i: int) -> c.Optimizer:
    """The optimizer with the hyperparameters that are in force."""
    kind: Any = c.SGD if turn.before.optimizers[i][0] == "SGD" else c.Adam
    spec: c.Optimizer = kind(**turn.before.settings(i))
    return spec


def _start(turn: Turn, i: int) -> tuple[Joined, Array, Array, dict[str, Array], Array]:
    """Of the parameters that have a gradient, side by side, (1, elements) float64: names, p, g, state, steps."""
    k = turn.before
    kind, _ = k.optimizers[i]
    names = k.graded(i)
    joined = Joined([("parameter", n) for n in names], [k.shape(n) for n in names])

    def row(values: Sequence[Array]) -> Array:
        return joined.steps([[np.asarray(v, np.float32) for v in values]]).astype(np.float64)

    old = {
        q: row([k.values.get(f"optimizer {i}: {q} {n}", np.zeros(k.shape(n), np.float32)) for n in names])
        for q in STATES[kind]
    }
    counts = [1.0 + k.values.get(f"optimizer {i}: t {n}", 0) for n in names]
    return (
        joined,
        row([k.values[f"parameter {n}"] for n in names]),
        row([k.values[f"gradient {n}"] for n in names]),
        old,
        joined.spread(np.array([counts])),
    )


def _tame(*arrays: Array, limit: float = truth.DOMAIN) -> bool:
    return all(truth.all_below(limit, array) for array in arrays)


class _Expected(NamedTuple):
    """What a step starts from, and what it must make of it."""

    optimizer: int
    view: c.TrainCase
    names: list[str]
    joined: Joined
    p: Array
    g: Array
    old: Mapping[str, Array]
    counts: Array
    values: Mapping[str, tuple[Array, Array]]  # quantity -> what it must become, and the bound


def _expected(h: Hearing, turn: Turn, action: a.Step) -> _Expected | None:
    """None where no parameter has a gradient, or numbers are too large to be judged."""
    i = turn.before.optimizer(action.optimizer)
    if not turn.before.graded(i):
        return None
    joined, p, g, old, counts = _start(turn, i)
    if not _tame(p, g, *old.values()):
        return None
    view = _view(h.case, optimizer=_spec(turn, i))
    lr = np.array([[turn.before.settings(i)["lr"]]])
    values = expected_update(view, lr, p, g, old, counts, 0.0).values
    if not _tame(*(value for value, _ in values.values()), limit=HUGE):
        return None
    return _Expected(i, view, [name for _, name in joined.keys], joined, p, g, old, counts, values)


def _updated(h: Hearing, turn: Turn, expected: _Expected) -> Iterator[Divergence]:
    """Rule L on a step: from the gradients that are there, the state and the hyperparameters in force. Proven by
    ``program-lr-cached`` and ``program-velocity-replaced-ignored``.
    """
    names, joined = expected.names, expected.joined
    seen = Observation(turn.ours.step, {q: _made(turn, expected.optimizer, q, names) for q in expected.values})
    for quantity, (value, bound) in expected.values.items():
        if quantity != "parameter" and not seen.values[quantity] and not is_ours(h.lockstep.ndl):
            continue  # without momentum, a needle of the course need keep no velocity
        of = Joined([(quantity, n) for n in names], joined.shapes)
        yield from h.within([seen], [turn.peer], of, value, L_LIMIT * bound, "L").values()


def _made(turn: Turn, i: int, quantity: str, names: Sequence[str]) -> dict[str, Array]:
    start = "parameter " if quantity == "parameter" else f"optimizer {i}: {quantity} "
    return {n: turn.after[start + n] for n in names if start + n in turn.after}


def _updated_by_torch(h: Hearing, turn: Turn, expected: _Expected) -> Iterator[Divergence]:
    """Rule T on a step: torch's own optimizer, from the same state. Proven by ``program-lr-cached``, too."""
    i, view, names, joined, p, g, old, counts, values = expected

    def part(values: Array, n: int) -> torch.Tensor:
        return torch.from_numpy(np.array(joined.part(values[0], n), np.float32))

    parameters = [part(p, n).requires_grad_() for n in range(len(names))]
    optimizer = peer.torch_optimizer(view, parameters)
    for n, parameter in enumerate(parameters):
        parameter.grad = part(g, n)
        state = {key: part(old[q], n) for q, key in peer.TORCH_STATE.items() if q in old}
        if isinstance(view.optimizer, c.Adam):
            state["step"] = torch.tensor(float(joined.part(counts[0], n).flat[0] - 1 if parameter.numel() else 0))
            optimizer.state[parameter] = state
        elif view.optimizer.momentum:
            optimizer.state[parameter] = state
    optimizer.step()
    for quantity, (right, bound) in values.items():
        made = _made(turn, i, quantity, names)
        for n, name in enumerate(names):
            stepped = (
                parameters[n]
                if quantity == "parameter"
                else optimizer.state[parameters[n]].get(peer.TORCH_STATE[quantity])
            )
            if stepped is None or name not in made or made[name].shape != joined.shapes[n]:
                continue  # torch has no velocity without momentum; what needle lacks is rule L's to report
            theirs = stepped.detach().numpy().astype(np.float64)
            allowed = T_LIMIT * joined.part(bound[0], n)
            share = cmp.share_of(made[name].astype(np.float64), theirs, allowed)
            top = float(share.max(initial=0))
            h.verdict.tally.count(f"T {quantity}", top, 1, share.size, f"{h.digest} {quantity} {name}")
            if top > 1:
                at = cmp.worst(share)
                message = f"{quantity} {name} is not what torch's optimizer makes of needle's gradients (rule T)"
                mine = float(made[name][at])
                yield Divergence(
                    turn.ours.step, quantity, name, "T", message, at, mine, float(theirs[at]),
                    float(joined.part(right[0], n)[at]), "float32", abs(mine - float(theirs[at])), float(allowed[at]),
                )  # fmt: skip


def _before_clipping(turn: Turn, action: a.ClipNorm) -> tuple[list[str], list[Array], float, float]:
    """Names, gradients, their norm, and max_norm."""
    k = turn.before
    names = k.graded(k.optimizer(action.optimizer))
    gradients = [k.values[f"gradient {n}"] for n in names]
    norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)))
    max_norm = action.max_norm(gradients)
    return names, gradients, norm, 0.25 if max_norm is None else max_norm


def _unclipped(turn: Turn, action: a.ClipNorm) -> bool:
    """Whether the norm is below max_norm by so much that rounding cannot change it."""
    _, _, norm, max_norm = _before_clipping(turn, action)
    return max_norm > (norm + 1e-6) * (1 + 1e-5)


def _clipped(h: Hearing, turn: Turn, action: a.ClipNorm) -> Iterator[Divergence]:
    """The norm, and the gradients. Proven by ``program-clip-above-scales-up`` and ``program-clip-inf-nan``."""
    names, gradients, _, max_norm = _before_clipping(turn, action)
    given = turn.ours.values.get("clip norm", {})
    if not names or not _tame(*gradients):
        if not names and float(given.get("norm", 0.0)) != 0.0:
            yield Divergence(
                turn.ours.step, "clip norm", "norm", "exact", "there is no gradient, but the norm is not 0"
            )
        return
    after = {n: turn.after[key] for n in names if (key := f"gradient {n}") in turn.after}
    if _unclipped(turn, action):  # judged by their bits, in whatever dtype they are
        after = {n: g.astype(np.float32) for n, g in after.items()}
    raw = {n: g.astype(np.float32) for n, g in zip(names, gradients, strict=True)}
    seen = Observation(turn.ours.step, {"gradient": raw, "clip norm": given, "clipped": after})
    judged = copy.copy(h)
    judged.case = _view(h.case, clip=c.Clip(max_norm))
    yield from itertools.chain(clipping(judged, [seen], [turn.peer], "L", names))


# -- evidence -------------------------------------------------------------------------------------------------------------


def _evidence(h: Hearing, run: ProgramRun, f: Divergence, turns: Sequence[Turn]) -> Evidence:
    """What was done in numbers, and the action seen from inside."""
    evidence = _numbers(f, turns)
    _look_around(run, f, turns, evidence)
    _look_inside(h, run, f, evidence)
    return evidence


def _look_around(run: ProgramRun, f: Divergence, turns: Sequence[Turn], evidence: Evidence) -> None:
    """Whether the action is to blame at all: it may be so from the start, or without the file, or be about another thing, too."""
    case, action = run.case, run.case.actions[f.step]
    turn = next((t for t in turns if t.ours.step == f.step), None)
    if f.failure is not None:
        if f.failure.phase == "build" and is_ours(run.ndl):
            evidence.misbuilt = misbuilt(case.training, run.ndl, [*run.slots[0], *run.slots[1]])
        return
    if f.quantity == "state" and f.step == 0:
        evidence.built = not alike(run.start().get(f.name), programs.start(case).values.get(f.name))
    if isinstance(action, a.Load) and action.file and f.quantity in ("state", "promise"):
        plain = msgspec.structs.replace(action, file=False)
        actions = (*case.actions[: f.step], plain, *case.actions[f.step + 1 :])
        found = judge(msgspec.structs.replace(case, actions=actions), run.ndl, peer_too=False).divergence
        evidence.without_file = found is not None and (found.step, found.name) == (f.step, f.name)
    if isinstance(action, a.Step) and f.quantity == "promise" and turn is not None:
        keys = [key for key in turn.before.values if key.startswith("gradient ")]
        evidence.regraded = any(not alike(turn.after.get(key), turn.before.values[key]) for key in keys)


def _numbers(f: Divergence, turns: Sequence[Turn]) -> Evidence:
    """The update of the parameter that diverged, or the clipping, in numbers."""
    turn = next((t for t in turns if t.ours.step == f.step), None)
    evidence = Evidence()
    if turn is None or f.failure is not None:
        return evidence
    if isinstance(turn.action, a.Step) and f.quantity in ("velocity", "first moment", "second moment", "parameter"):
        evidence.optimizer = _spec(turn, turn.before.optimizer(turn.action.optimizer))
        i = turn.before.optimizer(turn.action.optimizer)
        evidence.update = _update(f.name, turn, i, turns)
        if evidence.update is not None:
            others = (_update(n, turn, i, turns) for n in turn.before.graded(i) if n != f.name)
            evidence.update = replace(evidence.update, beside=tuple(u for u in others if u is not None))
    elif isinstance(turn.action, a.ClipNorm) and f.quantity in ("clip norm", "clipped"):
        names, gradients, _, _ = _before_clipping(turn, turn.action)
        raw = {n: g.astype(np.float64) for n, g in zip(names, gradients, strict=True)}
        clipped = {n: turn.after[k].astype(np.float64) for n in names if (k := f"gradient {n}") in turn.after}
        norm = turn.ours.values.get("clip norm", {}).get("norm", np.float64("nan"))
        evidence.clipping = Clipping(raw, clipped, float(norm), f.name)
    return evidence


def _look_inside(h: Hearing, run: ProgramRun, f: Divergence, evidence: Evidence) -> None:
    """The program once more, until the action that failed, with its layers watched: as a training step is seen."""
    case, action = run.case, run.case.actions[f.step]
    if not isinstance(action, a.Pass | a.Evaluate) or not is_ours(run.ndl) or f.quantity in ("state", "twin"):
        return
    evidence.findings, evidence.calls = Findings(), Calls()
    again = ProgramRun(case, run.ndl, looking=Looking(f.step, evidence.findings, evidence.calls))
    turn = next((t for t in again.turns() if t.ours.step == f.step), None)
    if turn is None or turn.world is None or turn.world.watch is None:
        return
    if (closely := turn.world.watch.closely) is not None:
        evidence.detached, evidence.wrote = closely.detached, closely.wrote
    evidence.quiet = frozenset(path for path, trains in programs.modes(case, turn.before).items() if not trains)
    if turn.ours.failure is not None or f.failure is not None:
        return
    if isinstance(action, a.Pass):
        expected = _truth(again, [turn], *_alike(case, turn))
    else:
        noise = Noise(case.seed_for("evaluation"), coherent=COHERENT)
        batch = run.batches.x[[turn.before.passes], 0]
        view = programs.training_now(case, turn.before)
        expected = truth.evaluation(view, [_tensors(case, turn.before)], batch, [{}], noise)
    values = {q: dict(named) for q, named in expected.values.items() if q not in ("inside", "buffer")}
    for quantity, named in values.items():
        seen = turn.ours.values.get(quantity, {})
        if quantity == "gradient":  # as a user sees them: a layer that is applied twice gets both
            values[quantity] = _of_program(case, {quantity: named}, 1).get(quantity, {})
        else:  # layers that nobody can look at
            values[quantity] = {n: v for n, v in named.items() if n in seen or n == "input"}
    about = copy.copy(h)
    about.verdict = Verdict(case)  # what is looked at twice is not counted twice
    bad = sorted(against_truth(about, [turn.ours], [turn.peer], values), key=lambda d: d.order)
    evidence.inner = next(iter(bad), None)
    evidence.alone = not bad and f.quantity in (*FORWARD, *BACKWARD)


def _update(name: str, turn: Turn, i: int, turns: Sequence[Turn]) -> Update | None:
    k = turn.before
    if name not in k.graded(i):
        return None
    states = STATES[k.optimizers[i][0]]

    def wide(value: Any) -> Array:
        return np.asarray(value).astype(np.float64)

    def state(n: str) -> dict[str, Array]:
        zeros = np.zeros(k.shape(n))
        return {q: wide(k.values.get(f"optimizer {i}: {q} {n}", zeros)) for q in states}

    def past(setting: str) -> tuple[float, ...]:
        key = f"optimizer {i}: {setting}"
        return tuple(t.before.values[key] for t in turns if key in t.before.values and t.ours.step < turn.ours.step)

    lr = f"optimizer {i}: lr"
    return Update(
        name,
        int(k.values.get(f"optimizer {i}: t {name}", 0)),
        (*past("lr"), k.values[lr]),
        wide(k.values[f"parameter {name}"]),
        wide(k.values[f"gradient {name}"]),
        None,
        state(name),
        {q: wide(v) for q in (*states, "parameter") for v in _made(turn, i, q, [name]).values()},
        {n: (wide(k.values[f"gradient {n}"]), state(n)) for n in k.graded(i)},
        {setting: past(setting) for setting in SETTINGS[k.optimizers[i][0]]},
    )
