"""Makes a failing case smaller while it keeps failing in the same way.

Works on the Case itself, not on the choices that generated it, so that a case from any source shrinks: generated,
hand-written, or found by the memory gates. Greedy and deterministic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from oracle.cases import case as c

_C = TypeVar("_C", c.TrainCase, c.SecondOrderCase, c.ProgramCase, c.OpCase)
_replace = msgspec.structs.replace


def shrink(case: c.Case, fails: Callable[[c.Case], bool], budget: int = 400) -> c.Case:
    """The smallest case found that still ``fails``; at most ``budget`` calls of it."""
    tried = {case.digest}
    progress = True
    while progress:
        progress = False
        for candidate in candidates(case):
            if candidate.digest in tried:
                continue
            if len(tried) > budget:
                return case
            tried.add(candidate.digest)
            if fails(candidate):
                case, progress = candidate, True
                break
    return case


def candidates(case: c.Case) -> Iterator[c.Case]:
    """Simpler cases, the largest simplifications first; invalid ones are left out."""
    if isinstance(case, c.OpCase):
        changes = _op_changes(case)
    else:
        changes = itertools.chain(_program_changes(case) if isinstance(case, c.ProgramCase) else (), _run_changes(case))
    while True:
        try:
            change = next(changes)
        except StopIteration:
            return
        try:
            candidate = _replace(case, **change)
        except c.CaseError:
            continue
        if candidate != case and not (isinstance(candidate, c.OpCase) and candidate.unclear):
            yield candidate


# -- training runs and second-order cases -----------------------------------------------------------------------------


def _program_changes(case: c.ProgramCase) -> Iterator[dict[str, Any]]:
    """Fewer actions, half of them at first; then simpler ones, and a simpler way to hold the model."""
    actions = case.actions
    size = len(actions) // 2
    while size:
        for start in range(0, len(actions) - size + 1, size):
            yield {"actions": actions[:start] + actions[start + size :]}
        size //= 2
    for i, action in enumerate(actions):
        for simpler in action.simpler():
            yield {"actions": (*actions[:i], simpler, *actions[i + 1 :])}
    for name, simple in (("again", None), ("held", "sequential"), ("functions", False)):
        if getattr(case, name) != simple:
            yield {name: simple}


def _run_changes(case: c.TrainCase | c.SecondOrderCase | c.ProgramCase) -> Iterator[dict[str, Any]]:
    if isinstance(case, c.TrainCase):
        for steps in (1, 2, case.steps // 2, case.steps - 1):
            if 1 <= steps < case.steps:
                kept = tuple(change for change in case.lr_changes if change.step < steps)
                gap = case.gap if case.gap is not None and case.gap.step < steps else None
                yield {"steps": steps, "lr_changes": kept, "gap": gap}
    for model in _smaller(case.model):
        yield {"model": model}
    simple: dict[str, tuple[Any, ...]] = {"keep_init": (True,), "weight_scale": (1.0,), "seed": (0, 1)}
    if isinstance(case, c.TrainCase):
        simple |= {"clip": (None,), "lr_changes": ((),), "gap": (None,), "backward": ("once",), "input_grad": (False,)}
    for name, values in simple.items():
        for value in values:
            if getattr(case, name) == value:
                break
            yield {name: value}
    if isinstance(case.data, c.Data):
        yield from ({"data": data} for data in _simpler_data(case.data))
        if not isinstance(case.loss, c.WeightedSum):
            yield {"loss": c.WeightedSum()}
        for old in sorted(_sizes(case), reverse=True):
            for new in (1, 2, 3):
                if new < old:
                    yield from _resized(case, old, new)
    if not isinstance(case, c.SecondOrderCase):
        for optimizer in _simpler(case.optimizer, {"weight_decay": (None, 0.1), "lr": (0.1,), "momentum": (None, 0.9),
                                                    "beta1": (None,), "beta2": (None,), "eps": (None,)}):  # fmt: skip
            yield {"optimizer": optimizer}
    if isinstance(case.loss, c.SoftmaxLoss) and case.loss.labels != "int64":
        yield {"loss": c.SoftmaxLoss()}
    if isinstance(case, c.TrainCase) and case.dtypes is not None:
        dtypes = case.dtypes
        for plainer in (None, *(c.Dtypes(one, one) for one in (dtypes.model, dtypes.data))):
            if plainer != dtypes:
                yield {"dtypes": plainer}
    if isinstance(case, c.TrainCase) and case.clip is not None and case.clip.max_norm not in (None, 1.0):
        yield {"clip": c.Clip(1.0)}


def _simpler(part: Any, values: dict[str, tuple[Any, ...]]) -> Iterator[Any]:
    for name, choices in values.items():
        if name not in part.__struct_fields__:
            continue
        for value in choices:
            if getattr(part, name) == value:
                break
            yield _replace(part, **{name: value})


def _simpler_data(data: c.Data) -> Iterator[c.Data]:
    for i in range(len(data.atoms)):
        yield _replace(data, atoms=data.atoms[:i] + data.atoms[i + 1 :])
    plain = {"scale": (1.0,), "offset": (0.0, 1.0), "repeated_rows": (False,), "constant_column": (False,)}
    yield from _simpler(data, {**plain, "rounded": (False,), "same_batch": (False,)})


def _smaller(layers: tuple[c.Layer, ...]) -> Iterator[tuple[c.Layer, ...]]:
    """Models with half of the layers or one of them dropped, or with one unwrapped or made simpler."""
    if len(layers) > 3:
        half = len(layers) // 2
        yield layers[half:]
        yield layers[:half]
    for i in range(len(layers)):
        if len(layers) > 1:
            yield layers[:i] + layers[i + 1 :]
    for i, layer in enumerate(layers):
        before, after = layers[:i], layers[i + 1 :]
        inner = [body for _, body in layer.nested()]
        for body in inner:
            yield (*before, *body, *after)
        if len(inner) > 1:
            yield (*before, *(x for body in inner for x in body), *after)
        for smaller in _smaller_layer(layer):
            yield (*before, smaller, *after)


def _smaller_layer(layer: c.Layer) -> Iterator[c.Layer]:
    for name in layer.bodies.values():
        yield from (_replace(layer, **{name: body}) for body in _smaller_or_none(getattr(layer, name)))
    yield from layer.smaller()


def _smaller_or_none(body: tuple[c.Layer, ...]) -> Iterator[tuple[c.Layer, ...]]:
    if body:
        yield ()
    yield from _smaller(body)


def _sizes(case: c.TrainCase | c.SecondOrderCase | c.ProgramCase) -> set[int]:
    return {case.data.rows, case.data.features} | {n for _, x in c.walk(case.model) for n in x.sizes()}


def _resized(case: c.TrainCase | c.SecondOrderCase | c.ProgramCase, old: int, new: int) -> Iterator[dict[str, Any]]:
    """Every width ``old`` made ``new``; then the rows, the features and the layers each on their own."""
    rows = _replace(case.data, rows=new) if case.data.rows == old else case.data
    both = _replace(rows, features=new) if rows.features == old else rows
    model = tuple(layer.resized(old, new) for layer in case.model)
    yield {"model": model, "data": both}
    yield {"data": rows}
    yield {"model": model}
    yield {"data": _replace(case.data, features=new) if case.data.features == old else case.data}
    yield {"model": model, "data": rows}


# -- single operations ------------------------------------------------------------------------------------------------


def _op_changes(case: c.OpCase) -> Iterator[dict[str, Any]]:
    for old in sorted({n for o in case.operands for n in o.shape}, reverse=True):
        for new in (1, 2, 3):
            if new < old:
                yield {
                    "operands": tuple(_cropped(o, old, new) for o in case.operands),
                    "attributes": {k: _swapped(k, v, old, new) for k, v in case.attributes.items()},
                }
    for i, operand in enumerate(case.operands):
        for simpler in _simpler_operand(operand):
            yield {"operands": (*case.operands[:i], simpler, *case.operands[i + 1 :])}
    for cotangent in ((1.0,), case.cotangent[:1]):
        if len(cotangent) < len(case.cotangent) or cotangent != case.cotangent:
            yield {"cotangent": cotangent}
    yield {"numpy_scalars": False}
    yield {"constants": ()}
    for i, dtype in enumerate(case.dtypes):
        for plainer in ("float32", case.dtype):
            if dtype != plainer:
                yield {"dtypes": (*case.dtypes[:i], plainer, *case.dtypes[i + 1 :])}
    yield {"dtypes": ()}
    for order in range(1, case.order):
        yield {"order": order}


def _swapped(name: str, value: Any, old: int, new: int) -> Any:
    if name == "shape":
        return tuple(new if n == old else n for n in value)
    if name == "labels":
        return tuple(value[:new]) if len(value) == old else value
    return value


def _cropped(operand: c.Operand, old: int, new: int) -> c.Operand:
    shape = tuple(new if n == old else n for n in operand.shape)
    size = math.prod(shape)
    values = tuple(operand.values[:size])
    return c.Operand(shape, values, operand.layout, operand.cycled and len(values) < size)


def _simpler_operand(operand: c.Operand) -> Iterator[c.Operand]:
    if operand.layout != "C":
        yield _replace(operand, layout="C")
    size = len(operand.values)
    for plain in (1.0, 2.0):
        yield _replace(operand, values=(plain,) * size)
    numbers = [v for v in operand.values if isinstance(v, float)]
    if len(numbers) == size:
        yield _replace(operand, values=tuple(float(round(v)) for v in numbers))
    if size <= 8:
        for i, value in enumerate(operand.values):
            for plain in (1.0, 0.0):
                if value == plain:
                    break
                yield _replace(operand, values=(*operand.values[:i], plain, *operand.values[i + 1 :]))
