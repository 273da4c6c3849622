"""What localisation asks of a run that has diverged."""

from __future__ import annotations

import numpy as np

from oracle.cases import case as c
from oracle.systems.ours.calls import CallJudge, calls
from oracle.systems.ours.evaluation import evaluate
from oracle.systems.ours.model import Array
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.step import step
from oracle.systems.ours.watch import Closely
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import State


def again(
    run: NeedleRun, state: State, t: int, found: TapeJudge | None, called: CallJudge | None, *, evaluation: bool
) -> Closely:
    """One step or evaluation once more, from its state, with every op on the tape that is judged, and every call of one."""
    run.failed, run.taped = None, True
    run.load(state)
    run.watch.closely = closely = Closely()
    buffers = [b for s in run.buffer_slots if hasattr(b := run.tensor(s.name), "requires_grad")]  # others are arrays
    for tensor in buffers:
        tensor.requires_grad = True
    try:
        with calls(run.ndl, called):
            _ = evaluate(run, t, found) if evaluation else step(run, t, found)
    finally:
        run.taped, run.watch.closely = False, None
        for tensor in buffers:
            tensor.requires_grad = False
    return closely


def outputs(run: NeedleRun, x: Array) -> Array:
    """What the model makes of other rows, in evaluation mode; raises what needle raises."""
    with run.phase("evaluation"):
        run.model.eval()
        out = np.asarray(run.model(run.ndl.Tensor(x, requires_grad=False)).cached_data)
        run.model.train()
    return out


def eval_draws(run: NeedleRun) -> bool:
    """Whether the random state is another one after ``eval()``."""
    np.random.seed(0)
    run.model.eval()
    drawn = np.random.bytes(8)
    run.train()
    np.random.seed(0)
    return drawn != np.random.bytes(8)


def modes(run: NeedleRun, *, evaluation: bool) -> dict[str, tuple[bool, bool]]:
    """Of every layer: whether it is in training mode after train() or eval(), and whether it should be."""
    quiet = [f"{p}." for p, layer in c.walk(run.case.model) if layer.quiet]
    right = {p: not evaluation and not f"{p}.".startswith(tuple(quiet)) for p in run.modules}
    if evaluation:
        run.model.eval()
    else:
        run.train()
    found = {p: bool(getattr(m, "training", right[p])) for p, m in run.modules.items()}
    run.train()
    return {p: (found[p], right[p]) for p in run.modules}
