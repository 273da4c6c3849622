"""A pass once more, without anybody who looks at a layer: needle may then take other ways, to the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import step_seed
from oracle.systems.ours.model import array_of, grad_of
from oracle.systems.ours.run import NeedleRun
from oracle.systems.trace import UNSEEN, Observation, same_bits

UNWATCHED = 2  # one step in so many is taken a second time without looking at the layers


def again_unwatched(case: c.TrainCase | c.SecondOrderCase, t: int) -> bool:
    """Whether step t is taken a second time, without looking at the layers."""
    return (case.seed_for("unwatched") + t) % UNWATCHED == 0


def same_gradient(a: Any, b: Any) -> bool:
    """Whether two gradients are the same bits, or both missing."""
    return a is b is None or (a is not None and b is not None and same_bits(array_of(a), array_of(b)))


def pass_unwatched(run: NeedleRun, t: int, given: Any, obs: Observation) -> None:
    """The first pass of step t once more: the loss and the gradients, also ``given``, the input's, are the same bits."""
    seen = {name: grad_of(parameter) for name, parameter in run.parameters.items()}
    buffers = {s.name: np.array(run.array(s.name)) for s in run.buffer_slots}
    np.random.seed(step_seed(run.case, t))
    with run.watch.unwatched():
        with run.phase("forward"):
            x = run.ndl.Tensor(run.batches.x[t, 0], requires_grad=run.case.input_grad)
            loss, cotangent = run.loss(run.model(x), t, 0)
        with run.phase("backward"):
            run.optimizer.reset_grad()
            run.backward(loss, cotangent, obs)
    if "loss" in obs.values:
        obs.hold("kept", f"loss {UNSEEN}", same_bits(array_of(loss), obs.values["loss"]["loss"]))
    if run.case.input_grad:
        obs.hold("kept", f"gradient of the input {UNSEEN}", same_gradient(given, grad_of(x)))
    for name, parameter in run.parameters.items():
        obs.hold("kept", f"gradient {name} {UNSEEN}", same_gradient(seen[name], grad_of(parameter)))
        parameter.grad = seen[name]
    with run.phase("taking over the state"):
        for name, value in buffers.items():
            run.put(name, value)
