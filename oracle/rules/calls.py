"""Rule OP for calls: the first call of an op that is not what its definition says, in the order in which calls end.

Evidence, where something else has failed. An op that another one uses is judged before it: of a gradient that is wrong
because of a sum, the sum is to blame.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations import MEANINGS
from oracle.operations.dtypes import LARGEST_OF_AN_OPERATION
from oracle.operations.tape import U
from oracle.rules.node import Array, compare, derived, in_float64, parts_of
from oracle.rules.tape import Finding
from oracle.rules.units import ADDING_KINDS, LEAST, UNITS

UNSURE = (AttributeError, TypeError, ValueError, IndexError, KeyError)
WIDE = 8.0  # times the bound, in float64: the definition is no more exact there than what it judges


class Calls:
    """What was found out about the calls of a run."""

    def __init__(self) -> None:
        self.bad: Finding | None = None
        self.right: Counter[str] = Counter()  # "Tanh forward" -> how many calls were right
        self.unknown = 0

    @property
    def done(self) -> bool:
        """The first bad call is the cause of others."""
        return self.bad is not None

    def computed(self, op: Any, definer: type, inputs: Sequence[Any], made: Any, within: Sequence[str]) -> None:
        """See `oracle.systems.ours.calls.CallJudge`."""
        kind = type(op).__name__
        wrong = self._value(op, inputs, made)
        if wrong is None:
            self.right[f"{kind} forward"] += 1
        elif wrong:
            text = f"the value of {kind} {wrong.pop('message')}"
            self.bad = Finding(kind, "forward", -1, message=text, about=_called(within), method=_inherited(op, definer, "compute"),
                               **wrong)  # fmt: skip

    def _value(self, op: Any, inputs: Sequence[Any], made: Any) -> dict[str, Any] | None:
        """What is wrong with a value: None if nothing, empty if that is unknown."""
        meaning = MEANINGS.get(type(op).__name__)
        ours = parts_of(made)
        try:
            with np.errstate(all="ignore"):
                value, bound, _ = derived(meaning, op, [_wide(x) for x in inputs])  # type: ignore[arg-type]
                values, bounds = parts_of(value), parts_of(bound)
                if len(ours) != len(values):
                    return {"fault": "shape", "message": f"has {len(ours)} parts, not {len(values)}"}
                for mine, right, allowed in zip(ours, values, bounds, strict=True):
                    wrong = _compared(op, mine, right, allowed) or _of_other_sign(mine, right, inputs)
                    if wrong is not None:
                        return wrong
        except UNSURE:
            self.unknown += 1
            return {}
        return None

    def _elsewhere(self, op: Any, inputs: Sequence[Any]) -> dict[str, Any] | None:
        """What is wrong with the value of an op far from here: a gradient that is made of what the forward pass has kept is wrong
        long before the value shows it.
        """
        first = inputs[0]
        if isinstance(first, tuple) or first.dtype != np.float32 or not first.size:
            return None
        for share in (4, 32):
            moved = (first + np.float32(share) * np.abs(first).max(), *inputs[1:])
            wrong = self._value(op, moved, copy.copy(op).compute(*moved))
            if wrong:
                return wrong
        return None

    def differentiated(
        self, op: Any, definer: type, g: Any, needs: Sequence[bool], inputs: Sequence[Any], made: Any, within: Sequence[str]
    ) -> None:  # fmt: skip
        """See `oracle.systems.ours.calls.CallJudge`."""
        kind = type(op).__name__
        meaning = MEANINGS.get(kind)
        try:
            with np.errstate(all="ignore"):
                vjp = derived(meaning, op, [_wide(x) for x in inputs])[2]  # type: ignore[arg-type]
                right = vjp(_wide(g), list(needs))
                for j, (mine, due) in enumerate(zip(made, right, strict=True)):
                    wrong = self._contribution(op, inputs[j], mine, due) if needs[j] else None
                    if wrong is not None:
                        text = f"what {kind} passes back to its operand {j} {wrong.pop('message')}"
                        about: dict[str, Any] = {"about": _called(within), "method": _inherited(op, definer, "vjp")}
                        bad = Finding(kind, "backward", -1, message=text, operand=j, **about, **wrong)
                        self.bad = bad  # no call that is made from here is looked at
                        before = self._elsewhere(op, inputs) if bad.fault == "value" else None
                        if before is not None:
                            about["about"] = f"so is its value, which {before.pop('message')} on operands farther out"
                            self.bad = Finding(kind, "forward", -1, message=text, **about, **before)
                        return
        except UNSURE:
            self.unknown += 1
            return
        self.right[f"{kind} backward"] += 1

    def _contribution(self, op: Any, x: Any, mine: Any, due: Any) -> dict[str, Any] | None:
        """What is wrong with what is passed back to one operand."""
        whole = isinstance(x, tuple)
        ours = getattr(mine, "cached_data", mine)
        for i, part in enumerate(due if whole else (due,)):
            if whole:
                given = None if ours is None else ours[i]
                array = getattr(given, "cached_data", given)
            else:
                array = ours
            if part is None:
                continue
            value, bound = part
            if array is None:
                if (np.abs(value) > bound).any():
                    return {"fault": "missing", "message": "is missing", "truth": "a gradient"}
                continue
            wrong = _compared(op, np.asarray(array), value, bound)
            if wrong is not None:
                return wrong
        return None

    def wrote(self, op: Any, definer: type, direction: str, what: str, within: Sequence[str]) -> None:
        """See `oracle.systems.ours.calls.CallJudge`."""
        kind, method = type(op).__name__, _inherited(op, definer, "compute" if direction == "forward" else "vjp")
        self.bad = self.bad or Finding(kind, direction, -1, "written", f"{kind} {direction} writes into {what}",
                                       about=_called(within), method=method)  # fmt: skip


def _inherited(op: Any, definer: type, method: str) -> str:
    """Like "Max.compute", where an op has it from another one."""
    return f"{definer.__name__}.{method}" if definer is not type(op) else ""


def _called(within: Sequence[str]) -> str:
    return f"called by {within[-1]}" if within else ""


def _wide(x: Any) -> Any:
    return tuple(in_float64(a) for a in x) if isinstance(x, tuple) else in_float64(x)


def _of_other_sign(ours: Array, value: Array, inputs: Sequence[Any]) -> dict[str, Any] | None:
    """Beside numbers without end a bound says nothing, but their sign is known, unless it comes from that of a zero."""
    opposite = np.isinf(ours) & np.isinf(value) & (ours != value)
    if not opposite.any() or not all(np.all(a) for x in inputs for a in parts_of(x)):
        return None
    at = tuple(int(k) for k in np.argwhere(opposite)[0])
    return {"fault": "value", "index": at, "ours": float(ours[at]), "truth": float(value[at]), "dtype": str(ours.dtype),
            "message": f"is {float(ours[at])}, not {float(value[at])}"}  # fmt: skip


def _compared(op: Any, ours: Array, value: Array, bound: Array) -> dict[str, Any] | None:
    """As in the dtype of a result: bounds are those of float32."""
    dtype = str(ours.dtype)
    if dtype in ("float16", "float64"):
        inner = "float32" if dtype == "float16" and type(op).__name__ in ADDING_KINDS else dtype
        scale = UNITS[inner] / U * (WIDE if dtype == "float64" else 1)
        bound = bound * scale + 1.01 * UNITS[dtype] * np.abs(value) + 4 * LEAST[dtype]
        if dtype == "float16":
            bound = np.where(np.abs(value) < LARGEST_OF_AN_OPERATION, bound, np.inf)
    return compare(ours, value, bound, lambda share, size: None)
