"""What a run reaches, and what it should reach more often.

`oracle.cases.features` names everything that the cases of a run can reach, label by label; `covered` says which of it one
case does. `steer` gives a part of the cases of a shard the features that the fewest cases have had so far.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.cases.edits import Edit
from oracle.cases.features import (
    BLOCK,
    EDITS,
    FEW_CLASSES,
    FEW_LABELS,
    LABELS,
    LAYOUTS,
    LONG_AXIS,
    NONFINITE,
    NOT_IN_DTYPES,
    PARAMETERS,
    PUT_IN,
    ROWS,
    SELDOM_LONG,
    SWITCHES,
    TABLE,
    ZEROS_AT_HAND,
    side,
)
from oracle.operations.integers import dtype_of

__all__ = ["LABELS", "TABLE", "covered", "missed", "steer"]


def covered(case: c.Case) -> set[str]:
    """The labels of `TABLE` that a case reaches: "op exp", "layer Linear", "momentum with decay", …."""
    if isinstance(case, c.OpCase):
        return set(_of_op(case))
    if isinstance(case, c.ProgramCase):
        return set(_of_program(case))
    found = set(_of_model(case))
    if isinstance(case, c.SecondOrderCase):
        seconds = {f"second {label.partition(' ')[2]}" for label in found if label.startswith("layer ")}
        loss = type(case.loss).__name__
        return found | seconds | {"backward second order", f"second {loss}", f"loss {loss}"}
    return found | set(_of_training(case))


def _of_op(case: c.OpCase) -> Iterator[str]:
    yield f"op {case.op}"
    yield from _of_memory(case)
    if case.alone:
        kind = dtype_of(case.op, case.dtypes)
        yield f"alone {'as floats' if kind == 'float' else f'{kind}s'}"
        if case.op == "picked":  # it is taken out before it becomes a float
            yield f"alone {'bools' if case.dtypes[0] == 'bool' else 'integers'}"
        if math.prod(case.operands[0].shape) > ZEROS_AT_HAND:
            yield f"alone many {'bools' if case.dtypes[0] == 'bool' else 'integers'}"
    elif case.dtypes:
        yield from [f"dtypes {case.op}"] * (case.op not in NOT_IN_DTYPES)
        if any(not dtype.startswith("float") for dtype in case.dtypes[case.op == "where" :]):
            yield f"beside {case.op}"
        if case.order > 1:
            yield from (f"again {times} in {case.dtype}" for times in ("twice", "three times")[: case.order - 1])
        floats = {dtype for dtype in case.dtypes[case.op == "where" :] if dtype.startswith("float")}
        yield f"dtype result {case.dtype}"
        yield f"dtype {'one float' if len(floats) == 1 else 'several floats'}"
        yield from {f"dtype {dtype} operand" for dtype in case.dtypes if not dtype.startswith("float")}
    if case.no_number:
        yield from (f"nonfinite {where}" for where, ops in NONFINITE.items() if case.op in ops)
        if sum(any(isinstance(v, str) for v in o.values) for o in case.operands) > 1:
            yield "nonfinite in several operands"
    if case.order > 1:  # each order on the way to the last one is judged
        yield from (f"{times} {case.op}" for times in ("twice", "three times")[: case.order - 1])
    shapes = [o.shape for o in case.operands]
    for shape in shapes:
        if not shape:
            yield "shape scalar"
        if 1 in shape:
            yield "shape size 1"
        if 0 in shape:
            yield "shape zero size"
        if len(shape) > 1 and shape[-1] == shape[-2]:
            yield "shape square"
        if any(n > 32 for n in shape):
            yield "shape above 32"
        if case.op == "softmax_loss":
            yield side(FEW_LABELS, shape[0])
            yield side(FEW_CLASSES, shape[1])
        if any(n > 64 for n in shape) and 0 not in shape:
            yield from [f"long {case.op}"] * (case.op not in SELDOM_LONG)
            yield from _of_sizes(case.op, shape)
    if len(set(shapes)) > 1:
        yield "shape broadcast"
    for operand in case.operands:
        for value in operand.values:
            if isinstance(value, str):
                yield f"value {value}"
            elif value == 0:
                yield "value -0" if str(value)[0] == "-" else "value 0"
            elif abs(value) > 64:
                yield "value above 64"
            elif abs(value) < 1e-19:
                yield "value 1e-20"
    if any(abs(g) > 64 for g in case.cotangent):
        yield "value of g above 64"
    if case.constants:
        yield "argument constant"
    if case.numpy_scalars:
        yield "argument numpy scalar"
    axes = case.attributes.get("axes")
    if axes is not None:
        several = axes if isinstance(axes, tuple) else (axes,)
        yield f"argument {('empty tuple of axes', 'one axis', 'several axes')[min(len(several), 2)]}"
        if any(axis < 0 for axis in several):
            yield "argument negative axis"
    elif case.op in _WITH_AXES:
        yield "argument no axes"
    yield from _of_arguments(case)


def _of_memory(case: c.OpCase) -> Iterator[str]:
    """How operands lie, in which dtype, and whether their longest axis is one along which they do not lie side by side."""
    for i, operand in enumerate(case.operands):
        dtype = case.dtypes[i] if case.dtypes else "float32"
        yield f"memory {operand.layout}"
        if operand.layout == "read-only":
            yield "memory C"
        if operand.layout in LAYOUTS and dtype != "float32":
            yield f"lying {operand.layout} {dtype if dtype.startswith('float') else 'integers'}"
    shape: tuple[int, ...] = case.operands[0].shape
    layout = case.operands[0].layout
    if case.op in ROWS and not case.alone and max(shape, default=0) > 64 and 0 not in shape:
        longest = shape.index(max(shape))
        if longest != {
            "C": len(shape) - 1,
            "read-only": len(shape) - 1,
            "repeated": len(shape) - 1 or None,
            "F": 0,
        }.get(layout):
            yield f"rows {case.op}"
            if case.dtypes and case.dtypes[0] in ("float16", "float64"):
                yield f"rows {case.dtypes[0]}"


def _of_sizes(op: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Where needle may do something else than with small shapes."""
    longest, size = max(shape), math.prod(shape)
    yield side(LONG_AXIS, longest)
    if longest > LONG_AXIS:
        yield SWITCHES[BLOCK][longest % BLOCK > 0]
    if size >= 5000:
        yield f"size {'5,000 to' if size <= ZEROS_AT_HAND else 'above'} {ZEROS_AT_HAND:,} elements"
    if op == "relu":
        yield side(ZEROS_AT_HAND, size)


_WITH_AXES = ("summation", "maximum", "minimum", "var", "logsumexp", "transpose")


def _of_arguments(case: c.OpCase) -> Iterator[str]:
    """Kinds of indices, shapes and powers, and axes from the end."""
    first, given = case.operands[0].shape, case.attributes
    if max(len(operand.shape) for operand in case.operands) >= 3:
        yield f"shape rank {max(len(operand.shape) for operand in case.operands)}"
    if given.get("axis", 0) < 0:
        yield f"argument negative axis of {case.op}"
    if case.op in ("dilate", "flip") and any(axis < 0 for axis in given["axes"]):
        yield f"argument negative axis of {case.op}"
    if case.op == "logsumexp" and given.get("axes") is None and len(first) > 1 and first[0] > 1 and not case.dtypes:
        rows = case.operands[0].array
        if rows.size and float(rows.max()) - float(rows[:1].max()) > 89:  # the range of the exponential in float32
            yield "argument all axes of logsumexp, a row far above the first"
    if -1 in given.get("shape", ()):
        yield "argument -1 in a shape"
    new_axis = case.op == "broadcast_to" and first and given["shape"][1:] == first
    if new_axis and given["shape"][0] > 1 and given["shape"][0] in (first[:1] + first[-1:]):
        yield "argument a new axis as long as another"
    for part in given.get("index", ()):
        kind = next(iter(part)) if isinstance(part, dict) else "new axis" if part is None else "slice"
        yield f"index {kind} of {case.op}"
        if kind == "array" and len(set(part["array"])) < len(part["array"]):
            yield f"index repeats of {case.op}"
        if kind == "array" and min(part["array"], default=0) < 0:
            yield f"index negative places of {case.op}"
    if "power" in case.op:
        bases, exponents = case.operands[0].array, np.array(given.get("c", 1.0))
        if "c" not in given:
            shapes = [operand.shape for operand in case.operands]
            values = (operand.array for operand in case.operands)
            bases, exponents = (np.broadcast_to(v, np.broadcast_shapes(*shapes)) for v in values)
        with np.errstate(invalid="ignore"):
            whole = exponents % 1 == 0
            fraction = exponents % 1 > 0  # of an infinity it is nan
        for name, found in (
            ("a whole power of a negative number", whole & (bases < 0) & (np.abs(exponents) > 1)),
            ("a fractional power of a negative number", fraction & (bases < 0)),
            ("a positive power of 0", (bases == 0) & (exponents > 0)),
            ("a negative power of 0", (bases == 0) & (exponents < 0)),
            ("0 to the power of 0", (bases == 0) & (exponents == 0)),
        ):
            if found.any():
                yield f"power {name}{'' if 'c' in given else ', of two tensors'}"


def _of_model(case: c.TrainCase | c.SecondOrderCase | c.ProgramCase) -> Iterator[str]:
    for _, layer in c.walk(case.model):
        yield f"layer {type(layer).__name__}"
        for name, variant in layer.variants.items():
            if variant.shown(layer):
                yield f"layer {type(layer).__name__}, {name}"
        if isinstance(layer, c.Ops):
            for step in layer.steps:
                yield f"op {step.op}"
                yield f"block {step.op}"


def _of_program(case: c.ProgramCase) -> Iterator[str]:
    yield from _of_model(case)
    yield f"loss {type(case.loss).__name__}"
    yield f"optimizer {type(case.optimizer).__name__}"
    for action in case.actions:
        yield f"program {action.words}"
        if isinstance(action, a.Pass):
            yield f"program {action.plain.words}"
    yield from _of_schedules(case)
    yield f"program layers in a {case.held}"
    put = any(isinstance(action, a.PutLayer) for action in case.actions)
    if put and case.held in PUT_IN and programs.replaceable(case):
        yield f"program a layer is put in a {PUT_IN[case.held]}"
    if case.again is not None:
        yield "program same module twice"
    if any(getattr(layer, "tie", None) is not None for _, layer in c.walk(case.model)):
        loaded = [isinstance(action, a.Load) for action in case.actions]
        if True in loaded and any(isinstance(later, a.Pass) for later in case.actions[loaded.index(True) :]):
            yield "program a model of tied weights is loaded"
    if case.functions and any(map(programs.function_of, case.model)):
        yield "program Residual of a function"
    if case.held == "sequential" and programs.one_norm_of_two_evaluates(case):
        yield "program one norm of two evaluates"


def _of_schedules(case: c.ProgramCase) -> Iterator[str]:
    """Schedules that are loaded: those of which the optimizer is."""
    scheduled = False
    for action in case.actions:
        if isinstance(action, a.Load):
            if scheduled and action.optimizer:
                yield f"program a schedule is loaded from {'a file' if action.file else 'its state_dict'}"
            scheduled = scheduled and action.optimizer
        scheduled = scheduled or isinstance(action, a.Attach)


def _of_training(case: c.TrainCase) -> Iterator[str]:
    yield f"loss {type(case.loss).__name__}"
    if isinstance(case.loss, c.SoftmaxLoss) and case.loss.labels != "int64":
        yield f"loss SoftmaxLoss, {case.loss.labels}"
    if case.dtypes is not None:
        yield f"model {case.dtypes.model} on {case.dtypes.data} data"
    yield from _of_optimizer(case)
    yield from _of_layers(case)
    if case.steps > 1:
        yield "mode eval between steps"
    yield f"steps {_region(case.steps, (1, '1'), (2, '2'), (6, '3 to 6'), above='above 6')}"
    yield f"backward {case.backward}"
    if case.input_grad:
        yield "backward to the input"
    yield "start norms as built" if case.keep_init else "start norms drawn"
    if case.weight_scale != 1:
        yield f"start {'weights 0' if not case.weight_scale else 'small weights' if case.weight_scale < 1 else 'large weights'}"
    if isinstance(case.data, c.Data):
        yield from _of_data(case.data)
    if case.classes == 1:
        yield "batch 1 class"
    if case.classes > 64 and isinstance(case.loss, c.SoftmaxLoss):
        yield "batch labels above 63"
    sizes = [math.prod(slot.shape) for slot in inputs.slots(case)[0]]
    yield from (side(limit, max(sizes)) for limit in PARAMETERS)


def _of_optimizer(case: c.TrainCase) -> Iterator[str]:
    spec = case.optimizer
    yield f"optimizer {type(spec).__name__}"
    if case.gap is not None:
        yield f"optimizer {type(spec).__name__}, gap"
    yield f"lr {_region(spec.lr, (0.001, 'to 0.001'), (0.1, 'to 0.1'), above='above 0.1')}"
    if case.lr_changes:
        yield "lr changed"
    if isinstance(spec, c.SGD):
        yield f"momentum {_region(spec.momentum, (0, '0'), (0.9, 'to 0.9'), above='above 0.9')}"
        yield f"decay {_region(spec.weight_decay, (0, '0'), (0.01, 'to 0.01'), above='above 0.01')}"
        if spec.weight_decay:
            yield "momentum with decay" if spec.momentum else "decay without momentum"
    else:
        yield f"adam beta1 {_region(spec.beta1, (0, '0'), above='given')}"
        yield f"adam beta2 {_region(spec.beta2, (0.9, 'to 0.9'), above='above 0.9')}"
        yield f"adam eps {_region(spec.eps, (1e-8, 'to 1e-8'), above='above 1e-8')}"
        yield f"adam decay {_region(spec.weight_decay, (0, '0'), above='given')}"
    if case.clip is None:
        yield "clip none"
    else:
        yield "optimizer clipping"
        yield f"clip {_region(case.clip.max_norm, (0.25, 'below 0.25'), above='above 0.25')}"


def _region(value: float | None, *limits: tuple[float, str], above: str) -> str:
    """The name of the first limit that the value does not exceed."""
    if value is None:
        return "default"
    return next((name for limit, name in limits if value <= limit), above)


def _of_layers(case: c.TrainCase) -> Iterator[str]:
    """Norm layers, dropout and modes, and where they stand."""
    again = case.steps > 1
    nested = {path: layer for path, layer in c.walk(case.model) if isinstance(layer, c.Eval)}
    widths: Mapping[str, int] = {}
    for path, layer in c.walk(case.model):
        if isinstance(layer, c.BatchNorm | c.LayerNorm):
            widths = widths or c.input_widths(case)
            kind = type(layer).__name__
            yield f"norm eps {'default' if layer.eps is None else 'given'}"
            if isinstance(layer, c.BatchNorm):
                yield f"norm momentum {_region(layer.momentum, (0, '0'), (0.999, 'between'), above='1')}"
            if widths[path] == 1:
                yield f"norm {kind} on 1 feature"
            if path == "0":
                yield "norm first"
                if isinstance(case.data, c.Data) and abs(case.data.offset) >= 100:
                    yield f"norm {kind} first, offset 100"
        elif isinstance(layer, c.Dropout):
            kind = "Dropout"
            yield f"dropout {_region(layer.p, (0, '0'), (0.999, 'between'), above='1')}"
        else:
            if isinstance(layer, c.Eval):
                yield "mode nested eval"
            elif isinstance(layer, c.Residual | c.Branch):
                yield "backward fan-out"
                if isinstance(layer, c.Residual) and layer.body and isinstance(layer.body[0], c.Residual):
                    yield "backward Residual first in a Residual"
            elif isinstance(layer, c.Ops):
                if path == str(len(case.model) - 1) and layer.steps[-1].op == "mul_scalar":
                    yield from ["start saturated"] * (abs(layer.steps[-1].attributes["c"]) >= 100)
                used = Counter(arg for step in layer.steps for arg in step.args)
                if used and max(used.values()) > 1:
                    yield "backward fan-out"
            continue
        if any(path.startswith(f"{outer}.") for outer in nested):
            yield from [f"mode {kind} in nested eval"] * (kind != "LayerNorm")
        elif again and kind != "LayerNorm":
            yield f"mode {kind} trains again"


def _of_data(data: c.Data) -> Iterator[str]:
    if data.rows == 1:
        yield "batch 1 row"
    if data.features == 1:
        yield "batch 1 feature"
    if data.rows == data.features:
        yield "batch rows = features"
    if data.rows > 32:
        yield "batch above 32 rows"
    if data.rows > 64:
        yield "batch above 64 rows"
    if data.rows > 1024:
        yield "batch above 1,024 rows"
    if data.features > 64:
        yield "batch above 64 features"
    if data.features > 32:
        yield "batch above 32 features"
    if data.scale != 1:
        yield f"data scale {_region(data.scale, (0, '0'), (1, 'below 1'), above='above 1')}"
    if data.offset:
        yield f"data offset {_region(abs(data.offset), (1, 'to 1'), (100, 'to 100'), above='above 100')}"
    for atom in data.atoms:
        size = _region(abs(atom.value), (0, "0"), (0.999, "below 1"), (1, "1"), (100, "to 100"), above="above 100")
        yield f"data atom {size}"
    for field, name in (
        ("repeated_rows", "repeated rows"),
        ("constant_column", "constant column"),
        ("rounded", "whole numbers"),
        ("same_batch", "same batch"),
    ):
        if getattr(data, field):
            yield f"data {name}"


def missed(coverage: Mapping[str, int], lacking: Mapping[str, Any] | frozenset[str] = frozenset()) -> list[str]:
    """What no case has reached, in the order of the table; what a foreign needle lacks does not count."""
    return [label for label in LABELS if not coverage.get(label) and label not in lacking]


# -- steering ---------------------------------------------------------------------------------------------------------

# One case in so many of its kind gets so many features that the run lacks most. Second order has few cases; they are many. Of single
# operations only those are steered that are drawn for it: an edit may make another operation of them.
SHARE = {c.TrainCase: (4, 1), c.OpCase: (1, 2), c.SecondOrderCase: (2, 2), c.ProgramCase: (2, 3)}
TRIES = 6  # features that are tried on a case, the rarest first: not every case can have every feature


def steer(
    cases: Sequence[c.Case], so_far: Counter[str], rng: random.Random, lacking: frozenset[str] = frozenset()
) -> list[c.Case]:
    """The cases of one kind, some of them (`SHARE`) with features that the fewest cases have had.

    ``so_far`` counts the labels reached before, these cases left out; it is brought up to date.
    """
    steered = list(cases)
    reached = [covered(case) for case in cases]
    for labels in reached:
        so_far.update(labels)
    every, features = SHARE[type(cases[0])]
    for i in range(len(cases) - 1, -1, -every):
        so_far.subtract(reached[i])
        edits = EDITS[type(cases[i])]
        rarest = sorted((so_far[label], rng.random(), label) for label in edits if label not in lacking)
        added: set[str] = set()
        for _, _, label in rarest[:TRIES]:
            case = _edited(steered[i], edits[label])
            if label in reached[i] or case is None:
                continue
            labels = covered(case)
            # a needle may lack what an edit brings along, and an edit may undo the one before
            if lacking.isdisjoint(labels) and added | {label} <= labels:
                steered[i], reached[i] = case, labels
                added.add(label)
            if len(added) == features:
                break
        so_far.update(reached[i])
    return steered


def _edited(case: Any, edit: Edit) -> Any:
    """The case with the feature; None where it cannot have it."""
    try:
        return edit(case)
    except c.CaseError:
        return None
