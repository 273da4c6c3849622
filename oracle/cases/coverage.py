"""What a run reaches, and what it should reach more often.

`TABLE` names everything that the cases of a run can reach, label by label; `covered` says which of it one case does. Most
labels come with an edit: how any case is changed so that it reaches the label too. `steer` gives a part of the cases of
a shard the features that the fewest cases have had so far.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from oracle.cases import case as c
from oracle.cases import strategies
from oracle.operations import OPERATIONS

Edit = Callable[[Any], c.Case]  # a case in, one that has the feature out; CaseError where that cannot be
_replace = msgspec.structs.replace

# One case in so many of its kind gets so many features that the run lacks most. Second order has few cases; they are many.
SHARE = {c.TrainCase: (4, 1), c.OpCase: (4, 1), c.SecondOrderCase: (2, 2)}
TRIES = 6  # features that are tried on a case, the rarest first: not every case can have every feature


@dataclass(frozen=True)
class Group:
    """Labels that belong together: what the kind of case can reach; None where there is no edit."""

    kind: type
    labels: Mapping[str, Edit | None]


# -- edits ------------------------------------------------------------------------------------------------------------


def _with(**fields: Any) -> Edit:
    return lambda case: _replace(case, **fields)


def _data(**fields: Any) -> Edit:
    return lambda case: _replace(case, data=_replace(case.data, **fields))


def _optimizer(kind: type[c.SGD | c.Adam], **fields: Any) -> Edit:
    def edit(case: c.TrainCase) -> c.Case:
        given = case.optimizer if isinstance(case.optimizer, kind) else kind(lr=case.optimizer.lr)
        return _replace(case, optimizer=_replace(given, **fields))

    return edit


def _steps(steps: int) -> Edit:
    """As many steps, and no change of the learning rate and no gap after the last of them."""
    return lambda case: _replace(
        case,
        steps=steps,
        lr_changes=tuple(change for change in case.lr_changes if change.step < steps),
        gap=case.gap if case.gap is not None and case.gap.step < steps else None,
    )


def _with_gap(case: c.TrainCase) -> c.Case:
    return _replace(case, steps=max(case.steps, 3), clip=None, gap=c.Gap(1))


def _lr_changed(case: c.TrainCase) -> c.Case:
    return _replace(case, steps=max(case.steps, 2), lr_changes=(c.LrChange(1, 0.05),))


def _atom(value: float) -> Edit:
    def edit(case: c.TrainCase) -> c.Case:
        assert isinstance(case.data, c.Data)
        at = case.seed % (case.data.rows * case.data.features)
        return _replace(case, data=_replace(case.data, atoms=(*case.data.atoms, c.Atom(at, value))))

    return edit


def _within(layer: c.Layer) -> Edit:
    """A layer that keeps the width, at a place that the seed decides; never last, where second order has its head."""

    def edit(case: c.TrainCase | c.SecondOrderCase) -> c.Case:
        at = case.seed % max(1, len(case.model))
        return _replace(case, model=(*case.model[:at], layer, *case.model[at:]))

    return edit


def _nested_residual(case: c.TrainCase) -> c.Case:
    inner = c.Residual((c.Tanh(),) if case.seed % 2 else ())
    return _within(c.Residual((inner, c.ReLU())))(case)


def _first(layer: c.Layer, offset: float | None = None) -> Edit:
    def edit(case: c.TrainCase) -> c.Case:
        moved = case.data if offset is None else _replace(case.data, offset=offset)
        return _replace(case, data=moved, model=(layer, *case.model))

    return edit


def _last(make: Callable[[int, int], tuple[c.Layer, ...]]) -> Edit:
    """Layers at the end, made from the width there and from the number of Linears before them."""

    def edit(case: c.TrainCase | c.SecondOrderCase) -> c.Case:
        linears = sum(isinstance(layer, c.Linear) for _, layer in c.walk(case.model))
        width = c.output_width(case.model, case.data.rows, case.data.features)
        return _replace(case, model=(*case.model, *make(width, linears)))

    return edit


def _tied(width: int, linears: int) -> tuple[c.Layer, ...]:
    return c.Linear(width), c.Linear(width, tie=linears)


def _block(op: str) -> Edit:
    """A block of operations that has this one, first or last."""

    def edit(case: c.TrainCase) -> c.Case:
        rows, features = case.data.rows, case.data.features
        if case.seed % 2:
            return _replace(case, model=(strategies.block_with(op, rows, features), *case.model))
        return _last(lambda width, _: (strategies.block_with(op, rows, width),))(case)

    return edit


def _to_one_feature(layer: c.Layer) -> Edit:
    return _last(lambda width, linears: (c.Linear(1), layer))


def _layout(layout: Any) -> Edit:
    return lambda case: _replace(case, operands=tuple(_replace(o, layout=layout) for o in case.operands))


def _value(value: float | str) -> Edit:
    """The value among the elements of the first operand, where the operation is defined on it."""

    def edit(case: c.OpCase) -> c.Case:
        op, first = OPERATIONS[case.op], case.operands[0]
        allowed = value in op.special if isinstance(value, str) else op.values == "real"
        if not (allowed and first.values):
            raise c.CaseError(f"{case.op} is not compared on {value}")
        at = case.seed_for("value") % len(first.values)
        changed: Any = (*first.values[:at], value, *first.values[at + 1 :])
        return _replace(case, operands=(_replace(first, values=changed), *case.operands[1:]))

    return edit


def _numpy_scalars(case: c.OpCase) -> c.Case:
    return _replace(case, numpy_scalars="c" in case.attributes)


_LAYERS: dict[str, Edit] = {
    "Linear": _last(lambda width, _: (c.Linear(width),)),
    "ReLU": _within(c.ReLU()),
    **{name: _within(kind()) for name, kind in c.ACTIVATIONS.items()},
    "Identity": _within(c.Identity()),
    "Flatten": _within(c.Flatten()),
    "BatchNorm": _within(c.BatchNorm()),
    "LayerNorm": _within(c.LayerNorm()),
    "Dropout": _within(c.Dropout()),
    "Unused": _within(c.Unused(3)),
    "Sequential": _within(c.Sequential((c.Tanh(), c.LayerNorm()))),
    "Residual": _within(c.Residual((c.LayerNorm(), c.ReLU()))),
    "Branch": _within(c.Branch((c.Tanh(),), (c.Sigmoid(),), "multiply")),
    "Eval": _within(c.Eval((c.BatchNorm(),))),
    "Ops": _last(lambda width, _: (c.Ops((c.OpStep("tanh", (0,)), c.OpStep("multiply", (0, 1)))),)),
}
_TIED = _last(_tied)
_FROZEN = _last(lambda width, _: (c.Linear(3, frozen=True),))
_FROZEN_NORMS: dict[str, Edit] = {
    "BatchNorm, frozen": _within(c.BatchNorm(frozen=True)),
    "LayerNorm, frozen": _within(c.LayerNorm(frozen=True)),
}
_NO_BIAS = _last(lambda width, _: (c.Linear(3, bias=False),))

# -- the table --------------------------------------------------------------------------------------------------------

# "default" leaves the keyword out. Second order has 3 cases in 100, and its labels are counted apart.
TABLE: dict[str, Group] = {
    "layer": Group(
        c.TrainCase,
        {**_LAYERS, "Linear, tied": _TIED, "Linear, frozen": _FROZEN, "Linear, no bias": _NO_BIAS, **_FROZEN_NORMS},
    ),
    "op": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS))),
    "block": Group(c.TrainCase, {op: _block(op) for op in strategies.BLOCK_OPS}),
    "loss": Group(
        c.TrainCase,
        {
            "SoftmaxLoss": _with(loss=c.SoftmaxLoss()),
            "SoftmaxLoss, int32": _with(loss=c.SoftmaxLoss("int32")),
            "SoftmaxLoss, uint8": _with(loss=c.SoftmaxLoss("uint8")),
            "MeanSquare": _with(loss=c.MeanSquare()),
            "WeightedSum": _with(loss=c.WeightedSum()),
            "Cotangent": _with(loss=c.Cotangent()),
        },
    ),
    "optimizer": Group(
        c.TrainCase,
        {
            "SGD": _optimizer(c.SGD),
            "Adam": _optimizer(c.Adam),
            "clipping": _with(clip=c.Clip(), gap=None),
            "SGD, gap": lambda case: _optimizer(c.SGD)(_with_gap(case)),
            "Adam, gap": lambda case: _optimizer(c.Adam)(_with_gap(case)),
        },
    ),
    "lr": Group(
        c.TrainCase,
        {
            "default": lambda case: _replace(case, optimizer=_replace(case.optimizer, lr=None)),
            "to 0.001": lambda case: _replace(case, optimizer=_replace(case.optimizer, lr=1e-4)),
            "to 0.1": lambda case: _replace(case, optimizer=_replace(case.optimizer, lr=0.0123456789)),
            "above 0.1": lambda case: _replace(case, optimizer=_replace(case.optimizer, lr=0.70710678)),
            "changed": _lr_changed,
        },
    ),
    "momentum": Group(
        c.TrainCase,
        {
            "default": _optimizer(c.SGD, momentum=None),
            "0": _optimizer(c.SGD, momentum=0.0),
            "to 0.9": _optimizer(c.SGD, momentum=0.9),
            "above 0.9": _optimizer(c.SGD, momentum=0.99),
            "with decay": _optimizer(c.SGD, momentum=0.9, weight_decay=0.1),
        },
    ),
    "decay": Group(
        c.TrainCase,
        {
            "default": _optimizer(c.SGD, weight_decay=None),
            "0": _optimizer(c.SGD, weight_decay=0.0),
            "to 0.01": _optimizer(c.SGD, weight_decay=1e-4),
            "above 0.01": _optimizer(c.SGD, weight_decay=0.5),
            "without momentum": _optimizer(c.SGD, momentum=0.0, weight_decay=0.1),
        },
    ),
    "adam": Group(
        c.TrainCase,
        {
            "beta1 default": _optimizer(c.Adam, beta1=None),
            "beta1 0": _optimizer(c.Adam, beta1=0.0),
            "beta1 given": _optimizer(c.Adam, beta1=0.5),
            "beta2 default": _optimizer(c.Adam, beta2=None),
            "beta2 to 0.9": _optimizer(c.Adam, beta2=0.5),
            "beta2 above 0.9": _optimizer(c.Adam, beta2=0.999),
            "eps default": _optimizer(c.Adam, eps=None),
            "eps to 1e-8": _optimizer(c.Adam, eps=1e-8),
            "eps above 1e-8": _optimizer(c.Adam, eps=1e-3),
            "decay default": _optimizer(c.Adam, weight_decay=None),
            "decay 0": _optimizer(c.Adam, weight_decay=0.0),
            "decay given": _optimizer(c.Adam, weight_decay=0.5),
        },
    ),
    "clip": Group(
        c.TrainCase,
        {
            "none": _with(clip=None),
            "default": _with(clip=c.Clip(), gap=None),
            "below 0.25": _with(clip=c.Clip(0.01), gap=None),
            "above 0.25": _with(clip=c.Clip(5.0), gap=None),
        },
    ),
    "norm": Group(
        c.TrainCase,
        {
            "eps default": _within(c.LayerNorm()),
            "eps given": _within(c.LayerNorm(1e-2)),
            "momentum default": _within(c.BatchNorm()),
            "momentum 0": _within(c.BatchNorm(momentum=0.0)),
            "momentum between": _within(c.BatchNorm(momentum=0.5)),
            "momentum 1": _within(c.BatchNorm(momentum=1.0)),
            "first": _first(c.LayerNorm()),
            "BatchNorm first, offset 100": _first(c.BatchNorm(), 100.0),
            "LayerNorm first, offset 100": _first(c.LayerNorm(), 100.0),
            "BatchNorm on 1 feature": _to_one_feature(c.BatchNorm()),
            "LayerNorm on 1 feature": _to_one_feature(c.LayerNorm()),
        },
    ),
    "dropout": Group(
        c.TrainCase,
        {
            "default": _within(c.Dropout()),
            "0": _within(c.Dropout(0.0)),
            "between": _within(c.Dropout(0.9)),
            "1": _within(c.Dropout(1.0)),
        },
    ),
    "mode": Group(
        c.TrainCase,
        {
            "nested eval": _within(c.Eval((c.BatchNorm(),))),
            "BatchNorm in nested eval": _within(c.Eval((c.BatchNorm(),))),
            "Dropout in nested eval": _within(c.Eval((c.Dropout(),))),
            "eval between steps": _steps(2),
            "BatchNorm trains again": lambda case: _within(c.BatchNorm())(_replace(case, steps=max(case.steps, 2))),
            "Dropout trains again": lambda case: _within(c.Dropout())(_replace(case, steps=max(case.steps, 2))),
        },
    ),
    "steps": Group(
        c.TrainCase, {"1": _steps(1), "2": _steps(2), "3 to 6": _steps(4), "above 6": None}
    ),  # long runs cost most
    "backward": Group(
        c.TrainCase,
        {
            "once": _with(backward="once"),
            "twice": _with(backward="twice"),
            "accumulate": _with(backward="accumulate"),
            "to the input": _with(input_grad=True),
            "fan-out": _LAYERS["Residual"],
            "Residual first in a Residual": _nested_residual,
            "second order": None,
        },
    ),
    "start": Group(
        c.TrainCase,
        {
            "norms as built": _with(keep_init=True),
            "norms drawn": _with(keep_init=False),
            "weights 0": _with(weight_scale=0.0),
            "small weights": _with(weight_scale=0.1),
            "large weights": _with(weight_scale=4.0),
            "saturated": _last(lambda width, _: (c.Ops((c.OpStep("mul_scalar", (0,), {"c": 1000.0}),)),)),
        },
    ),
    "batch": Group(
        c.TrainCase,
        {
            "1 row": None,
            "1 feature": None,
            "1 class": _last(lambda width, _: (c.Linear(1),)),
            "rows = features": None,
            "above 32 rows": None,
            "above 32 features": None,
        },
    ),
    "data": Group(
        c.TrainCase,
        {
            "scale 0": _data(scale=0.0),
            "scale below 1": _data(scale=0.01),
            "scale above 1": _data(scale=30.0),
            "offset to 1": _data(offset=1.0),
            "offset to 100": _data(offset=100.0),
            "offset above 100": _data(offset=-1000.0),
            "repeated rows": _data(repeated_rows=True),
            "constant column": _data(constant_column=True),
            "whole numbers": _data(rounded=True),
            "same batch": _data(same_batch=True),
            "atom 0": _atom(0.0),
            "atom below 1": _atom(1e-3),
            "atom 1": _atom(-1.0),
            "atom to 100": _atom(-100.0),
            "atom above 100": _atom(1e4),
        },
    ),
    "shape": Group(c.OpCase, dict.fromkeys(("scalar", "size 1", "square", "broadcast", "zero size", "above 32"))),
    "memory": Group(
        c.OpCase, {"C": _layout("C"), "F": _layout("F"), "strided": _layout("strided"), "reversed": _layout("reversed")}
    ),
    "value": Group(
        c.OpCase,
        {
            "nan": _value("nan"),
            "inf": _value("inf"),
            "-inf": _value("-inf"),
            "0": _value(0.0),
            "-0": _value(-0.0),
            "1e-20": _value(1e-20),
            "above 64": None,
            "of g above 64": _with(cotangent=(300.0, -1.0)),
        },
    ),
    "argument": Group(
        c.OpCase,
        {
            "numpy scalar": _numpy_scalars,
            "constant": _with(constants=(0,)),
            "no axes": None,
            "one axis": None,
            "several axes": None,
            "negative axis": None,
        },
    ),
    "second": Group(
        c.SecondOrderCase,
        {
            **_LAYERS,
            "Linear, tied": _TIED,
            "Linear, frozen": _FROZEN,
            "Linear, no bias": _NO_BIAS,
            **_FROZEN_NORMS,
            "SoftmaxLoss": _with(loss=c.SoftmaxLoss()),
            "MeanSquare": _with(loss=c.MeanSquare()),
            "WeightedSum": _with(loss=c.WeightedSum()),
            "Cotangent": _with(loss=c.Cotangent()),
        },
    ),
}
LABELS = tuple(f"{group} {name}" for group, part in TABLE.items() for name in part.labels)
_EDITS: dict[type, dict[str, Edit]] = {
    kind: {
        f"{group} {name}": edit
        for group, part in TABLE.items()
        if part.kind is kind
        for name, edit in part.labels.items()
        if edit is not None
    }
    for kind in (c.TrainCase, c.SecondOrderCase, c.OpCase)
}

# -- what a case reaches ----------------------------------------------------------------------------------------------


def covered(case: c.Case) -> set[str]:
    """The labels of `TABLE` that a case reaches: "op exp", "layer Linear", "momentum with decay", …."""
    if isinstance(case, c.OpCase):
        return set(_of_op(case))
    found = set(_of_model(case))
    if isinstance(case, c.SecondOrderCase):
        seconds = {f"second {label.partition(' ')[2]}" for label in found if label.startswith("layer ")}
        loss = type(case.loss).__name__
        return found | seconds | {"backward second order", f"second {loss}", f"loss {loss}"}
    return found | set(_of_training(case))


def _of_op(case: c.OpCase) -> Iterator[str]:
    yield f"op {case.op}"
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
    if len(set(shapes)) > 1:
        yield "shape broadcast"
    for operand in case.operands:
        yield f"memory {operand.layout}"
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
        yield "argument several axes" if len(several) > 1 else "argument one axis"
        if any(axis < 0 for axis in several):
            yield "argument negative axis"
    elif case.op in _WITH_AXES:
        yield "argument no axes"


_WITH_AXES = ("summation", "maximum", "logsumexp", "transpose")


def _of_model(case: c.TrainCase | c.SecondOrderCase) -> Iterator[str]:
    for _, layer in c.walk(case.model):
        yield f"layer {type(layer).__name__}"
        if isinstance(layer, c.Ops):
            for step in layer.steps:
                yield f"op {step.op}"
                yield f"block {step.op}"
        elif isinstance(layer, c.BatchNorm | c.LayerNorm):
            if layer.frozen:
                yield f"layer {type(layer).__name__}, frozen"
        elif isinstance(layer, c.Linear):
            if layer.tie is not None:
                yield "layer Linear, tied"
            if layer.frozen:
                yield "layer Linear, frozen"
            if not layer.bias:
                yield "layer Linear, no bias"


def _of_training(case: c.TrainCase) -> Iterator[str]:
    yield f"loss {type(case.loss).__name__}"
    if isinstance(case.loss, c.SoftmaxLoss) and case.loss.labels != "int64":
        yield f"loss SoftmaxLoss, {case.loss.labels}"
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
        edits = _EDITS[type(cases[i])]
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
