"""What does a user write into a parameter by hand? ``p += 0.25`` and its like, masks of what is compared, and what must be refused.

All of it is exact in float32: one rounding for each element, of which NumPy and needle have the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from oracle.cases.action import Action, Array, Hands, Plan, Write
from oracle.cases.bounds import Place
from oracle.cases.known import Known
from oracle.operations.drawn import Draw

_ASSIGNED = "[...] ="
_Both = Callable[[Any, Any], Any]
_CHANGED: dict[str, _Both] = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "/=": operator.itruediv,
    "**=": operator.ipow,
    "@=": operator.imatmul,
}
# two at a time: what the first leaves, the second goes on with
_COMPARED: dict[str, tuple[tuple[str, _Both], ...]] = {
    "> and <": ((">", operator.gt), ("<", operator.lt)),
    ">= and <=": ((">=", operator.ge), ("<=", operator.le)),
    "== and !=": (("==", operator.eq), ("!=", operator.ne)),
}


def _beside(form: str, values: Array, drawn: Array) -> Any:
    """What stands on the right: a number, the drawn numbers, the matrix that turns the last axis round and halves it."""
    if form == "@=":
        return np.float32(0.5) * np.eye(values.shape[-1], dtype=np.float32)[::-1]
    return {"+=": 0.25, "/=": 2.0, "**=": 2, "==": values, "!=": 0.0, ">": 0.0, "<=": 0.25}.get(form, drawn)


class Augment(Action, frozen=True, tag="Augment"):
    """``p += 0.25`` and its like under ``no_grad``, and refused where a graph is recorded; ``p *= p > 0`` for a comparison.

    "[...] =" is an assignment to elements, which is refused; "@=" leaves alone what is no matrix.
    """

    form: Literal["+=", "-=", "/=", "**=", "@=", "> and <", ">= and <=", "== and !=", "[...] ="] = "+="
    parameter: Place = 0

    weight = 8

    @property
    def words(self) -> str:
        """What it is called."""
        return f"data masked by {self.form}" if self.form in _COMPARED else f"data {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Augment:
        """Any form of any parameter."""
        return cls(draw.of(_FORMS), plan.parameter(draw))

    def _leaves_alone(self, shape: tuple[int, ...]) -> bool:
        return self.form == _ASSIGNED or (self.form == "@=" and len(shape) != 2)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        name = k.parameter(self.parameter)
        p = f"parameters[{name!r}]"
        if self._leaves_alone(k.shape(name)):
            yield f"# nothing is done with {p}"
            return
        yield f"kept.append({p}.data)"
        yield "with ndl.no_grad():"
        for sign in [sign for sign, _ in _COMPARED.get(self.form, ())] or [self.form]:
            beside = _beside(sign, np.ones(k.shape(name), np.float32), k.numbers(name))
            text = (
                f"ndl.Tensor({write(beside)}, requires_grad=False)" if isinstance(beside, np.ndarray) else str(beside)
            )
            text = f"{p}.data" if sign == "==" else text
            yield f"    {p} *= {p} {sign} {text}" if self.form in _COMPARED else f"    {p} {sign} {text}"

    def needle(self, w: Hands) -> None:
        """``p += …``."""
        _, p = w.parameter(self.parameter)
        if self.form == _ASSIGNED:
            try:
                p[...] = 1.0
            except TypeError:
                w.promise("an assignment to elements is refused", True)
            else:
                w.promise("an assignment to elements is refused", False)
        if self._leaves_alone(p.shape):
            return
        if self.form in _CHANGED:
            try:
                self._change(w, p)
            except RuntimeError:
                w.promise("a parameter is not changed while a graph is recorded", True)
            else:
                w.promise("a parameter is not changed while a graph is recorded", False)
        w.hold("p.data", p.data)
        with w.ndl.no_grad():
            if self.form in _CHANGED:
                made = self._change(w, p)
                w.promise("a parameter that is changed in place is the same one", made is p)
            for sign, compare in _COMPARED.get(self.form, ()):
                mask = compare(p, self._tensor(w, sign, p))
                bools = mask.dtype == np.bool and not mask.requires_grad
                w.promise("a comparison holds bools, and asks for no gradient", bools)
                p *= mask

    def _tensor(self, w: Hands, sign: str, p: Any) -> Any:
        beside = _beside(sign, np.array(p.numpy()), w.numbers(p))
        return w.ndl.Tensor(beside, requires_grad=False) if isinstance(beside, np.ndarray) else beside

    def _change(self, w: Hands, p: Any) -> Any:
        return _CHANGED[self.form](p, self._tensor(w, self.form, p))

    def meaning(self, k: Known) -> None:
        """The parameter has these numbers."""
        name = k.parameter(self.parameter)
        values = np.array(k.values[f"parameter {name}"])
        if self._leaves_alone(values.shape):
            return
        if self.form == "@=":
            values = np.array(values[..., ::-1] * np.float32(0.5))
        elif self.form in _CHANGED:
            values = _CHANGED[self.form](values, _beside(self.form, values, k.numbers(name)))
        for sign, compare in _COMPARED.get(self.form, ()):
            values = np.where(compare(values, _beside(sign, values, k.numbers(name))), values, np.float32(0))
        k.values[f"parameter {name}"] = values


_FORMS: tuple[Any, ...] = (*_CHANGED, *_COMPARED, _ASSIGNED)
Augment.examples = tuple(Augment(form) for form in _FORMS)
