"""What a step shows: put into its Observation as soon as it is there, for needle lets go of it, or writes into it."""

from __future__ import annotations

import numpy as np

from oracle.systems.ours.model import array_of, grad_of
from oracle.systems.ours.run import Held, NeedleRun
from oracle.systems.ours.watch import Record
from oracle.systems.trace import STATE, Observation, same_bits


def as_built(run: NeedleRun, obs: Observation) -> None:
    """What the constructors made, also where the state of the case does not fit into it."""
    obs.put("parameters", "model.parameters()", run.listed)
    for name, value in run.initial.items():
        obs.put("initial", name, value)


def outputs(run: NeedleRun, record: Record, quantity: str, obs: Observation, mark: str = "") -> None:
    """What the layers made, and the branches that ReLUs took; ``mark`` ends the names: "" or "#1"."""
    for path, given, made in record:
        obs.put(quantity, path + mark, array_of(made))
        if path in run.relus:
            obs.kinks[path + mark] = array_of(given) > 0


def adjoints(record: Record, mark: str, obs: Observation) -> None:
    """Gradients of what the layers made, the last layer first."""
    for path, given, out in reversed(record):
        if out is not given and grad_of(out) is not None:
            obs.put("adjoint", path + mark, array_of(out.grad))


def gradients(run: NeedleRun, quantity: str, obs: Observation) -> None:
    """Of every parameter, the last layer first."""
    for name, parameter in reversed(run.parameters.items()):
        if grad_of(parameter) is not None:
            obs.put(quantity, name, array_of(parameter.grad))


def left_over(run: NeedleRun, obs: Observation) -> None:
    """Gradients that reset_grad has left: there should be none."""
    for name, parameter in run.parameters.items():
        if grad_of(parameter) is not None:
            obs.put("gradient", f"{name} after reset_grad", array_of(parameter.grad))


def state(run: NeedleRun, obs: Observation) -> None:
    """What the optimizer's step leaves behind: gradients, its own state, parameters and buffers."""
    gradients(run, "gradient after step", obs)
    for quantity in STATE:
        for name, (held, key) in run.contract.states(run.optimizer, quantity, run.parameters):
            array, parameter = array_of(held[key]), run.parameters[name]
            obs.put(quantity, name, array)
            if run.contract.strict:
                apart = parameter.grad is None or not np.may_share_memory(array, array_of(parameter.grad))
                obs.hold("kept", f"{quantity} {name}, apart from its gradient", apart)
    for name, parameter in run.parameters.items():
        obs.put("parameter", name, array_of(parameter))
    for slot in run.buffer_slots:
        obs.put("buffer", slot.name, run.biased(slot.name))


# -- what a user may hold, and what must then not change --------------------------------------------------------------


def held_data(run: NeedleRun, t: int) -> list[Held]:
    """``p.data`` as a user may hold it during a step, which must then leave it alone; in every second step, because an
    optimizer may write into what nobody holds.
    """
    if (run.case.seed_for("holds") + t) % 2 or not run.contract.strict:
        return []
    return [(f"p.data of {n}", p.data, np.array(array_of(p))) for n, p in run.parameters.items()]


def held_gradients(run: NeedleRun, quantity: str, obs: Observation) -> list[Held]:
    """Gradients as a user may hold them, each beside the copy that was taken of it as a quantity."""
    copies = obs.values.get(quantity, {})
    given = [(n, p) for n, p in run.parameters.items() if grad_of(p) is not None] if run.contract.strict else []
    return [(f"gradient {n}", p.grad, copies[n]) for n, p in given]


def handed_in(run: NeedleRun, when: str, obs: Observation) -> None:
    """Whether what a user has handed in, data, labels, targets and cotangents, is what it was."""
    for name, thing, given in run.handed if run.contract.strict else ():
        obs.hold("handed in", f"{name} after the {when}", same_bits(array_of(thing), given))


def unchanged(held: list[Held], when: str, obs: Observation) -> None:
    """Whether what is held has the bits that it had."""
    for name, tensor, before in held:
        obs.hold("kept", f"{name} {when}", same_bits(array_of(tensor), before))
