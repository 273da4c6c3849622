"""What a node of the tape must give: its definition, run on arrays that carry the bounds of their rounding errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.operations.bounds import LIMIT, Bounded, BoundTape
from oracle.operations.operation import Meaning
from oracle.operations.tape import LEAD, TINY, U, Var
from oracle.rules.units import HUGE
from oracle.systems.recorded import Node

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Within = tuple[Array, Array]  # a float64 value, and how far a correct float32 program may be from it
Parts = tuple[Within | None, ...]  # one per element of a TensorTuple; one for a Tensor; None is zero
Vjp = Callable[[Any, Sequence[bool]], "Sequence[Within | Parts | None]"]


def _told(x: Any) -> Within:
    """Value and limit, without the leading axes."""
    if isinstance(x, Bounded):
        return x.v[0, 0], LIMIT * x.error[0, 0]
    return x[0, 0], np.zeros(x.shape[LEAD:])


def _contribution(x: Var | tuple[Var, ...]) -> Any:
    """What arrives at an operand. It may be converted to the dtype of the operand: one more rounding."""
    if isinstance(x, tuple):
        return tuple(map(_contribution, x))
    if x.adjoint is None:
        return None
    value, bound = _told(x.adjoint)
    return value, bound + 2 * U * np.abs(value)


def derived(meaning: Meaning, op: Any, xs: Sequence[Any]) -> tuple[Any, Any, Vjp]:
    """Value, bound and vjp of a node: its definition, run on arrays that carry the bounds of their rounding errors."""
    tape = BoundTape()
    operands = [tuple(Var(a[None, None]) for a in x) if isinstance(x, tuple) else Var(x[None, None]) for x in xs]
    out = meaning(tape, op, *operands)

    def vjp(g: Any, needs: Sequence[bool]) -> Any:
        for x, need in zip(operands, needs, strict=True):
            for var in x if isinstance(x, tuple) else (x,):
                var.needs = need
        ends = zip(out, g, strict=True) if isinstance(out, tuple) else [(out, g)]
        tape.backward([(var, a[None, None]) for var, a in ends])
        return [_contribution(x) if need else None for x, need in zip(operands, needs, strict=True)]

    if isinstance(out, tuple):
        told = [_told(var.value) for var in out]
        return tuple(v for v, _ in told), tuple(e for _, e in told), vjp
    return *_told(out.value), vjp


def compare(ours: Array, value: Array, bound: Array, note: Callable[[float, int], None]) -> dict[str, Any] | None:
    """What is wrong with an array; None if nothing is. ``note`` is told its largest share of what is allowed, and its size."""
    if ours.shape != value.shape:
        return {"fault": "shape", "message": f"has shape {ours.shape}, not {value.shape}",
                "ours": str(ours.shape), "truth": str(value.shape)}  # fmt: skip
    if ours.dtype.kind not in "fiub":  # None, for one
        return {"fault": "dtype", "message": f"has dtype {ours.dtype}: it is no number", "ours": str(ours.dtype),
                "truth": "a number"}  # fmt: skip
    if not value.size:
        return None
    allowed = bound + TINY
    error = np.abs(ours - value)
    share = error / allowed
    top = float(share.max())
    if not top <= 1:
        # what cannot be judged is let pass element by element: no number, or too large for float32 on the way
        tame = (np.abs(value) < HUGE) & (allowed < HUGE)
        share = np.where(tame, np.where(np.isnan(share), np.inf, share), 0.0)
        top = float(share.max())
    note(top, value.size)
    if top <= 1:
        return None
    at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), share.shape))
    return {
        "fault": "value", "index": at, "ours": float(ours[at]), "truth": float(value[at]), "dtype": str(ours.dtype),
        "error": float(error[at]), "allowed": float(allowed[at]),
        "message": f"is off by {float(error[at]):.3g}, allowed {float(allowed[at]):.3g}",
    }  # fmt: skip


def in_float64(a: Any) -> Array:
    """In float64."""
    return np.asarray(a).astype(np.float64)


def parts_of(data: Any) -> tuple[Any, ...]:
    """The arrays of a TensorTuple, whose elements may be Tensors; the array of a Tensor."""
    if isinstance(data, tuple | list):
        return tuple(np.asarray(getattr(a, "cached_data", a)) for a in data)
    return (np.asarray(data),)


def dtype_of(node: Node) -> Any:
    """The dtype that a node must have: that of its floating inputs."""
    if node.kind == "Cast":
        return np.dtype(node.op.dtype)
    floats = [a.dtype for x in node.inputs for a in parts_of(x.cached_data) if a.dtype.kind == "f"]
    return np.result_type(*floats) if floats else None
