"""A forward pass in evaluation mode, and what it must leave alone."""

from __future__ import annotations

import numpy as np

from oracle.systems.ours import observed
from oracle.systems.ours.model import NEXT, SEED, array_of
from oracle.systems.ours.phase import Failed
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.unwatched import again_unwatched
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import HANDED_IN, UNSEEN, Observation, same_bits


def evaluate(run: NeedleRun, t: int, findings: TapeJudge | None = None) -> Observation:
    """A forward pass in evaluation mode on the batch of step t; buffers and random state must not change."""
    obs = run.observation(t)
    if run.failed is not None:
        return obs
    run.watch.findings = findings
    with run.window(t) as window:
        _evaluate(run, t, obs)
        window.count()
    if obs.failure is None and run.contract.strict:
        window.report(obs, number=True)
    return obs


def _evaluate(run: NeedleRun, t: int, obs: Observation) -> None:
    constant = t % 2 == 1 and run.watch.findings is None and run.contract.strict  # rule OP needs the tape
    before = {s.name: np.array(run.array(s.name)) for s in run.buffer_slots}
    np.random.seed(SEED)
    try:
        with run.phase("evaluation"):
            run.model.eval()
            with run.contract.no_grad(constant):
                x = run.ndl.Tensor(run.batches.x[t, 0], requires_grad=run.taped)
                with run.watch.recording() as record:
                    out = run.model(x)
                if not run.taped and again_unwatched(run.case, t):
                    with run.watch.unwatched():
                        again = run.model(run.ndl.Tensor(run.batches.x[t, 0], requires_grad=constant))
                    same = same_bits(array_of(again), array_of(out)) and not (constant and again.requires_grad)
                    obs.hold("untouched", f"output {UNSEEN}", same)
            run.train()
    except Failed as failed:
        obs.failure = run.failed = failed.failure
        return
    run.watch.judge(run.watch.tape(out, retain=False), None, record, backward=False)
    observed.outputs(run, record, "evaluation", obs)
    if run.contract.strict:
        obs.hold("untouched", HANDED_IN, same_bits(array_of(x), run.batches.x[t, 0]))
    for name, value in before.items():
        obs.hold("untouched", name, same_bits(run.array(name), value))
    obs.hold("untouched", "random state", np.random.bytes(8) == NEXT)
    if constant:
        obs.hold("untouched", "what no_grad promises", not any(made.requires_grad for *_, made in record))
