"""One training step in needle, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import step_seed
from oracle.systems.ours import observed
from oracle.systems.ours.model import array_of, grad_of
from oracle.systems.ours.phase import Failed
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.unwatched import again_unwatched, pass_unwatched
from oracle.systems.ours.watch import Record
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import Observation


@dataclass
class _Pass:
    """A forward and backward pass on one micro-batch."""

    mark: str  # behind the name of what belongs to it: "" or "#1"
    x: Any
    record: Record
    loss: Any


def step(run: NeedleRun, t: int, findings: TapeJudge | None = None) -> Observation:
    """One training step; an exception of needle ends up in ``failure``.

    With ``findings``, rule OP judges the tape of every backward pass.
    """
    run.clock.step = t
    run.handed.clear()
    obs = run.observation(t)
    if t == 0 and hasattr(run, "initial"):
        observed.as_built(run, obs)
    if run.failed is not None:
        return obs
    run.watch.findings = findings
    try:
        with run.window(t) as window:
            _step(run, t, obs)
            window.count()
            if window.closely:
                run.kept = []
                with run.phase("reset_grad"):
                    run.optimizer.reset_grad()
        if (
            run.contract.strict
        ):  # a needle of the course has reference cycles; what it accumulates is looked at elsewhere
            window.report(obs, number=t > 0)  # the first step makes the state of the optimizer, and keeps gradients
    except Failed as failed:
        obs.failure = run.failed = failed.failure
    return obs


def _step(run: NeedleRun, t: int, obs: Observation) -> None:
    case = run.case
    if t and case.lr_at(t) != case.lr_at(t - 1):
        run.optimizer.lr = case.lr_at(t)
    np.random.seed(step_seed(case, t))
    passes = []
    collected: dict[str, Any] = {}
    for m in range(run.batches.micro):
        passes.append(_forward_backward(run, t, m, obs))
        with run.phase("backward"):
            if m:
                _accumulate(run, collected)
            elif run.batches.micro > 1:
                collected = {n: p.grad for n, p in run.parameters.items() if grad_of(p) is not None}
    for made in reversed(passes):
        observed.adjoints(made.record, made.mark, obs)
        if case.input_grad and grad_of(made.x) is not None:
            obs.put("adjoint", f"input{made.mark}", array_of(made.x.grad))
    observed.gradients(run, "gradient", obs)
    if run.batches.micro == 1 and not run.taped and again_unwatched(case, t):
        pass_unwatched(run, t, grad_of(passes[0].x), obs)
    if case.clip is not None:
        _clip(run, t, case.clip, obs)
    skipped = run.parameters[run.late] if t == run.gap else None
    if skipped is not None:
        gradient, skipped.grad = skipped.grad, None
    held = observed.held_gradients(run, "gradient" if case.clip is None else "clipped", obs)
    _update(run, t, obs)
    if skipped is not None:
        skipped.grad = gradient  # the number of live tensors is to be constant
    # what a user kept from the step before must not change later
    observed.unchanged(run.kept, f"of step {t - 1}", obs)
    observed.handed_in(run, "step", obs)
    run.handed.clear()
    loss = passes[-1].loss
    run.kept = [*held, ("loss", loss.data, np.array(array_of(loss)))] if run.contract.strict else []


def _forward_backward(run: NeedleRun, t: int, m: int, obs: Observation) -> _Pass:
    """A forward and a backward pass on one micro-batch; what the graph holds is looked at before it is freed."""
    mark = f"#{m}" if m else ""
    with run.watch.recording() as record, run.phase("forward"):
        given = np.array(run.batches.x[t, m])
        x = run.ndl.Tensor(given, requires_grad=run.case.input_grad or run.taped)
        given[...] = np.nan  # a Tensor copies what it is made of
        run.hand("input", m, x, run.batches.x[t, m])
        out = run.model(x)
        loss, cotangent = run.loss(out, t, m)
    observed.outputs(run, record, "activation", obs, mark)
    observed.handed_in(run, "forward pass", obs)
    obs.aliases.update(path + mark for path, before, made in record if made is before)
    if loss is not out:
        obs.put("loss", f"loss{mark}", array_of(loss))
    tape = run.watch.tape(loss)
    with run.phase("backward"):
        for _, before, made in record:
            if made is not before and made.requires_grad:
                run.contract.retain(made)
        if m == 0:
            run.optimizer.reset_grad()
            observed.left_over(run, obs)
        run.backward(loss, cotangent, obs)
    observed.handed_in(run, "backward pass", obs)
    run.watch.judge(tape, cotangent, record)
    return _Pass(mark, x, record, loss)


def _accumulate(run: NeedleRun, collected: dict[str, Any]) -> None:
    """Gradients of several backward passes, added up as a user does it."""
    for name, parameter in run.parameters.items():
        if name in collected and grad_of(parameter) is not None:
            _judge_sum(run, collected[name], parameter.grad)
            parameter.grad = run.contract.plus(collected[name], parameter.grad)


def _judge_sum(run: NeedleRun, a: Any, b: Any) -> None:
    """The addition by which a user accumulates gradients is on no tape: for localisation it is put on one."""
    if run.taped:
        total = run.ndl.Tensor(array_of(a)) + run.ndl.Tensor(array_of(b))
        run.watch.judge(run.watch.tape(total, retain=False), None, [], backward=False)


def _clip(run: NeedleRun, t: int, clip: c.Clip, obs: Observation) -> None:
    """Clipping replaces gradients: those from before, which a user may hold, stay as they are."""
    unclipped = observed.held_gradients(run, "gradient", obs)
    with run.phase("clip_grad_norm"):
        given_norm = () if clip.max_norm is None else (clip.max_norm,)
        norm = run.optimizer.clip_grad_norm(*given_norm)
        obs.put("clip norm", "norm", np.float64(run.contract.norm(norm, obs.values.get("gradient", {}))))
    observed.gradients(run, "clipped", obs)
    observed.unchanged(unclipped, "before clipping", obs)


def _update(run: NeedleRun, t: int, obs: Observation) -> None:
    """The optimizer's step, and everything that it leaves behind."""
    if run.contract.strict:
        with run.phase("reading .grad and .data"):
            graded = [p for p in run.parameters.values() if p.grad is not None]
            constant = not any(p.grad.requires_grad or p.data.requires_grad for p in graded)
        obs.hold("kept", "p.grad and p.data, which are constants", constant)
    data = observed.held_data(run, t)
    with run.phase("step"):
        run.optimizer.step()
    observed.unchanged(data, f"before step {t}", obs)
    observed.state(run, obs)
