"""A model in needle, differentiated twice."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import Batches, Slot, step_seed
from oracle.systems.ours import observed
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import Array, array_of, grad_of
from oracle.systems.ours.phase import Failed, Phase
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.unwatched import again_unwatched, same_gradient
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import UNSEEN, Clock, Observation, State


def run_second(
    case: c.SecondOrderCase,
    ndl: Any,
    slots: tuple[list[Slot], list[Slot]],
    batches: Batches,
    state: dict[str, Array],
    directions: dict[str, Array],
    findings: TapeJudge | None = None,
    clock: Clock | None = None,
) -> Observation:
    """First-order gradients with their graph, then the gradient of their inner product with ``directions``."""
    contract = contract_of(ndl)
    obs = contract.observation(0, {slot.name: slot.shape for slot in (*slots[0], *slots[1])})
    phase = functools.partial(Phase, clock=clock or Clock(), ndl=ndl)
    try:
        with phase("build"):
            run = NeedleRun(_as_train(case), ndl, slots, batches, clock)
            run.load(State(state))
        if run.failed is not None:  # an exception that has been taken down already
            raise Failed(run.failed)
        np.random.seed(step_seed(case, 0))
        with run.watch.recording() as record, phase("forward"):
            x = run.hand("input", 0, ndl.Tensor(batches.x[0, 0], requires_grad=False), batches.x[0, 0])
            out = run.model(x)
            loss, cotangent = run.loss(out, 0, 0)
        observed.outputs(run, record, "activation", obs)
        run.watch.findings = findings
        tape = run.watch.tape(loss)
        # create_graph asks for a graph, inside no_grad too
        with phase("backward"), contract.no_grad(bool(case.seed % 2)):
            contract.backward(loss, *(() if cotangent is None else (cotangent,)), create_graph=True)
        run.watch.judge(tape, cotangent, record, graph=True)
        del tape
        first = {n: p.grad for n, p in run.parameters.items() if grad_of(p) is not None}
        for name, grad in reversed(first.items()):
            obs.put("gradient", name, array_of(grad))
        observed.handed_in(run, "backward pass", obs)
        if again_unwatched(case, 0) and findings is None:
            np.random.seed(step_seed(case, 0))
            with run.watch.unwatched():
                with phase("forward"):
                    again, _ = run.loss(run.model(ndl.Tensor(batches.x[0, 0], requires_grad=False)), 0, 0)
                with phase("backward"):
                    run.optimizer.reset_grad()
                    contract.backward(again, *(() if cotangent is None else (cotangent,)), create_graph=True)
            for name, parameter in run.parameters.items():
                same = same_gradient(first.get(name), grad_of(parameter))
                obs.hold("kept", f"gradient with graph {name} {UNSEEN}", same)
                parameter.grad = first.get(name)
        with phase("second backward"):
            total, second = None, []
            for name, grad in first.items():
                direction = directions[name].reshape(array_of(grad).shape)  # a bias may be (n,)
                part = (grad * ndl.Tensor(direction, requires_grad=False)).sum()
                total = part if total is None else total + part
            run.optimizer.reset_grad()
            assert total is not None
            if total.requires_grad:
                second = run.watch.tape(total)
                total.backward()
        run.watch.judge(second, None, [])
        observed.handed_in(run, "second backward pass", obs)
        for name, parameter in reversed(run.parameters.items()):
            if grad_of(parameter) is not None:
                obs.put("second", name, array_of(parameter.grad))
    except Failed as failed:
        obs.failure = failed.failure
    return obs


def _as_train(case: c.SecondOrderCase) -> c.TrainCase:
    return c.TrainCase(model=case.model, data=case.data, loss=case.loss, optimizer=c.SGD(), seed=case.seed)
