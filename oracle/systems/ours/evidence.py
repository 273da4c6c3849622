"""What localisation asks of a run that has diverged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import Slot
from oracle.systems.ours.calls import CallJudge, calls
from oracle.systems.ours.evaluation import evaluate
from oracle.systems.ours.model import Array, array_of, build, grad_of
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.step import step
from oracle.systems.ours.watch import Closely
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import State


def again(
    run: NeedleRun,
    state: State,
    t: int,
    found: TapeJudge | None,
    called: CallJudge | None,
    *,
    evaluation: bool,
    taped: bool = True,
) -> Closely:
    """One step or evaluation once more, from its state, with every op on the tape that is judged, and every call of one.

    Without ``taped``, all is as it was the first time: what writes into constants does so again.
    """
    run.failed, run.taped = None, taped
    run.load(state)
    run.watch.closely = closely = Closely()
    buffers = [b for s in run.buffer_slots if hasattr(b := run.tensor(s.name), "requires_grad")]  # others are arrays
    for tensor in buffers:
        tensor.requires_grad = taped
    try:
        with calls(run.ndl, called):
            _ = evaluate(run, t, found) if evaluation else step(run, t, found)
    finally:
        run.taped, run.watch.closely = False, None
        for tensor in buffers:
            tensor.requires_grad = False
    return closely


def reset_does(run: NeedleRun) -> str:
    """What ``reset_grad`` does with gradients, if that is not to let go of them as they are: writes into them, or leaves them."""
    held = []
    for p in run.parameters.values():
        p.grad = run.ndl.Tensor(np.ones_like(array_of(p)), requires_grad=False)
        held.append(array_of(p.grad))
    run.optimizer.reset_grad()
    left = any(grad_of(p) is not None for p in run.parameters.values())
    return "writes into" if any((array != 1).any() for array in held) else "leaves" if left else ""


def misbuilt(case: c.TrainCase, ndl: Any, slots: Sequence[Slot]) -> str:
    """The first parameter or buffer that a constructor gives another shape or dtype than float32; empty if none."""
    modules = build(case, ndl).modules
    places = {slot.name: slot.name.rpartition(".") for slot in slots}
    made = {name: array_of(getattr(modules[path], attribute)) for name, (path, _, attribute) in places.items()}
    return misshapen(made, {slot.name: (slot.shape, np.dtype(np.float32)) for slot in slots})


def misshapen(found: Mapping[str, Array], right: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """The first array that has not its shape and its dtype; empty if none."""
    return next((name for name, about in right.items() if (found[name].shape, found[name].dtype) != about), "")


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
