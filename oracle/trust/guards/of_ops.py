"""Guards of what single operations reach: wrong for one op, one dtype, one size, one layout, one kind of argument.

A case of a single operation is needle's user applying an op to leaves of its own. What is differentiated twice or three times is seen by the backward
passes: a gradient that carries a graph was made from such leaves, and is differentiated itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from needle import Tensor
from oracle.cases.features import (
    BLOCK,
    FEW_CLASSES,
    FEW_LABELS,
    LAYOUTS,
    LONG_AXIS,
    NONFINITE,
    ROWS,
    SWITCHES,
    TABLE,
    ZEROS_AT_HAND,
)
from oracle.trust.guards.guard import Guards
from oracle.trust.guards.seen import Called, Walk, lying

guard = Guards()
Array = Any

# the ops that go by another name, or by several, where a user calls them
_CALLS = {
    "absolute": "absolute __abs__ abs", "cast": "cast clone", "subtract": "__sub__", "matmul": "matmul __matmul__", "rsub": "__rsub__",
    "rdiv": "__rtruediv__", "rpow": "__rpow__", "larger": "maximum", "smaller": "minimum", "maximum": "max", "minimum": "min amin",
    "transpose": "transpose T", "getitem": "__getitem__", "picked": "__getitem__", "softmax_loss": "SoftmaxLoss", "flatten": "Flatten",
    "add_scalar": "add_scalar __add__", "mul_scalar": "mul_scalar __rmul__", "divide_scalar": "divide_scalar __truediv__",
    "power_scalar": "power_scalar __pow__", "whole_power_scalar": "power_scalar __pow__", "whole_power": "__pow__",
}  # fmt: skip
_NUMBERS = {"add_scalar", "mul_scalar", "divide_scalar", "power_scalar", "whole_power_scalar"}
# beside these, integers and bools are operands; elsewhere they are labels, places and conditions
_WITH_INTEGERS = {"add", "__sub__", "multiply", "divide", "matmul", "__matmul__"}


def applies(op: str) -> Callable[[Called], bool]:
    """Whether a call is one of this op."""
    names = _CALLS.get(op, op).split()

    def asked(f: Called) -> bool:
        if f.name not in names:
            return False
        other = f.args[1] if len(f.args) > 1 else None
        if op in _NUMBERS and isinstance(other, Tensor):
            return False
        if op == "whole_power" and not isinstance(other, Tensor):
            return False
        if op in ("getitem", "picked"):
            parts = other if isinstance(other, tuple) else (other,)
            return any(isinstance(part, Tensor) for part in parts) == (op == "picked")
        if (
            op in ("power_scalar", "whole_power_scalar") and not f.inside
        ):  # the same call, on numbers of any sign only if it is whole; in float32 one of them may be a special value
            fraction = bool(float(other) % 1)  # type: ignore[arg-type]
            negative = ((f.tensors[0] < 0) & np.isfinite(f.tensors[0])).sum()
            return fraction if op == "power_scalar" else not fraction and negative > (f.tensors[0].dtype == np.float32)
        return True

    return asked


def operands(f: Called) -> list[Array]:
    """What is operated on."""
    return [*f.tensors] if f.name in _WITH_INTEGERS else f.floats


def own(when: Callable[[Called], bool]) -> Callable[[Called], bool]:
    """Of leaves of the user's own."""
    return lambda f: f.leaves and when(f)


def any_of(when: Callable[[Array], Any]) -> Callable[[Called], bool]:
    """Of leaves, any of which is such."""
    return lambda f: f.leaves and any(bool(when(a)) for a in operands(f))


def of_float32(when: Callable[[Array], Any]) -> Callable[[Called], bool]:
    """The same, where all of them are float32."""
    return lambda f: (
        f.leaves and all(a.dtype == np.float32 for a in operands(f)) and any(bool(when(a)) for a in operands(f))
    )


def differentiated(order: int, op: str) -> Callable[[Walk], bool]:
    """A gradient of the op that is itself differentiated."""
    asked = applies(op)
    return lambda w: w.order == order and w.model is None and any(asked(call) for call in w.calls)


def _long(a: Array) -> bool:
    return bool(a.size and max(a.shape, default=0) > 64)


def _both(a: Callable[[Called], bool], b: Callable[[Array], bool]) -> Callable[[Called], bool]:
    return lambda f: f.leaves and a(f) and any(map(b, operands(f)))


def _other(a: Array) -> bool:
    return bool(a.dtype != np.float32)


for _op in TABLE["op"].labels:
    guard(f"op {_op}", "op", own(applies(_op)))
for _op in TABLE["twice"].labels:
    guard(f"twice {_op}", "walk", differentiated(1, _op))
    guard(f"three times {_op}", "walk", differentiated(2, _op))
for _op in TABLE["dtypes"].labels:
    guard(f"dtypes {_op}", "op", _both(applies(_op), _other))
for _op in TABLE["long"].labels:
    guard(f"long {_op}", "op", _both(applies(_op), _long))


def _nonfinite(a: Array) -> bool:
    return bool(a.dtype == np.float32 and not np.isfinite(a).all())


def _nonfinite_in(ops: Sequence[str]) -> Callable[[Called], bool]:
    asked = [applies(op) for op in ops]
    return _both(lambda f: any(of_one(f) for of_one in asked), _nonfinite)


for _where, _ops in NONFINITE.items():
    guard(f"nonfinite {_where}", "op", _nonfinite_in(_ops))
guard("nonfinite in several operands", "op", own(lambda f: sum(map(_nonfinite, operands(f))) > 1))


def in_a_block(op: str) -> Callable[[Called], bool]:
    """Inside a module of the user's own, which has neither modules nor parameters in it."""
    asked = applies(op)
    return lambda f: f.inside is not None and asked(f) and not f.inside.modules_in()[1:] and not f.inside.parameters()


for _op in TABLE["block"].labels:
    guard(f"block {_op}", "op", in_a_block(_op))

# -- shapes and sizes

guard("shape scalar", "op", any_of(lambda a: not a.shape))
guard("shape size 1", "op", any_of(lambda a: 1 in a.shape))
guard("shape square", "op", any_of(lambda a: a.ndim > 1 and a.shape[-1] == a.shape[-2]))
guard("shape broadcast", "op", own(lambda f: len({a.shape for a in operands(f)}) > 1))
guard("shape zero size", "op", any_of(lambda a: 0 in a.shape))
guard("shape above 32", "op", any_of(lambda a: max(a.shape, default=0) > 32))
guard("shape rank 3", "op", own(lambda f: max((a.ndim for a in operands(f)), default=0) == 3))
guard("shape rank 4", "op", own(lambda f: max((a.ndim for a in operands(f)), default=0) == 4))


def _sized(when: Callable[[int, int], bool]) -> Callable[[Called], bool]:
    return any_of(lambda a: _long(a) and when(max(a.shape), a.size))


_ELEMENTS = f"{ZEROS_AT_HAND:,} elements"
guard(SWITCHES[LONG_AXIS][0], "op", _sized(lambda longest, size: longest <= LONG_AXIS))
guard(SWITCHES[LONG_AXIS][1], "op", _sized(lambda longest, size: longest > LONG_AXIS))
guard(f"size 5,000 to {_ELEMENTS}", "op", _sized(lambda longest, size: 5000 <= size <= ZEROS_AT_HAND))
guard(f"size above {_ELEMENTS}", "op", _sized(lambda longest, size: size > ZEROS_AT_HAND))
guard(SWITCHES[BLOCK][0], "op", _sized(lambda longest, size: longest > LONG_AXIS and longest % BLOCK == 0))
guard(SWITCHES[BLOCK][1], "op", _sized(lambda longest, size: longest > LONG_AXIS and longest % BLOCK > 0))
guard(SWITCHES[ZEROS_AT_HAND][0], "op", _both(applies("relu"), lambda a: _long(a) and a.size <= ZEROS_AT_HAND))
guard(SWITCHES[ZEROS_AT_HAND][1], "op", _both(applies("relu"), lambda a: _long(a) and a.size > ZEROS_AT_HAND))
guard(SWITCHES[FEW_LABELS][0], "op", _both(applies("softmax_loss"), lambda a: a.shape[0] <= FEW_LABELS))
guard(SWITCHES[FEW_LABELS][1], "op", _both(applies("softmax_loss"), lambda a: a.shape[0] > FEW_LABELS))
guard(SWITCHES[FEW_CLASSES][0], "op", _both(applies("softmax_loss"), lambda a: a.shape[1] <= FEW_CLASSES))
guard(SWITCHES[FEW_CLASSES][1], "op", _both(applies("softmax_loss"), lambda a: a.shape[1] > FEW_CLASSES))

# -- dtypes


def _floats(f: Called) -> set[str]:
    return {str(a.dtype) for a in operands(f) if a.dtype.kind == "f"}


def _result(dtype: str) -> Callable[[Called], bool]:
    def asked(f: Called) -> bool:
        made = f.leaves and not isinstance(f.made, tuple) and str(f.made.dtype) == dtype
        return bool(made and f.name != "cast" and any(map(_other, operands(f))))

    return asked


for _dtype in ("float16", "float32", "float64"):
    guard(f"dtype result {_dtype}", "op", _result(_dtype))
guard("dtype one float", "op", own(lambda f: any(map(_other, operands(f))) and len(_floats(f)) == 1))
guard("dtype several floats", "op", own(lambda f: len(_floats(f)) > 1))
for _dtype in ("int64", "int32", "uint8", "bool"):
    guard(f"dtype {_dtype} operand", "op", any_of(lambda a, dtype=_dtype: str(a.dtype) == dtype))  # type: ignore[misc]

# -- corners


def _kinds(f: Called) -> set[str]:
    return {a.dtype.kind for a in (f.tensors[1:] if f.name == "where" else f.tensors)}


def _beside(op: str) -> Callable[[Called], bool]:
    """A float of the user's own beside integers or bools."""
    asked = applies(op)
    return lambda f: f.leaves and asked(f) and "f" in _kinds(f) and bool(_kinds(f) & set("iub"))


for _op in TABLE["beside"].labels:
    guard(f"beside {_op}", "op", _beside(_op))


def _alone(when: Callable[[Called, Array], Any]) -> Callable[[Called], bool]:
    """Integers or bools of the user's own, and nothing else."""

    def asked(f: Called) -> bool:
        own = (
            not f.leaves and f.inside is None and not any(f.asks) and bool(f.tensors) and not isinstance(f.made, tuple)
        )
        return bool(own and all(a.dtype.kind in "iub" for a in f.tensors) and f.name != "argmax" and when(f, f.made))

    return asked


guard("alone integers", "op", _alone(lambda f, made: made.dtype.kind in "iu"))
guard("alone bools", "op", _alone(lambda f, made: made.dtype.kind == "b"))
guard("alone as floats", "op", _alone(lambda f, made: made.dtype.kind == "f"))
guard("alone many bools", "op", _alone(lambda f, _: f.tensors[0].size > ZEROS_AT_HAND and f.tensors[0].dtype == bool))
guard(
    "alone many integers", "op", _alone(lambda f, _: f.tensors[0].size > ZEROS_AT_HAND and f.tensors[0].dtype != bool)
)


def _again(order: int, dtype: str) -> Callable[[Walk], bool]:
    """A gradient in a dtype that is itself differentiated."""
    return lambda w: (
        w.order == order and w.model is None and any(str(a.dtype) == dtype for call in w.calls for a in call.tensors)
    )


for _dtype in ("float16", "float64"):
    guard(f"again twice in {_dtype}", "walk", _again(1, _dtype))
    guard(f"again three times in {_dtype}", "walk", _again(2, _dtype))


def _rows(a: Array) -> bool:
    """A long axis, along which the numbers do not lie side by side."""
    return _long(a) and a.strides[a.shape.index(max(a.shape))] != a.itemsize


def _rows_of(op: str) -> Callable[[Called], bool]:
    asked = applies(op)
    return lambda f: f.leaves and asked(f) and _rows(f.tensors[0])


_ROWS = [_rows_of(op) for op in ROWS]


def _rows_in(dtype: str) -> Callable[[Called], bool]:
    return lambda f: any(str(a.dtype) == dtype for a in f.tensors[:1]) and any(rows(f) for rows in _ROWS)


for _op in ROWS:
    guard(f"rows {_op}", "op", _rows_of(_op))
for _dtype in ("float16", "float64"):
    guard(f"rows {_dtype}", "op", _rows_in(_dtype))


# -- memory and values


def _lying(layout: str, dtype: str) -> Callable[[Called], bool]:
    """Leaves, or integers alone, of a dtype, one of which lies so."""
    alone = _alone(lambda f, _: True)

    def asked(f: Called) -> bool:
        own = f.leaves or alone(f)
        return own and any(
            layout in lying(a) and (a.dtype.kind in "iub" if dtype == "integers" else str(a.dtype) == dtype)
            for a in (f.tensors[1:] if f.name == "where" else f.tensors)
        )

    return asked


for _layout in TABLE["memory"].labels:
    guard(f"memory {_layout}", "op", of_float32(lambda a, layout=_layout: layout in lying(a)))  # type: ignore[misc]
for _layout in LAYOUTS:
    for _dtype in ("float16", "float64", "integers"):
        guard(f"lying {_layout} {_dtype}", "op", _lying(_layout, _dtype))
guard("value nan", "op", of_float32(lambda a: np.isnan(a).any()))
guard("value inf", "op", of_float32(lambda a: (a == np.inf).any()))
guard("value -inf", "op", of_float32(lambda a: (a == -np.inf).any()))
guard("value 0", "op", of_float32(lambda a: ((a == 0) & ~np.signbit(a)).any()))
guard("value -0", "op", of_float32(lambda a: ((a == 0) & np.signbit(a)).any()))
guard("value 1e-20", "op", of_float32(lambda a: ((a != 0) & (np.abs(a) < 1e-19)).any()))
guard("value above 64", "op", of_float32(lambda a: (np.isfinite(a) & (np.abs(a) > 64)).any()))
guard(
    "value of g above 64",
    "walk",
    lambda w: bool(w.calls) and w.order == 0 and w.g is not None and bool((np.abs(w.g) > 64).any()),
)

# -- arguments

guard(
    "argument numpy scalar",
    "op",
    own(lambda f: any(isinstance(x, np.float64) for x in (*f.args, *f.keywords.values()))),
)
guard(
    "argument constant",
    "op",
    own(
        lambda f: (
            f.name != "where"
            and any(not asks and a.dtype == np.float32 for a, asks in zip(f.tensors, f.asks, strict=True))
        )
    ),
)
# where the axes stand among the arguments
_AXES = {
    "summation": 1,
    "logsumexp": 1,
    "max": 1,
    "min": 1,
    "amin": 1,
    "var": 1,
    "transpose": 1,
    "flip": 1,
    "dilate": 1,
}
_MAY_LACK = ("summation", "logsumexp", "max", "min", "amin", "var")


def _axes(f: Called) -> tuple[int, ...] | None:
    axes = f.given("axes", _AXES[f.name]) if f.name in _AXES else None
    return axes if axes is None or isinstance(axes, tuple) else (axes,)


guard("argument no axes", "op", own(lambda f: f.name in _MAY_LACK and _axes(f) is None))
guard("argument empty tuple of axes", "op", own(lambda f: _axes(f) == ()))
guard("argument one axis", "op", own(lambda f: len(_axes(f) or ()) == 1))
guard("argument several axes", "op", own(lambda f: len(_axes(f) or ()) > 1))
guard("argument negative axis", "op", own(lambda f: any(axis < 0 for axis in _axes(f) or ())))


def _far_above(f: Called) -> bool:
    if f.name != "logsumexp" or _axes(f) is not None or f.tensors[0].dtype != np.float32:
        return False
    rows = f.tensors[0]
    return rows.ndim > 1 and len(rows) > 1 and rows.size > 0 and bool(rows.max() - rows[:1].max() > 89)


guard("argument all axes of logsumexp, a row far above the first", "op", own(_far_above))
for _op in ("stack", "split", "concatenate", "softmax"):
    _from_the_end = lambda f, op=_op: f.name == op and (f.given("axis", 1) or 0) < 0  # noqa: E731
    guard(f"argument negative axis of {_op}", "op", own(_from_the_end))
for _op in ("dilate", "flip"):
    _negative = lambda f, op=_op: f.name == op and any(axis < 0 for axis in _axes(f) or ())  # noqa: E731
    guard(f"argument negative axis of {_op}", "op", own(_negative))


def _shape(f: Called) -> tuple[int, ...]:
    given = f.args[1:] or (f.keywords.get("shape", ()),)
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else tuple(given)


def _as_long(f: Called) -> bool:
    was, shape = f.tensors[0].shape, _shape(f)
    return bool(was) and shape[1:] == was and shape[0] > 1 and shape[0] in (was[0], was[-1])


guard("argument -1 in a shape", "op", own(lambda f: f.name == "reshape" and -1 in _shape(f)))
guard("argument a new axis as long as another", "op", own(lambda f: f.name == "broadcast_to" and _as_long(f)))


def _parts(f: Called) -> Iterator[tuple[str, Any]]:
    index = f.args[{"__getitem__": 1, "put_item": 2}[f.name]]
    for part in index if isinstance(index, tuple) else (index,):
        if hasattr(part, "__len__"):  # a list, a tuple and a range are arrays to NumPy
            array = np.asarray(part)
            yield "mask" if array.dtype == bool else "array", array
        elif part is None or part is Ellipsis:
            yield "new axis" if part is None else "ellipsis", part
        else:
            yield "slice" if isinstance(part, slice) else "number", part


def _indexed(op: str, when: Callable[[str, Any], bool]) -> Callable[[Called], bool]:
    asked = applies(op)
    return lambda f: f.leaves and asked(f) and any(when(kind, part) for kind, part in _parts(f))


for _label in TABLE["index"].labels:
    _kind, _, _op = _label.rpartition(" of ")
    if _kind == "repeats":
        guard(
            f"index {_label}",
            "op",
            _indexed(_op, lambda kind, p: kind == "array" and len(set(p.reshape(-1).tolist())) < p.size),
        )
    elif _kind == "negative places":
        guard(f"index {_label}", "op", _indexed(_op, lambda kind, p: kind == "array" and bool((p < 0).any())))
    else:
        guard(f"index {_label}", "op", _indexed(_op, lambda kind, p, of=_kind: kind == of))  # type: ignore[misc]


def _power(tensors: bool, when: Callable[[Array, Array], Array]) -> Callable[[Called], bool]:
    def asked(f: Called) -> bool:
        if not f.leaves or f.name not in ("power", "power_scalar", "__pow__"):
            return False
        other = f.args[1] if len(f.args) > 1 else f.keywords.get("scalar")
        if isinstance(other, Tensor) != tensors or any(a.dtype != np.float32 for a in f.tensors):
            return False
        exponents = f.tensors[1] if tensors else np.array(float(other))  # type: ignore[arg-type]
        return bool(np.any(when(*np.broadcast_arrays(f.tensors[0], exponents))))

    return asked


_POWERS: dict[str, Callable[[Array, Array], Array]] = {
    "a whole power of a negative number": lambda b, e: (e % 1 == 0) & (b < 0) & (np.abs(e) > 1),
    "a fractional power of a negative number": lambda b, e: (e % 1 > 0) & (b < 0),
    "a positive power of 0": lambda b, e: (b == 0) & (e > 0),
    "a negative power of 0": lambda b, e: (b == 0) & (e < 0),
    "0 to the power of 0": lambda b, e: (b == 0) & (e == 0),
}
for _name, _when in _POWERS.items():
    guard(f"power {_name}", "op", _power(False, _when))
    guard(f"power {_name}, of two tensors", "op", _power(True, _when))
