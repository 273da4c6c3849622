"""What does a user do who goes on after a mishap? A call that raises in the middle, and a state from before that is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np

from oracle.cases.action import Action, Hands, Plan, Write
from oracle.cases.bounds import Place
from oracle.cases.known import STATES, Known
from oracle.operations.drawn import Draw

_REFUSALS = (ValueError, TypeError, RuntimeError, KeyError)


class Interrupted(BaseException):
    """What ends a backward pass half-way, as Ctrl-C does."""


_Form = Literal["walk", "cotangent", "constant", "changed", "gradient", "name", "shape", "state"]


class Mishap(Action, frozen=True, tag="Mishap"):
    """A call that raises, after which everything is as it was.

    "walk": a backward pass that an op of the user's own interrupts, plain and with ``create_graph``; "cotangent": an out_grad of another shape;
    "constant": ``backward`` of what needs no gradient; "changed": of a model that has got another weight since its forward pass; "gradient": a step with a gradient of another shape, of the last parameter;
    "name" and "shape": ``load_state_dict`` of a model, where the last entry is missing, or of another shape; "state": the same of an optimizer.
    """

    form: _Form = "walk"
    optimizer: Place = 0

    needs_gradients = True
    weight = 5

    @property
    def words(self) -> str:
        """What it is called."""
        return f"mishap, {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Mishap:
        """Any."""
        return cls(draw.of((*_FORMS, "gradient", "gradient")), plan.optimizer(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script: those that a step or a load needs."""
        i = k.optimizer(self.optimizer)
        last = k.optimizers[i][1][-1]
        p, o = f"parameters[{last!r}]", f"optimizers[{i}]"
        wide = "np.zeros((*a.shape, 2), a.dtype)"
        lines: dict[str, tuple[str, ...]] = {
            "gradient": (f"held, a = {p}.grad, {p}.numpy()", f"{p}.grad = ndl.Tensor({wide}, requires_grad=False)", f"    {o}.step()", f"{p}.grad = held"),
            "name": ("state = {n: 2 * a for n, a in model.state_dict().items()}", "state.popitem()", "    model.load_state_dict(state)", ""),
            "shape": ("state = {n: 2 * a for n, a in model.state_dict().items()}", f"n, a = state.popitem()\nstate[n] = {wide}", "    model.load_state_dict(state)", ""),
            "state": (f"state = {o}.state_dict() | {{'lr': 0.75}}", "del state['weight_decay']", f"    {o}.load_state_dict(state)", ""),
        }  # fmt: skip
        if self.form not in lines:
            yield "# it leaves everything as it was"
            return
        *before, done, after = lines[self.form]
        yield from before
        yield f"try:\n{done}\nexcept Exception:\n    pass"
        yield from [after] if after else []

    def needle(self, w: Hands) -> None:
        """Do what must be refused, or is interrupted."""
        _, p = w.parameter(0)
        optimizer = w.optimizer(self.optimizer)
        if self.form == "walk":
            self._walks(w)
        elif self.form == "cotangent":
            leaf = w.ndl.Tensor(np.ones(2, np.float32))
            given = w.ndl.Tensor(np.ones(3, np.float32), requires_grad=False)
            refused(w, "an out_grad of another shape", lambda: (leaf * 2.0).backward(given))
        elif self.form == "changed":
            w.walk_after_change()
        elif self.form == "constant":
            refused(w, "backward of a constant", lambda: (p.detach() * 2.0).sum().backward())
        elif self.form == "gradient":
            last = optimizer.params[-1]
            held = last.grad
            last.grad = w.ndl.Tensor(np.zeros((*last.shape, 2), np.float32), requires_grad=False)
            refused(w, "a gradient of another shape", optimizer.step)
            last.grad = held
        elif self.form == "state":
            state = {**optimizer.state_dict(), "lr": 0.75}
            del state["weight_decay"]
            refused(w, "a state without a setting", lambda: optimizer.load_state_dict(state))
        else:
            state = {name: 2 * value for name, value in w.model.state_dict().items()}
            name, value = state.popitem()
            if self.form == "shape":
                state[name] = np.zeros((*value.shape, 2), value.dtype)
            refused(w, "a state dict that does not fit", lambda: w.model.load_state_dict(state))

    def _walks(self, w: Hands) -> None:
        """A backward pass that has a gradient for one parameter already when the one for another is interrupted."""

        class Interrupts(w.ndl.TensorOp):  # type: ignore[misc,name-defined]
            def compute(self, x: Any) -> Any:
                return np.array(x)

            def vjp(self, g: Any, y: Any, needs: Any, x: Any) -> Any:
                raise Interrupted

        for create in (False, True):
            leaves = [p for p in w.parameters.values() if p.requires_grad]
            if not leaves:
                return
            first = Interrupts()(leaves[0] * 2.0).sum()  # what is made first is walked last
            loss = first + sum((p * 2.0).sum() for p in leaves[1:])
            try:
                loss.backward(create_graph=create)
            except Interrupted:
                w.promise("an exception in the middle of a backward pass reaches the user", True)
            else:
                w.promise("an exception in the middle of a backward pass reaches the user", False)
            w.promise("after an interrupted backward pass everything is recorded", (leaves[0] * 2.0).requires_grad)


def refused(w: Hands, what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except _REFUSALS:
        w.promise(f"{what} is refused", True)
    else:
        w.promise(f"{what} is refused", False)


_FORMS: tuple[Any, ...] = get_args(_Form)
Mishap.examples = tuple(Mishap(form) for form in _FORMS)


class Rewind(Action, frozen=True, tag="Rewind"):
    """``state = model.state_dict()``, a forward pass and other numbers in all parameters, ``model.load_state_dict(state)``.

    ``optimizer`` does so with the state of every optimizer, too, which has made a step meanwhile.
    """

    optimizer: bool = False

    needs_gradients = True
    weight = 3

    @property
    def words(self) -> str:
        """What it is called."""
        return "state put back" + (", of optimizers too" if self.optimizer else "")

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Rewind:
        """Either."""
        return cls(draw.maybe())

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        yield "state, states = model.state_dict(), [o.state_dict() for o in optimizers]"
        yield f"np.random.seed(SEEDS[{k.passes}])"
        yield f"model(ndl.Tensor(X[{k.passes}], requires_grad=False))"
        if self.optimizer:
            yield "for o in optimizers:\n    o.step()"
        yield "for p in parameters.values():\n    p.cached_data = p.cached_data * np.float32(0.5)"
        yield "model.load_state_dict(state)"
        if self.optimizer:
            yield "for o, kept_state in zip(optimizers, states):\n    o.load_state_dict(kept_state)"

    def needle(self, w: Hands) -> None:
        """``load_state_dict``, of what has given the state."""
        w.rewound(optimizer=self.optimizer)

    def meaning(self, k: Known) -> None:
        """Everything is as it was; states of optimizers are in the dtype of their parameters."""
        if self.optimizer:
            for i, (kind, _) in enumerate(k.optimizers):
                for key, value in k.values.items():
                    if key.startswith(tuple(f"optimizer {i}: {q} " for q in STATES[kind])):
                        k.values[key] = value.astype(np.float32)


Rewind.examples = (Rewind(), Rewind(True))
