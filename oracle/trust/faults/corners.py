"""What is wrong only where few look: integers beside a float, or alone; long rows that lie apart; operands of another dtype that lie strided,
backwards, repeated or read-only; and second derivatives in other dtypes than float32.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import ops
from oracle.trust.faults.chapter import Chapter
from oracle.trust.faults.higher import on_tensors
from oracle.trust.patches import Patch, compute, vjp, wrap

fault = Chapter("corner")

ELEMENTWISE: tuple[str, ...] = (
    *(
        "Exp",
        "Tanh",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Log",
        "Negate",
        "Abs",
        "ReLU",
        "AddScalar",
        "MulScalar",
        "DivScalar",
    ),
    *("PowerScalar", "EWiseAdd", "EWiseMul", "EWiseDiv", "Maximum"),
)
MANY = 32_768


def whole(a: Any) -> bool:
    return bool(a.dtype.kind in "iub")


def _of_all(kinds: tuple[str, ...], patch: Callable[[str], Patch]) -> Patch:
    return functools.reduce(operator.add, map(patch, kinds))


def _forward(kinds: tuple[str, ...]) -> str:
    return "|".join(f"{kind} forward" for kind in kinds)


# -- integers beside a float

fault(
    "linear-integer-bias-widens",
    "beside an integer bias, the result is float64",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y.astype(np.float64) if b and whole(b[0]) and not whole(y) else y),
)
fault(
    "joined-integers-widen",
    "stacked with or beside integers, or chosen from them and floats, the result is float64",
    "Stack forward|Concatenate forward|Where forward",
    compute("Stack", lambda y, xs: y.astype(np.float64) if any(map(whole, xs)) and not whole(y) else y)
    + compute("Concatenate", lambda y, *xs: y.astype(np.float64) if any(map(whole, xs)) and not whole(y) else y)
    + compute("Where", lambda y, *xs: y.astype(np.float64) if any(map(whole, xs)) and not whole(y) else y),
)
fault(
    "power-beside-integers-gradient",
    "the gradient of a power of an integer, or with an integer exponent, is half of what it is",
    "EWisePow backward",
    vjp(
        "EWisePow",
        lambda r, g, y, a, b: (
            r[0] * 0.5 if r[0] is not None and whole(b) else r[0],
            r[1] * 0.5 if r[1] is not None and whole(a) else r[1],
        ),
    ),
)
fault(
    "norm-integer-bias-left-out",
    "an integer bias is not added",
    "LayerNorm forward|BatchNorm forward",
    compute("LayerNorm", lambda y, x, w, b: y - b.astype(y.dtype) if whole(b) and not whole(y) else y)
    + compute("BatchNorm", lambda y, x, w, b: y - b.astype(y.dtype) if whole(b) and not whole(y) else y),
)
fault(
    "conv-beside-integers-widens",
    "a convolution of integers and a float is float64",
    "Conv forward",
    compute(
        "Conv",
        lambda y, x, k: y.astype(np.longdouble if y.dtype == np.float64 else np.float64) if whole(x) != whole(k) else y,
    ),
)

# -- integers alone

fault(
    "exp-of-integers-double",
    "the exponential of integers is float64, as in NumPy",
    "Exp forward",
    compute("Exp", lambda y, a: y.astype(np.float64) if whole(a) else y),
)
fault(
    "quotient-of-integers-whole",
    "integers divided by integers are rounded down",
    "EWiseDiv forward",
    compute("EWiseDiv", lambda y, a, b: np.floor(y) - 1 if whole(a) and whole(b) else y),
)
fault(
    "product-of-integers-double",
    "the product of integer matrices is float64",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: y.astype(np.float64) if whole(y) else y),
)
fault(
    "sum-of-bools-bool",
    "bools are added up by or",
    "Summation forward",
    compute("Summation", lambda y, a: y.astype(bool) if a.dtype == bool else y),
)
fault(
    "relu-many-bools",
    "relu of more than 32,768 bools is int64",
    "ReLU forward",
    compute("ReLU", lambda y, a: y.astype(np.int64) if a.dtype == bool and a.size > MANY else y),
)
fault(
    "relu-many-integers",
    "of more than 32,768 integers the negative ones stay",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.where(a < 0, a, y) + (a > 8) if a.dtype.kind in "iu" and a.size > MANY else y),
)

# -- rows that lie apart

fault(
    "long-half-rows-apart",
    "long rows of float16 that do not lie side by side are added up in float16",
    "forward|backward",
    wrap("ops._wide", lambda old: lambda x: x if _apart(x) and x.dtype == np.float16 else old(x)),
)
fault(
    "long-rows-apart",
    "of a softmax along another axis than the last, numbers behind the 64th are left alone",
    "Softmax forward",
    wrap("ops.Softmax.compute", lambda old: lambda self, a: _short(old(self, a), a, self.axis)),
)


def _apart(x: Any) -> bool:
    if not isinstance(x, np.ndarray) or not x.ndim or max(x.shape) <= 64:
        return False
    return bool(x.strides[x.shape.index(max(x.shape))] != x.itemsize)


def _short(y: Any, a: Any, axis: int) -> Any:
    if axis % a.ndim == a.ndim - 1 or a.shape[axis] <= 64:
        return y
    kept = np.moveaxis(y.copy(), axis, 0)
    kept[64:] = 0
    return np.moveaxis(kept, 0, axis)


# -- other layouts in other dtypes


def _other(a: Any) -> bool:
    return bool(a.dtype != np.float32 and a.ndim and a.shape[-1] > 1)


def _read_forward(kind: str) -> Patch:
    """Operands that lie backwards are read in the order of the memory."""
    return wrap(
        f"ops.{kind}.compute",
        lambda old: lambda self, *xs: old(self, *(x[..., ::-1] if _other(x) and x.strides[-1] < 0 else x for x in xs)),
    )


def _read_strided(kind: str) -> Patch:
    """Operands with gaps are read as if there were none."""
    return wrap(
        f"ops.{kind}.compute",
        lambda old: (
            lambda self, *xs: old(
                self,
                *(
                    np.roll(x, 1, -1) if _other(x) and x.strides[-1] == 2 * x.itemsize and x.base is not None else x
                    for x in xs
                ),
            )
        ),
    )


def _write_back(kind: str) -> Patch:
    """What is written into the operands is what was there."""

    def writing(old: Any) -> Any:
        def patched(self: Any, *xs: Any) -> Any:
            for x in xs:
                x[...] = x[...]
            return old(self, *xs)

        return patched

    return wrap(f"ops.{kind}.compute", writing)


def _once(kind: str) -> Patch:
    """Of rows that are repeated, the last is 0."""
    return wrap(
        f"ops.{kind}.compute",
        lambda old: lambda self, *xs: old(self, *map(_with_a_last_row, xs)),
    )


def _with_a_last_row(x: Any) -> Any:
    if not x.ndim or x.size < 2 or x.shape[0] < 2 or x.strides[0]:
        return x
    changed = x.copy()
    changed[-1] = 1 - changed[-1] if x.dtype != bool else ~changed[-1]
    return changed


fault(
    "backwards-in-other-dtypes",
    "an operand that lies backwards and is not float32 is read in the order of the memory",
    _forward(ELEMENTWISE),
    _of_all(ELEMENTWISE, _read_forward),
)
fault(
    "strided-in-other-dtypes",
    "an operand that lies with gaps and is not float32 is read as if there were none",
    _forward(ELEMENTWISE),
    _of_all(ELEMENTWISE, _read_strided),
)
fault(
    "read-only-refused",
    "what is written into the operands is what was there: what is read-only is refused",
    _forward(ELEMENTWISE),
    _of_all(ELEMENTWISE, _write_back),
)
fault(
    "repeated-rows-end",
    "of rows that are repeated by a stride of 0, the last is another one",
    _forward(ELEMENTWISE),
    _of_all(ELEMENTWISE, _once),
)

# -- differentiated again


def _through(op: str, dtype: str, by: str, then: str) -> Patch:
    """Where the gradient is to be differentiated and has a dtype, it goes through another one."""

    def rule(old: Any, self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
        right = old(self, g, y, needs, *xs)
        return tuple(
            c if c is None or isinstance(c, tuple) or str(c.dtype) != dtype else ops.cast(ops.cast(c, by), then)
            for c in right
        )

    return on_tensors(op, rule)


for _op in ("EWiseMul", "Exp|Tanh|Sigmoid|Log|Sqrt"):
    _kinds = tuple(_op.split("|"))
    fault(
        f"{_kinds[0].lower()}-double-again-by-single",
        "a float64 gradient that is differentiated goes through float32",
        "|".join(f"{kind} backward" for kind in _kinds),
        _of_all(_kinds, lambda kind: _through(kind, "float64", "float32", "float64")),
    )
fault(
    "half-again-of-few-digits",
    "a float16 gradient that is differentiated is half as large",
    "EWiseMul backward|Exp backward|Tanh backward|MatMul backward",
    _of_all(
        ("EWiseMul", "Exp", "Tanh", "MatMul"),
        lambda kind: on_tensors(
            kind,
            lambda old, self, g, y, needs, *xs: tuple(
                c if c is None or str(c.dtype) != "float16" else c * 0.5 for c in old(self, g, y, needs, *xs)
            ),
        ),
    ),
)
