"""A needle of the course in the hands of a user: the same actions, as far as the course has them, under its contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import Batches, Slot
from oracle.cases.known import SETTINGS, STATES, State
from oracle.systems.ours.contract import Contract, contract_of
from oracle.systems.ours.model import Array, array_of, grad_of
from oracle.systems.ours.program import World
from oracle.systems.trace import Clock

_HANDED_IN = ("input", "labels", "target", "out_grad", "loss", "output")  # what nobody may write into, by any contract


class CourseWorld(World):
    """One user's needle of the course: shapes and places of the state are its own, float32 is what is judged."""

    strict = False

    def __init__(
        self, case: c.ProgramCase, ndl: Any, slots: tuple[list[Slot], list[Slot]],
        batches: Batches, clock: Clock,
    ) -> None:  # fmt: skip
        self.contract: Contract = contract_of(ndl)
        super().__init__(case, ndl, slots, batches, clock)

    def start(self, state: State) -> None:
        """Likewise, in the shapes that they have there."""
        for slot in (*self.parameter_slots, *self.buffer_slots):
            path, attribute = slot.name.rsplit(".", 1)
            self.contract.put(self.modules[path], attribute, state[slot.name], into=False)

    def backward(self, loss: Any, cotangent: tuple[Any, ...], **keywords: bool) -> None:
        """With the keywords that there are."""
        self.contract.backward(loss, *cotangent, **keywords)

    def plus(self, a: Any, b: Any) -> Any:
        """In whatever form they have."""
        return self.contract.plus(a, b)

    def hold(self, name: str, thing: Any) -> None:
        """A step, and clipping, may write into what a user holds of the parameters and gradients."""
        if name in _HANDED_IN:
            super().hold(name, thing)

    def clip(self, optimizer: Any, max_norm: float | None) -> None:
        """The norm is judged where it is returned."""
        before = self._gradients()
        norm = optimizer.clip_grad_norm(*(() if max_norm is None else (max_norm,)))
        self.seen.put("clip norm", "norm", np.float64(self.contract.norm(norm, before)))

    def another(self, kind: str, settings: dict[str, float]) -> None:
        """One more optimizer."""
        parameters = self.contract.listed_once(self.model.parameters())
        self.optimizers.append(getattr(self.ndl.optim, kind)(parameters, **settings))

    def look(self) -> State:
        """All of the state: in our shapes, float32, wherever the optimizer keeps its own. What the course has no attribute for, or
        counts for all parameters together, is what is due.
        """
        state: State = {}
        shapes = {slot.name: slot.shape for slot in (*self.parameter_slots, *self.buffer_slots)}
        for name, p in self.parameters.items():
            state[f"parameter {name}"] = _plain(array_of(p), shapes[name])
            state[f"requires_grad {name}"] = bool(p.requires_grad)
            if grad_of(p) is not None:
                state[f"gradient {name}"] = _plain(array_of(p.grad), shapes[name])
        for slot in self.buffer_slots:
            state[f"buffer {slot.name}"] = _plain(array_of(self._buffer(slot)), slot.shape)
        for path, module in self.modules.items():
            state[f"mode {path}"] = bool(module.training)
        state |= {
            key: value for key, value in self.due.items() if key.startswith("setting ")
        }  # of layers: no action sets them
        for i, optimizer in enumerate(self.optimizers):
            kind = type(optimizer).__name__
            for setting in SETTINGS[kind]:
                key = f"optimizer {i}: {setting}"
                value, due = getattr(optimizer, setting, None), self.due.get(key)
                same = due is not None and (value is None or abs(float(value) - due) <= 1e-6 * abs(due))
                state[key] = due if same else value
            for quantity in STATES[kind]:
                for name, (held, at) in self.contract.states(optimizer, quantity, self.parameters):
                    key, array = f"optimizer {i}: {quantity} {name}", _plain(array_of(held[at]), shapes[name])
                    # zeros that were there from the beginning are none
                    if array.any() or key in self.due or key in self.judged:
                        state[key] = array
            state |= {key: value for key, value in self.due.items() if key.startswith(f"optimizer {i}: t ")}
        return state


def _plain(array: Array, shape: tuple[int, ...]) -> Array:
    made = np.array(array, np.float32 if array.dtype == np.float64 else array.dtype)
    return made.reshape(shape) if made.size == np.prod(shape) else made
