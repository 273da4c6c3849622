"""Cases for a needle that lacks something: what a case needs, and the case without it.

A case that needs what is not there is not left out but made to fit, so that as many are judged as were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import coverage, programs
from oracle.cases.features import NONFINITE
from oracle.operations import result_shape

BROADCASTING = "implicit broadcasting"
CLIPPED_ADAM = "optimizer Adam, clipping"
PROGRAMS = "programs"
UNBIASED = "running variance of BatchNorm"
SECOND = "a second optimizer"
HIGHER = "gradients that carry a graph"
BASE = "power of a base that is not positive"
WIDE, MOST_CLASSES = (
    "many classes",
    3_000,
)  # of SoftmaxLoss: rows of a unit matrix, as the course has them, are k × k numbers
PATHS = "many paths"  # from the output of a model back to its input
MOST_PATHS = 512  # that a walk can take that takes each of them
_BY_NUMBER = ("power_scalar", "whole_power_scalar")
ELEMENTWISE = ("add", "subtract", "multiply", "divide", "power")  # of two operands, which NumPy broadcasts

# What the course leaves open, so that no needle is asked for it (`oracle.systems.ours.contract` has the words).
LEFT_OPEN = frozenset(
    {
        "layer Linear, frozen", "layer BatchNorm, frozen", "layer LayerNorm, frozen", "layer Unused",
        "optimizer SGD, gap", "optimizer Adam, gap", "argument numpy scalar", "value nan", "value inf", "value -inf", "nonfinite in several operands",
        "op whole_power", BASE, WIDE, "loss SoftmaxLoss, list", "loss SoftmaxLoss, float32", "loss SoftmaxLoss, uint64",
    }
) | {f"nonfinite {where}" for where in NONFINITE}  # fmt: skip


def paths(model: Sequence[c.Layer]) -> int:
    """From the output of a model back to its input, roughly: a norm has six, for its input is in the mean and in the variance too."""
    found = 1
    for layer in model:
        if isinstance(layer, c.Ops):
            counts = [1]
            for step in layer.steps:
                counts.append(sum(counts[i] for i in step.args))
            found *= counts[-1]
        elif isinstance(layer, c.BatchNorm | c.LayerNorm):
            found *= 6
        elif isinstance(layer, c.Branch):
            found *= sum(paths(body) for _, body in layer.nested())
        else:
            inner = [paths(body) for _, body in layer.nested()]
            found *= sum(inner) + isinstance(layer, c.Residual) if inner else 1
    return found


def needs(case: c.Case) -> set[str]:
    """The labels of `coverage.covered`, and what has no label of its own."""
    found = coverage.covered(case)
    if isinstance(case, c.OpCase):
        if case.op in ELEMENTWISE and len({o.shape for o in case.operands}) > 1:
            found.add(BROADCASTING)
        if case.op == "power" and not all(isinstance(v, float) and v > 0 for v in case.operands[0].values):
            found.add(BASE)
        if case.op in _BY_NUMBER and float(case.attributes["c"]) <= 0 and 0 in case.operands[0].values:
            found.add(BASE)  # by the rule that the course teaches, c · x ** (c − 1), that is 0 times infinity
        if case.op == "softmax_loss" and case.operands[0].shape[-1] > MOST_CLASSES:
            found.add(WIDE)
        return found
    if paths(case.model) > MOST_PATHS:
        found.add(PATHS)
    if isinstance(case, c.ProgramCase):
        return found
    if isinstance(case, c.TrainCase) and case.clip is not None and isinstance(case.optimizer, c.Adam):
        found.add(CLIPPED_ADAM)
    if any(_broadcasts(layer, case.data.rows, w) for layer, w in _blocks(case)):
        found.add(BROADCASTING)
    return found


def _blocks(case: c.TrainCase | c.SecondOrderCase) -> list[tuple[c.Ops, int]]:
    widths = c.input_widths(case)
    return [(layer, widths[path]) for path, layer in c.walk(case.model) if isinstance(layer, c.Ops)]


def _broadcasts(block: c.Ops, rows: int, width: int) -> bool:
    shapes = block.shapes(rows, width)
    return any(step.op in ELEMENTWISE and len({shapes[a] for a in step.args}) > 1 for step in block.steps)


def fitted(case: c.Case, lacking: Collection[str]) -> c.Case | None:
    """The case without what is lacking; None where nothing would be left of it."""
    if isinstance(case, c.ProgramCase):
        try:
            return _program(case, lacking)
        except c.CaseError:
            return None
    if isinstance(case, c.OpCase) and case.order > 1 and HIGHER in lacking:
        case = replace(case, order=1)
    if needs(case).isdisjoint(lacking):
        return case
    try:
        made = _op(case) if isinstance(case, c.OpCase) else _model(case, lacking)
    except (c.CaseError, ValueError):
        return None
    return made if made is not None and needs(made).isdisjoint(lacking) else None


def _program(case: c.ProgramCase, lacking: Collection[str]) -> c.ProgramCase | None:
    """The actions that the course has: passes, steps, clipping, hyperparameters, modes, evaluations, a second optimizer."""
    if PROGRAMS in lacking:
        return None
    optimizer = type(case.optimizer).__name__
    if f"optimizer {optimizer}" in lacking:
        return None
    actions: list[a.Action] = []
    for i, action in enumerate(case.actions):
        kind = programs.kind_at(case, i)
        if isinstance(action, a.Pass):
            twice = action.backward == "twice" and "backward twice" not in lacking
            action = replace(action, backward="twice" if twice else "once", computed=None, layout="plain")
        elif isinstance(action, a.Evaluate):
            action = replace(action, constant=False)
        elif isinstance(action, a.ClipNorm):
            if "optimizer clipping" in lacking or (kind == "Adam" and CLIPPED_ADAM in lacking):
                continue
        elif isinstance(action, a.Set):
            if f"setting {kind}.{action.setting}" in lacking:
                continue
        elif isinstance(action, a.NewOptimizer):
            if SECOND in lacking or f"optimizer {action.optimizer}" in lacking:
                continue
        elif isinstance(action, a.Mode):
            action = replace(action, by_train=False)
        elif not isinstance(action, a.Step):
            continue
        actions.append(action)
    if case.seed % 3 == 0:  # a step is left out: the gradients of a pass come to nothing
        steps = [i for i, action in enumerate(actions) if isinstance(action, a.Step)]
        del actions[steps[0]]
    widths = c.input_widths(case.training)
    layers = _body(case.model, "", case, widths, {*lacking, "layer ReLU", "layer Linear, tied"})
    if UNBIASED in lacking:
        layers = tuple(layer for layer in layers if not any(isinstance(x, c.BatchNorm) for _, x in c.walk((layer,))))
    layers = layers if c.trains(layers) else (*layers, c.Linear(2))
    loss = case.loss if f"loss {type(case.loss).__name__}" not in lacking else c.WeightedSum()
    held = "list" if case.held == "ModuleList" else case.held
    made = replace(case, model=layers, actions=tuple(actions), loss=loss, held=held, functions=False, again=None)
    return made if needs(made).isdisjoint(lacking) else None


def _op(case: c.OpCase) -> c.OpCase | None:
    """Operands of equal shapes, and plain finite numbers."""
    operands = tuple(
        replace(o, values=tuple(1.0 if isinstance(v, str) else v for v in o.values)) for o in case.operands
    )
    if case.op == "power":
        base = tuple(0.5 if isinstance(v, str) or v <= 0 else v for v in operands[0].values)
        operands = (replace(operands[0], values=base), *operands[1:])
    if case.op in _BY_NUMBER:
        operands = (replace(operands[0], values=tuple(0.5 if v == 0 else v for v in operands[0].values)),)
    if case.op in ELEMENTWISE:
        shape = np.broadcast_shapes(*(o.shape for o in operands))
        operands = tuple(_expanded(o, shape) for o in operands)
    attributes = case.attributes
    if WIDE in needs(case):
        rows, classes = operands[0].shape
        values = operands[0].values
        first = tuple(v for r in range(rows) for v in values[r * classes :][:MOST_CLASSES])
        operands = (replace(operands[0], shape=(rows, MOST_CLASSES), values=first),)
        attributes = attributes | {"labels": tuple(label % MOST_CLASSES for label in attributes["labels"])}
    return replace(case, operands=operands, attributes=attributes, numpy_scalars=False)


def _expanded(operand: c.Operand, shape: tuple[int, ...]) -> c.Operand:
    values = np.empty(len(operand.values), dtype=object)
    values[:] = operand.values
    wide = np.broadcast_to(values.reshape(operand.shape), shape).reshape(math.prod(shape))
    return c.Operand(shape, tuple(wide.tolist()), operand.layout)


def _model(case: c.TrainCase | c.SecondOrderCase, lacking: Collection[str]) -> Any:
    if isinstance(case, c.SecondOrderCase) and "backward second order" in lacking:
        return None
    changes: dict[str, Any] = {}
    if f"loss {type(case.loss).__name__}" in lacking:
        changes["loss"] = next(
            (loss for loss in (c.WeightedSum(), c.Cotangent()) if f"loss {type(loss).__name__}" not in lacking),
            case.loss,
        )
    if isinstance(case.loss, c.SoftmaxLoss) and f"loss SoftmaxLoss, {case.loss.labels}" in lacking:
        changes["loss"] = c.SoftmaxLoss()
    if isinstance(case, c.TrainCase):
        kind = type(case.optimizer).__name__
        if f"optimizer {kind}" in lacking:
            changes["optimizer"] = c.SGD(lr=0.1, momentum=0.9) if kind == "Adam" else c.Adam(lr=0.1)
        if case.gap is not None:
            changes["gap"] = None
        adam = isinstance(changes.get("optimizer", case.optimizer), c.Adam)
        if case.clip is not None and ("optimizer clipping" in lacking or (adam and CLIPPED_ADAM in lacking)):
            changes["clip"] = None
        if f"backward {case.backward}" in lacking:
            changes["backward"] = "once"
    widths = c.input_widths(case)
    layers = _body(case.model, "", case, widths, lacking)
    if not c.trains(layers):
        layers = (*layers, c.Linear(2))
    return replace(case, model=layers, **changes)


def _body(
    layers: Sequence[c.Layer], prefix: str, case: Any, widths: Any, lacking: Collection[str]
) -> tuple[c.Layer, ...]:
    found = (_layer(layer, f"{prefix}{i}", case, widths, lacking) for i, layer in enumerate(layers))
    return tuple(layer for layer in found if layer is not None)


def _layer(layer: c.Layer, path: str, case: Any, widths: Any, lacking: Collection[str]) -> c.Layer | None:
    if isinstance(layer, c.Branch):
        left, right = (_body(body, f"{path}.{name}", case, widths, lacking) for name, body in layer.nested())
        return replace(layer, left=left, right=right)
    if isinstance(layer, c.Sequential | c.Residual | c.Eval):
        body = _body(layer.body, f"{path}.", case, widths, lacking)
        if isinstance(layer, c.Residual) and "layer Residual" in lacking:
            return c.Sequential(body)
        return replace(layer, body=body)
    if isinstance(layer, c.Ops):
        return _block(layer, case.data.rows, widths[path], lacking)
    if isinstance(layer, c.Linear | c.BatchNorm | c.LayerNorm) and layer.frozen:
        layer = replace(layer, frozen=False)
    if isinstance(layer, c.Linear):
        if not layer.bias and "layer Linear, no bias" in lacking:
            layer = replace(layer, bias=True)
        return replace(layer, tie=None) if layer.tie is not None and "layer Linear, tied" in lacking else layer
    if f"layer {type(layer).__name__}" not in lacking:
        return layer
    return c.ReLU() if type(layer).__name__ in c.ACTIVATIONS and "layer ReLU" not in lacking else None


def _block(block: c.Ops, rows: int, width: int, lacking: Collection[str]) -> c.Ops | None:
    """The program without the operations that are lacking: their users take their first operand."""
    steps: list[c.OpStep] = []
    shapes: list[tuple[int, ...]] = [(rows, width)]
    place = [0]  # where each value of the old program is in the new one
    for step in block.steps:
        args = tuple(place[a] for a in step.args)
        given = [shapes[a] for a in args]
        unequal = step.op in ELEMENTWISE and len(set(given)) > 1
        try:
            shape = None if f"op {step.op}" in lacking or (unequal and BROADCASTING in lacking) else result_shape(
                step.op, given, step.attributes)  # fmt: skip
        except ValueError:
            shape = None  # an operation before it is gone
        if shape is None:
            place.append(args[0])
            continue
        steps.append(replace(step, args=args))
        shapes.append(shape)
        place.append(len(shapes) - 1)
    # the last value is the output, and must have the shape that a layer has
    last = place[-1]
    while last and shapes[last] != (rows, width):
        last -= 1
    return c.Ops(tuple(steps[:last])) if last else None
