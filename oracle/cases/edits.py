"""How any case is changed so that it has a feature that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import programs
from oracle.cases.blocks import block_with
from oracle.operations import OPERATIONS

Edit = Callable[[Any], c.Case]  # a case in, one that has the feature out; CaseError where that cannot be
_replace = msgspec.structs.replace


def having(**fields: Any) -> Edit:
    """Fields of the case."""
    return lambda case: _replace(case, **fields)


def data(**fields: Any) -> Edit:
    """Fields of its data."""
    return lambda case: _replace(case, data=_replace(case.data, **fields))


def optimizer(kind: type[c.SGD | c.Adam], **fields: Any) -> Edit:
    """The kind of optimizer, and its fields."""

    def edit(case: c.TrainCase) -> c.Case:
        given = case.optimizer if isinstance(case.optimizer, kind) else kind(lr=case.optimizer.lr)
        return _replace(case, optimizer=_replace(given, **fields))

    return edit


def steps(steps: int) -> Edit:
    """As many steps, and no change of the learning rate and no gap after the last of them."""
    return lambda case: _replace(
        case,
        steps=steps,
        lr_changes=tuple(change for change in case.lr_changes if change.step < steps),
        gap=case.gap if case.gap is not None and case.gap.step < steps else None,
    )


def gap(kind: type[c.SGD | c.Adam]) -> Edit:
    """A parameter that has no gradient in one step, with this optimizer."""
    return lambda case: optimizer(kind)(_replace(case, steps=max(case.steps, 3), clip=None, gap=c.Gap(1)))


def lr(value: float | None) -> Edit:
    """The learning rate."""
    return lambda case: _replace(case, optimizer=_replace(case.optimizer, lr=value))


def lr_changed(case: c.TrainCase) -> c.Case:
    """Another learning rate after the first step."""
    return _replace(case, steps=max(case.steps, 2), lr_changes=(c.LrChange(1, 0.05),))


def atom(value: float) -> Edit:
    """One element of the data."""

    def edit(case: c.TrainCase) -> c.Case:
        assert isinstance(case.data, c.Data)
        at = case.seed % (case.data.rows * case.data.features)
        return _replace(case, data=_replace(case.data, atoms=(*case.data.atoms, c.Atom(at, value))))

    return edit


def within(*layers: c.Layer) -> Edit:
    """Layers that keep the width, at a place that the seed decides; never last, where second order has its head."""

    def edit(case: c.TrainCase | c.SecondOrderCase) -> c.Case:
        at = case.seed % max(1, len(case.model))
        return _replace(case, model=(*case.model[:at], *layers, *case.model[at:]))

    return edit


def trains_again(layer: c.Layer) -> Edit:
    """A layer as in `within`, that trains for at least two steps."""
    return lambda case: within(layer)(_replace(case, steps=max(case.steps, 2)))


def nested_residual(case: c.TrainCase) -> c.Case:
    """A Residual that begins with a Residual."""
    inner = c.Residual((c.Tanh(),) if case.seed % 2 else ())
    return within(c.Residual((inner, c.ReLU())))(case)


def first(layer: c.Layer, offset: float | None = None) -> Edit:
    """A layer at the beginning, where the data may be moved away from zero."""

    def edit(case: c.TrainCase) -> c.Case:
        moved = case.data if offset is None else _replace(case.data, offset=offset)
        return _replace(case, data=moved, model=(layer, *case.model))

    return edit


def last(make: Callable[[int, int], tuple[c.Layer, ...]]) -> Edit:
    """Layers at the end, made from the width there and from the number of Linears before them."""

    def edit(case: c.TrainCase | c.SecondOrderCase) -> c.Case:
        linears = sum(isinstance(layer, c.Linear) for _, layer in c.walk(case.model))
        width = c.output_width(case.model, case.data.rows, case.data.features)
        return _replace(case, model=(*case.model, *make(width, linears)))

    return edit


def block(op: str) -> Edit:
    """A block of operations that has this one, first or last."""

    def edit(case: c.TrainCase) -> c.Case:
        rows, features = case.data.rows, case.data.features
        if case.seed % 2:
            return _replace(case, model=(block_with(op, rows, features), *case.model))
        return last(lambda width, _: (block_with(op, rows, width),))(case)

    return edit


def to_one_feature(layer: c.Layer) -> Edit:
    """A layer on one feature, at the end."""
    return last(lambda width, linears: (c.Linear(1), layer))


def layout(layout: Any) -> Edit:
    """The memory layout of all operands."""
    return lambda case: _replace(case, operands=tuple(_replace(o, layout=layout) for o in case.operands))


def value(value: float | str) -> Edit:
    """The value among the elements of the first operand, where the operation is defined on it."""

    def edit(case: c.OpCase) -> c.Case:
        op, first = OPERATIONS[case.op], case.operands[0]
        allowed = value in op.specials(0, case.attributes) if isinstance(value, str) else op.domain(0) == "real"
        if not (allowed and first.values) or (case.order > 1 and isinstance(value, str)):
            raise c.CaseError(f"{case.op} is not compared on {value}")
        at = case.seed_for("value") % len(first.values)
        changed: Any = (*first.values[:at], value, *first.values[at + 1 :])
        made = _replace(case, operands=(_replace(first, values=changed), *case.operands[1:]))
        if isinstance(value, float) and made.unclear:
            raise c.CaseError(f"{case.op} is not compared on {value} beside what is no number")
        return made.cleared

    return edit


def numpy_scalars(case: c.OpCase) -> c.Case:
    """A NumPy scalar as attribute, where the operation has one."""
    return _replace(case, numpy_scalars="c" in case.attributes)


# -- another operation, on the operand that the case has --------------------------------------------------------------


def turned(op: str, make: Callable[[c.Operand], tuple[tuple[c.Operand, ...], dict[str, Any]]]) -> Edit:
    """The operation, on operands and with attributes made from the first operand, if that has an axis and numbers."""

    def edit(case: c.OpCase) -> c.Case:
        first = case.operands[0]
        if not first.shape or first.cycled or not first.values or not all(isinstance(v, float) for v in first.values):
            raise c.CaseError(f"{op}: an operand with an axis and numbers is needed")
        operands, attributes = make(first)
        return c.OpCase(op=op, operands=operands, attributes=attributes, cotangent=case.cotangent)

    return edit


def index(of_length: Callable[[int], Any]) -> Edit:
    """An index that begins with a part, made from the length of the first axis."""
    return turned("getitem", lambda x: ((x,), {"index": (of_length(x.shape[0]),)}))


def after_an_ellipsis(x: c.Operand) -> tuple[tuple[c.Operand, ...], dict[str, Any]]:
    """A place of the last axis of a square, where the first axis would give something else in the same shape."""
    side = 2 + x.shape[0] % 3
    values = np.resize(x.array.reshape(-1).clip(-64, 64), side * side) + np.arange(side * side)
    square = c.Operand((side, side), tuple(_float32(values)))
    return (square,), {"index": ({"ellipsis": ()}, {"number": (x.shape[0] % side,)})}


def far_above_the_first_row(x: c.Operand) -> tuple[tuple[c.Operand, ...], dict[str, Any]]:
    """Over all axes: a row whose exponentials are too large, unless they are shifted by its own maximum."""
    row = x.array.reshape(-1)[:4].clip(-4, 4)
    return (c.Operand((2, len(row)), tuple(_float32(np.concatenate([row, row + 100])))),), {}


def _float32(values: npt.NDArray[Any]) -> list[float]:
    return np.asarray(values, np.float32).astype(np.float64).tolist()  # type: ignore[no-any-return]


def place(of_length: Callable[[int], Any]) -> Edit:
    """The same, of what is put into zeros."""
    return turned(
        "put_item",
        lambda x: ((x,), {"shape": (x.shape[0] + 1, *x.shape[1:]), "index": (of_length(x.shape[0]),)}),
    )


def power_of_number(base: float, exponent: float) -> Edit:
    """Such a base among the elements, and such an exponent."""
    op = "power_scalar" if exponent % 1 else "whole_power_scalar"
    return turned(
        op, lambda x: ((_replace(x, values=(base, *np.abs(x.array.reshape(-1)[1:]).tolist())),), {"c": exponent})
    )


def power_of_tensors(base: float, exponent: float) -> Edit:
    """Such a base and such an exponent beside it."""

    def made(x: c.Operand) -> tuple[tuple[c.Operand, ...], dict[str, Any]]:
        bases = _replace(x, values=(base, *np.abs(x.array.reshape(-1)[1:]).clip(max=4).tolist()))
        return (bases, c.Operand((x.shape[-1],), (exponent,) * x.shape[-1])), {}

    return turned("power" if exponent % 1 else "whole_power", made)


def from_the_end(op: str, copies: int = 1, **attributes: Any) -> Edit:
    """The last axis, counted from the end, of so many copies of the operand."""
    return turned(op, lambda x: ((x,) * copies, attributes))


def flat(x: c.Operand) -> tuple[tuple[c.Operand, ...], dict[str, Any]]:
    """A shape to be worked out."""
    return (x,), {"shape": (-1,)}


def wider(x: c.Operand) -> tuple[tuple[c.Operand, ...], dict[str, Any]]:
    """A new axis as long as the first."""
    return (x,), {"shape": (x.shape[0], *x.shape)}


# -- programs -----------------------------------------------------------------------------------------------------------


_TUNED: dict[str, c.Layer] = {"p": c.Dropout(), "momentum": c.BatchNorm(), "eps": c.LayerNorm()}


_OF_A_MATRIX = (a.Augment("@="), a.ReplaceData("transposed"), a.ReplaceGradient("transposed"))

_OF_A_NORM = (a.NoGrad("forward pass"), a.Keep("buffers"))


def action(example: a.Action) -> Edit:
    """The action before the last pass of a program; before its last step, if it needs gradients, and followed by both."""

    def edit(case: c.ProgramCase) -> c.Case:
        optimizer, last = case.optimizer, (a.Pass(), a.Step())
        if isinstance(example, a.Set | a.Refuse) and example.setting not in (*optimizer.__struct_fields__, "max_norm"):
            optimizer = c.Adam() if isinstance(optimizer, c.SGD) else c.SGD(momentum=0.5)
        if isinstance(example, a.Set) and not example.value and not getattr(optimizer, example.setting):
            optimizer = _replace(optimizer, **{example.setting: 0.5})  # which would be 0 already
        model, done = case.model, example
        if isinstance(example, a.SetLayer):  # which does nothing where no layer has the setting
            at = case.seed % (len(model) + 1)
            model = (*model[:at], _TUNED[example.setting], *model[at:])
        if example in _OF_A_NORM:
            at = case.seed % (len(model) + 1)
            model = (*model[:at], c.BatchNorm(), *model[at:])
        if example == a.ReplaceData("part"):  # what is updated alone stays where it is
            model = (c.Linear(3, bias=False),)
        if example == a.Mishap("changed"):
            model = (*model, c.Linear(2), c.Linear(2))
        if example == a.ReplaceData("vector"):  # which is any other Tensor where there is no bias
            model = (*model, c.Linear(2))
            done = a.ReplaceData("vector", sum(len(layer.parameters(1)) for _, layer in c.walk(model)) - 1)
        if example in _OF_A_MATRIX:
            model = (*model, *([c.Linear(2)] * 2))  # one of which is 2 x 2
            names = programs.names_of(_replace(case, model=model, again=None))
            done = _replace(example, parameter=names.index(f"{len(case.model) + 1}.weight"))
        if isinstance(example, a.PutLayer):  # one with parameters
            model = (*model, c.Linear(2))
            done = a.PutLayer(len(programs.replaceable(_replace(case, model=model, again=None))) - 1)
        if isinstance(example, a.SwapLayers):
            model = (*model, c.Linear(3), c.Linear(3), c.Linear(3))
            done = a.SwapLayers(len(programs.alike(_replace(case, model=model, again=None))) - 1)
        before: tuple[a.Action, ...] = (a.NewOptimizer(),) if example == a.Step(1) else ()
        if isinstance(example, a.Freeze) and not example.frozen:
            before = (a.Freeze(),)
        if isinstance(example, a.Pass):
            added: tuple[a.Action, ...] = (example, a.Step())
        else:
            added = (a.Pass(), done, a.Step(), *last) if example.needs_gradients else (*before, done, *last)
        if isinstance(example, a.Attach):
            added = (example, *last, a.Advance(), *last, a.Advance())
        if isinstance(example, a.Advance):
            added = (a.Attach(value=0.5), *last, a.Set("lr", 0.7), example, *last)
        if example == a.Step(1):
            added = (*before, a.Pass(), a.Step(1), *last)
        if isinstance(example, a.Loader) and example.more:
            case = _replace(case, data=_replace(case.data, rows=max(2, case.data.rows)))
        other = isinstance(example, a.PutLayer | a.SwapLayers) or example == a.ReplaceData("part")
        again = None if other else case.again
        return _replace(case, model=model, optimizer=optimizer, actions=(*case.actions, *added), again=again)

    return edit


def applied_twice(case: c.ProgramCase) -> c.Case:
    """Its first layer that can be, or one more."""
    for at in range(len(case.model)):
        try:
            return _replace(case, again=at)
        except c.CaseError:
            continue
    return _replace(case, model=(*case.model, c.LayerNorm()), again=len(case.model))


def tied_and_loaded(case: c.ProgramCase) -> c.Case:
    """Two layers with one weight, a fresh model with the state of this one, and a pass that goes through both."""
    linears = sum(isinstance(layer, c.Linear) for _, layer in c.walk(case.model))
    tied = (c.Linear(3), c.Linear(3), c.Linear(3, tie=linears + 1))
    return _replace(case, model=(*case.model, *tied), actions=(*case.actions, a.Load(), a.Pass()), again=None)


def one_norm_evaluates(case: c.ProgramCase) -> c.Case:
    """Two norms that train, of which one then evaluates, side by side in one Sequential."""
    at = case.seed % (len(case.model) + 1)
    model = (*case.model[:at], c.BatchNorm(), c.Linear(3), c.BatchNorm(), *case.model[at:])
    made = _replace(case, model=model, again=None)
    part = programs.switched(made).index(str(at + case.seed // 7 % 2 * 2))
    modes = (a.Mode(), a.Pass(), a.Step(), a.Mode(part, False), a.Pass(), a.Step())
    return _replace(made, held="sequential", actions=(*case.actions, *modes))


def put_in(held: str) -> Edit:
    """A layer that is put in a model that holds its layers so."""
    return lambda case: action(a.PutLayer())(_replace(case, held=held))


def schedule_loaded(*, file: bool) -> Edit:
    """A schedule that is under way, a fresh one with its state, and another step of that."""
    loaded = (a.Load(optimizer=True, file=file), a.Advance(), a.Pass(), a.Step())
    return lambda case: _replace(
        case, actions=(*case.actions, a.Attach("Warmup", 2, 0.5, "StepLR"), a.Advance(), *loaded)
    )


def function(case: c.ProgramCase) -> c.Case:
    """A Residual around a function."""
    return _replace(case, model=(*case.model, c.Residual((c.Tanh(),))), again=None, functions=True)
