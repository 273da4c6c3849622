"""Case: one complete experiment as data. Frozen, validated when it is made, strict JSON both ways.

A case knows neither needle nor torch. Four kinds exist:

- `TrainCase`: a model, data, a loss, an optimizer and a number of steps;
- `SecondOrderCase`: the gradient of a function of the gradients of a model;
- `ProgramCase`: what a user does with a model and its optimizers, action by action;
- `OpCase`: one operation on explicit operands.

>>> case = TrainCase(model=(Linear(2),), data=Data(rows=1, features=1), loss=SoftmaxLoss(), optimizer=SGD(), seed=0)
>>> decode(encode(case)) == case
True
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from oracle.cases import layers
from oracle.cases.actions import Action, AnyAction, Loader, Pass
from oracle.cases.bounds import (
    FLOAT32,
    LARGEST_FILE,
    MOST_PARTS,
    Argument,
    NonNegative,
    Number,
    Place,
    Positive,
    Rows,
    Scale,
    Seed,
    Step,
    Width,
    affordable,
    attributes,
    require,
    shallow,
    too_deep,
)
from oracle.cases.bounds import CaseError as CaseError
from oracle.cases.kept import generator as generator
from oracle.cases.kept import remembered as remembered
from oracle.cases.layers import ACTIVATIONS as ACTIVATIONS
from oracle.cases.layers import LAYERS as LAYERS
from oracle.cases.layers import BatchNorm as BatchNorm
from oracle.cases.layers import Branch as Branch
from oracle.cases.layers import Dropout as Dropout
from oracle.cases.layers import Eval as Eval
from oracle.cases.layers import Flatten as Flatten
from oracle.cases.layers import Identity as Identity
from oracle.cases.layers import LayerNorm as LayerNorm
from oracle.cases.layers import Linear as Linear
from oracle.cases.layers import Ops as Ops
from oracle.cases.layers import OpStep as OpStep
from oracle.cases.layers import Part
from oracle.cases.layers import ReLU as ReLU
from oracle.cases.layers import Residual as Residual
from oracle.cases.layers import Sequential as Sequential
from oracle.cases.layers import Sigmoid as Sigmoid
from oracle.cases.layers import Tanh as Tanh
from oracle.cases.layers import Unused as Unused
from oracle.cases.model import checked as checked
from oracle.cases.model import output_width as output_width
from oracle.cases.model import trains as trains
from oracle.cases.model import walk as walk
from oracle.operations import MOST, MOST_AXES, OPERATIONS, extent, largest, result_shape

FORMAT = 1

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Special = Literal["nan", "inf", "-inf"]
# "list" is a list of Python's whole numbers, without a Tensor around it; whole numbers in floats are labels too
LabelDtype = Literal["int64", "int32", "uint8", "int8", "int16", "uint16", "uint32", "uint64", "float32", "list"]
Dtype = Literal["float16", "float32", "float64", "int64", "int32", "uint8", "bool"]


# name of a layer -> its class; each is a name of this module too: `case.Tanh`
globals().update(LAYERS)
if TYPE_CHECKING:
    Layer = layers.Layer
else:
    Layer = layers.AnyLayer  # what msgspec reads where a layer is expected

# -- data, loss, optimizer --------------------------------------------------------------------------------------------


class Atom(Part, frozen=True, tag="Atom"):
    """One special value in the data; ``at`` counts elements row by row, modulo the size."""

    at: Place
    value: Number


class Data(Part, frozen=True, tag="Data"):
    """Normal data from the seed, scaled and shifted, with special values planted."""

    rows: Rows
    features: Width
    scale: Scale = 1.0
    offset: Number = 0.0
    atoms: tuple[Atom, ...] = ()
    repeated_rows: bool = False
    constant_column: bool = False
    rounded: bool = False  # to whole numbers: exact zeros and ties
    same_batch: bool = False


class Digits(Part, frozen=True, tag="Digits"):
    """The UCI digits: 8x8 images, 64 features in [0, 1], 10 classes, shuffled by the seed, full batches only."""

    rows: Rows = 64

    @property
    def features(self) -> int:
        """Pixels of an image."""
        return 64


class SoftmaxLoss(Part, frozen=True, tag="SoftmaxLoss"):
    """``nn.SoftmaxLoss`` against labels; the classes are the width of the model's output."""

    labels: LabelDtype = "int64"


class MeanSquare(Part, frozen=True, tag="MeanSquare"):
    """((out − target) ** 2).sum() / rows, with a drawn target."""


class MSELoss(Part, frozen=True, tag="MSELoss"):
    """``nn.MSELoss`` against a drawn target."""


class WeightedSum(Part, frozen=True, tag="WeightedSum"):
    """(out · c).sum() with a drawn c: a scalar loss with a random cotangent."""


class Cotangent(Part, frozen=True, tag="Cotangent"):
    """``out.backward(c)`` with a drawn c: no scalar loss at all."""


Loss = SoftmaxLoss | MeanSquare | MSELoss | WeightedSum | Cotangent


class SGD(Part, frozen=True, tag="SGD"):
    """``optim.SGD``; None leaves the keyword out."""

    lr: Positive | None = None
    momentum: Annotated[float, Meta(ge=0, lt=1)] | None = None
    weight_decay: NonNegative | None = None


class Adam(Part, frozen=True, tag="Adam"):
    """``optim.Adam``; None leaves the keyword out."""

    lr: Positive | None = None
    beta1: Annotated[float, Meta(ge=0, lt=1)] | None = None
    beta2: Annotated[float, Meta(ge=0, lt=1)] | None = None
    eps: Positive | None = None
    weight_decay: NonNegative | None = None


Optimizer = SGD | Adam


class Clip(Part, frozen=True, tag="Clip"):
    """``clip_grad_norm`` before the step; None leaves the argument out."""

    max_norm: Positive | None = None


class LrChange(Part, frozen=True, tag="LrChange"):
    """``optimizer.lr = lr`` before step ``step``."""

    step: Step
    lr: Positive


class Gap(Part, frozen=True, tag="Gap"):
    """``p.grad = None`` before the optimizer's step ``step``, of one parameter: it is skipped once.

    ``parameter`` counts those that get gradients, and starts again behind the last of them.
    """

    step: Step
    parameter: Place = 0


class Dtypes(Part, frozen=True, tag="Dtypes"):
    """In which floats the layers are built, and the data, with targets and cotangents, is handed over."""

    model: Literal["float16", "float32", "float64"] = "float32"
    data: Literal["float16", "float32", "float64"] = "float32"


class Memory(Part, frozen=True, tag="Memory"):
    """Makes a case one for the memory gates: what is traced, and what its loop does beside training steps."""

    allocators: Literal["malloc", "python"] = "malloc"  # "python" traces every small object too
    evaluate: bool = True  # the model is also run in evaluation mode after every third step
    create_graph: bool = False  # the norm of the gradients is differentiated too


# -- the three kinds of cases -----------------------------------------------------------------------------------------


def _canonical(value: Any) -> Any:
    """Plain data that is the same for equal values: 1.0 as 1, and without fields at their defaults, so that a new
    field leaves the digests of old cases alone.
    """
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() else value
    if kind in _PLAIN:
        return value
    if isinstance(value, Struct):
        told: dict[str, Any] = {"kind": value.__struct_config__.tag}
        for name, default in _defaults(type(value)):
            given = getattr(value, name)
            if given != {} and (default is msgspec.NODEFAULT or given != default):
                told[name] = _canonical(given)
        return told
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    return [_canonical(v) for v in value] if isinstance(value, tuple) else value


_PLAIN = (str, int, bool, type(None))


@functools.cache
def _defaults(kind: type[Struct]) -> Sequence[tuple[str, Any]]:
    """The fields of a part, each with its default."""
    names, defaults = kind.__struct_fields__, kind.__struct_defaults__
    return list(zip(names, (msgspec.NODEFAULT,) * (len(names) - len(defaults)) + defaults, strict=True))


class _Case(Part, frozen=True):
    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the case."""
        return _digest(self)

    def rng(self, purpose: str) -> np.random.RandomState:
        """A generator of its own for each purpose, to be used at once."""
        return generator(purpose, self.seed_for(purpose))

    def seed_for(self, purpose: str) -> int:
        """A 32-bit seed from the seed of the case and a purpose."""
        text = f"{getattr(self, 'seed', 0)}:{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@remembered
def _digest(case: _Case) -> str:
    return hashlib.sha256(json.dumps(_canonical(case), sort_keys=True).encode()).hexdigest()[:8]


class TrainCase(_Case, frozen=True, tag="train"):
    """A whole training run."""

    model: tuple[Layer, ...]
    data: Data | Digits
    loss: Loss
    optimizer: Optimizer
    seed: Seed
    steps: Step = 1
    clip: Clip | None = None
    lr_changes: tuple[LrChange, ...] = ()
    gap: Gap | None = None
    backward: Literal["once", "twice", "accumulate"] = "once"
    input_grad: bool = False
    keep_init: bool = False  # norm layers keep the parameters and statistics that they were built with
    weight_scale: Scale = 1.0
    memory: Memory | None = None
    dtypes: Dtypes | None = None  # all float32, beside torch, where none are given

    def __post_init__(self) -> None:
        _check_model(self)

    @property
    def classes(self) -> int:
        """Width of the model's output."""
        return output_width(self.model, self.data.rows, self.data.features)

    def lr_at(self, step: int) -> float | None:
        """The learning rate in force at a step; None means the optimizer's default."""
        lr = self.optimizer.lr
        for change in self.lr_changes:
            if change.step <= step:
                lr = change.lr
        return lr


class SecondOrderCase(_Case, frozen=True, tag="second"):
    """Gradients with ``create_graph=True``, then the gradient of their inner product with drawn tensors."""

    model: tuple[Layer, ...]
    data: Data
    loss: Loss
    seed: Seed
    weight_scale: Scale = 1.0
    keep_init: bool = False

    def __post_init__(self) -> None:
        _check_model(self)


class ProgramCase(_Case, frozen=True, tag="program"):
    """A model and its optimizer in the hands of a user, see `oracle.cases.actions`.

    Nobody looks at the layers from inside, so that needle runs as its user has it; where rounding decides about the branch of a ReLU,
    no verdict is given. What no pickle takes is left out. ``held`` is where a module of the user's own has its layers, ``again`` is applied once
    more at the end, and with ``functions`` a Residual around one activation gets the function and not a module.
    """

    model: tuple[Layer, ...]
    data: Data
    loss: Loss
    optimizer: Optimizer
    seed: Seed
    actions: Annotated[tuple[AnyAction, ...], Meta(max_length=100)]
    held: Literal["sequential", "list", "dict", "ModuleList"] = "sequential"
    again: Place | None = None
    functions: bool = False
    weight_scale: Scale = 1.0
    keep_init: bool = False

    def __post_init__(self) -> None:
        require(len(self.model) > 0, "model: a program needs a layer")
        short = any(isinstance(action, Loader) and action.more for action in self.actions)
        require(
            not short or self.data.rows > 1,
            "actions: a batch of one row cannot be short: no Loader(short) or Loader(dropped)",
        )
        for path, layer in walk(self.model):
            kept = isinstance(layer, _IN_PROGRAMS) and not getattr(layer, "frozen", False)
            outermost = not isinstance(layer, Branch) or "." not in path
            require(kept and outermost, f"model[{path}]: {layer} is not for programs")
        run = self.training
        if self.again is not None:
            at, widths = self.again % len(self.model), input_widths(run)
            same = widths[str(at)] == widths[str(len(self.model))]
            require(same, f"again: model[{at}] takes {widths[str(at)]} features, not what the model gives")
            modal = any(isinstance(layer, BatchNorm | Dropout) for _, layer in walk((self.model[at],)))
            modal = modal or any(getattr(layer, "tie", None) is not None for _, layer in walk((self.model[at],)))
            require(not modal, f"again: model[{at}] has a state, draws or is tied, and cannot be written out twice")

    @property
    def training(self) -> TrainCase:
        """A training run with a step for each pass, and one more; the layer that is applied twice stands in it twice."""
        return training_of(self)

    def alias(self, name: str) -> str:
        """The tensor of the program behind a tensor of ``training``."""
        last = f"{len(self.model)}."
        return (
            f"{self.again % len(self.model)}.{name[len(last) :]}"
            if self.again is not None and name.startswith(last)
            else name
        )


@remembered
def training_of(case: ProgramCase) -> TrainCase:
    """See `ProgramCase.training`."""
    twice = () if case.again is None else (case.model[case.again % len(case.model)],)
    return TrainCase(
        model=(*case.model, *twice),
        data=case.data,
        loss=case.loss,
        optimizer=case.optimizer,
        seed=case.seed,
        steps=1 + sum(isinstance(action, Pass) for action in case.actions),
        keep_init=case.keep_init,
        weight_scale=case.weight_scale,
    )


def cycled(values: Array, size: int) -> Array:
    """The values over and over, a copy: what np.resize makes of a tuple of as many arrays as there are repetitions."""
    repeated = np.empty((-(-size // len(values)), len(values)), values.dtype)
    repeated[...] = values
    return repeated.reshape(-1)[:size]


Layout = Literal["C", "F", "strided", "reversed", "repeated", "read-only"]


def laid_out(plain: Array, layout: Layout) -> Array:
    """The same numbers as they lie in memory; "repeated" are those of the first row, over and over, with a stride of 0."""
    if not plain.ndim or layout == "C":
        return plain
    if layout == "F":
        return np.asfortranarray(plain)
    if layout == "strided":
        wide = np.zeros((*plain.shape[:-1], 2 * plain.shape[-1]), dtype=plain.dtype)
        wide[..., ::2] = plain
        return wide[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(plain[..., ::-1])[..., ::-1]
    if layout == "repeated":
        return np.broadcast_to(plain[:1], plain.shape)
    fixed = np.array(plain, order="C")
    fixed.flags.writeable = False
    return fixed


class Operand(Part, frozen=True, tag="Operand"):
    """One explicit operand, float32, row by row; ``layout`` is how it lies in memory, see `laid_out`.

    The values of a long one are ``cycled``: given once, and taken from the beginning again until it is full.
    """

    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=MOST)], ...], Meta(max_length=MOST_AXES)]
    values: tuple[Number | Special, ...]
    layout: Layout = "C"
    cycled: bool = False

    def __post_init__(self) -> None:
        size, given = math.prod(self.shape), len(self.values)
        require(size <= MOST, f"an operand of shape {self.shape} has {size:,} values: {MOST:,} are the most")
        if self.cycled:
            require(0 < given <= size, f"an operand of shape {self.shape} cannot be filled from {given} values")
        else:
            require(given == size, f"an operand of shape {self.shape} has {size} values, not {given}")

    @property
    def array(self) -> Array:
        """The operand as a float32 array with the memory layout asked for."""
        flat = np.array([float(v) for v in self.values], dtype=np.float32)
        flat = (cycled(flat, math.prod(self.shape)) if self.cycled else flat).reshape(self.shape)
        return laid_out(flat, self.layout)


def _beside_inf(value: float | Special) -> float | Special:
    """A factor that every BLAS takes alike: neither 0, nor so large that products overflow."""
    if isinstance(value, str):
        return value
    return 0.25 if value == 0 else value if abs(value) < 1e18 else math.copysign(1.0, value)


def held(number: float, dtypes: Sequence[str]) -> float:
    """A number as it is beside operands of these dtypes: where float16 is the widest float among them, it is rounded to that.

    0 where that would be infinite.
    """
    if {d for d in dtypes if d.startswith("float")} != {"float16"}:
        return number
    with np.errstate(over="ignore"):
        rounded = float(np.float16(number))
    return rounded if math.isfinite(rounded) else 0.0


NOT_AGAIN = ("cast", "where", "whole_power")  # what is differentiated more than once in float32 alone


class OpCase(_Case, frozen=True, tag="op"):
    """One operation, forward and backward, on explicit operands with an explicit cotangent (cycled to fit)."""

    op: str
    operands: tuple[Operand, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it
    cotangent: tuple[Number, ...] = (1.0,)
    numpy_scalars: bool = False  # scalars among the attributes are handed over as np.float64
    constants: tuple[Argument, ...] = ()  # numbers of the operands that ask for no gradient
    dtypes: tuple[Dtype, ...] = ()  # of the operands; all float32 where none are given
    order: Literal[1, 2, 3] = 1  # how often it is differentiated, by the operands and the cotangent

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "attributes", attributes(self.op, self.attributes))
        require(len(self.operands) <= MOST_PARTS, f"operands: {len(self.operands)} are more than {MOST_PARTS}")
        require(len(self.cotangent) > 0, "cotangent must have at least one value")
        free = set(range(len(self.operands))) - set(self.constants)
        if self.dtypes:
            known = len(self.dtypes) == len(self.operands)
            require(known, f"dtypes: {len(self.dtypes)} for {len(self.operands)} operands")
            free -= {i for i, dtype in enumerate(self.dtypes) if not dtype.startswith("float")}
            require(bool(free) or self.alone, f"dtypes={self.dtypes} leave no operand that has a gradient")
            require(self.order == 1 or not self.alone, f"dtypes={self.dtypes} leave nothing to differentiate")
            same = self.order == 1 or (len(set(self.dtypes)) == 1 and self.op not in NOT_AGAIN)
            require(
                same, f"dtypes={self.dtypes}: {self.op} is differentiated more than once in one dtype, or not at all"
            )
            number = self.attributes.get("c", 1.0)
            require(
                number == held(number, self.dtypes),
                f"c={number} is no {self.dtype}: beside a Tensor a number is of its dtype, as in NumPy, and is rounded to it",
            )
        none = f"constants={self.constants} leave none of {len(self.operands)} operands with a gradient"
        require(bool(free) or self.alone, none)
        try:
            self.result_shape  # noqa: B018 - asked for its errors
        except ValueError as error:
            raise CaseError(str(error)) from None

    @property
    def result_shape(self) -> Shape:
        """Shape of the result."""
        attributes = dict(self.attributes)
        labels = attributes.get("labels")
        if labels is not None:
            attributes["labels"] = np.asarray(labels)[None]
        return result_shape(self.op, [o.shape for o in self.operands], attributes)

    def array(self, i: int) -> Array:
        """The i-th operand as it is handed over: in its dtype and layout, integers away from zero. In float64 it is moved by 2⁻³⁰ of
        itself: products of what float32 can hold are too often exact.
        """
        plain = self.operands[i].array
        if not self.dtypes or self.dtypes[i] == "float32":
            return plain
        dtype = np.dtype(self.dtypes[i])
        if dtype.kind == "f":
            made = plain.astype(dtype) * (1 + 2.0**-30) if dtype == np.float64 else plain.astype(dtype)
        else:
            away = np.copysign(np.ceil(np.abs(plain)), plain)
            made = (np.abs(away) if dtype.kind in "ub" else away).astype(dtype)
        return laid_out(np.ascontiguousarray(made) if made.ndim else made, self.operands[i].layout)

    @property
    def alone(self) -> bool:
        """Whether all operands are integers or bools, so that there are no gradients."""
        return bool(self.dtypes) and not any(d.startswith("float") for d in self.dtypes)

    @property
    def dtype(self) -> str:
        """Of the result: the widest float among the operands, as NumPy and torch have it. That of a condition does not count."""
        floats = [d for i, d in enumerate(self.dtypes) if d.startswith("float") and (i or self.op != "where")]
        return max(floats, key=lambda d: int(d[5:])) if floats else "float32"

    @property
    def no_number(self) -> bool:
        """Whether nan or an infinity is among the operands."""
        return any(isinstance(v, str) for o in self.operands for v in o.values)

    @property
    def unclear(self) -> bool:
        """Whether what is a number depends on the BLAS: it may skip a factor of 0 beside inf, and round a product to inf, or not."""
        parts = [*(o.values for o in self.operands), self.cotangent]
        special = any(not isinstance(v, float) for values in parts for v in values)
        return special and OPERATIONS[self.op].factors and any(v != _beside_inf(v) for values in parts for v in values)

    @property
    def cleared(self) -> OpCase:
        """The case, with other numbers where it is unclear."""
        if not self.unclear:
            return self
        operands = [msgspec.structs.replace(o, values=tuple(map(_beside_inf, o.values))) for o in self.operands]
        cotangent = tuple(float(_beside_inf(v)) for v in self.cotangent)
        return msgspec.structs.replace(self, operands=tuple(operands), cotangent=cotangent)

    @property
    def cotangent_array(self) -> Array:
        """The cotangent, float32, in the shape of the result."""
        shape = self.result_shape
        return cycled(np.array(self.cotangent, dtype=np.float32), math.prod(shape)).reshape(shape)

    @property
    def constant_cotangent(self) -> bool:
        """Whether what is differentiated again starts from a constant, as of a loss, and not from what has derivatives too: no
        rule may tell one from the other.
        """
        return self.order > 1 and isinstance(self.cotangent[0], float) and self.cotangent[0] < 0

    def direction(self, order: int, name: str, shape: Shape) -> Array:
        """What the gradient of that order by ``name`` is multiplied with before it is differentiated again, float32."""
        return self.rng(f"direction {order} {name}").standard_normal(shape).astype(np.float32)


Case = TrainCase | SecondOrderCase | ProgramCase | OpCase
_IN_PROGRAMS: tuple[type, ...] = (Linear, Identity, Flatten, BatchNorm, LayerNorm, Dropout, Sequential, Residual)
_IN_PROGRAMS += (ReLU, Branch)
_IN_PROGRAMS += tuple(ACTIVATIONS.values())

# -- the model of a case ----------------------------------------------------------------------------------------------


@remembered
def input_widths(case: TrainCase | SecondOrderCase | ProgramCase) -> Mapping[str, int]:
    """Path of every layer -> width of its input."""
    return checked(case.model, case.data.rows, case.data.features).widths


def cost(case: Case) -> tuple[float, float]:
    """What judging a case takes, roughly: bytes, and seconds of a core. Measured: 350 B, 4 us a number, 1 ms a layer."""
    if isinstance(case, OpCase):
        shapes = [o.shape for o in case.operands]
        numbers = sum(map(extent, shapes)) + largest(shapes, case.attributes)
        return 350.0 * numbers, 4e-5 * numbers
    if isinstance(case, ProgramCase):
        case = case.training
    found = checked(case.model, case.data.rows, case.data.features)
    width = found.width
    train = isinstance(case, TrainCase)
    steps, passes = (case.steps, 1 if case.backward == "once" else 2) if isinstance(case, TrainCase) else (1, 2)
    held = found.numbers + case.data.rows * width
    drawn = 5.0 * steps * passes * case.data.rows * (case.data.features + width) if train else 0.0
    seconds = steps * passes * (1e-3 * found.parts + 4e-6 * held + 2e-9 * found.products)
    return 350.0 * held + drawn, seconds


def _check_model(case: TrainCase | SecondOrderCase) -> None:
    parts = sum(1 + (len(layer.steps) if isinstance(layer, Ops) else 0) for _, layer in walk(case.model))
    require(parts <= MOST_PARTS, f"model: {parts:,} layers and operations are more than {MOST_PARTS:,}")
    width = output_width(case.model, case.data.rows, case.data.features)
    if isinstance(case.data, Digits):
        require(width == 10, f"Digits have 10 classes, but the model's output is {width} wide")
        require(isinstance(case.loss, SoftmaxLoss), "Digits have labels: the loss must be SoftmaxLoss")
    require(trains(case.model), "model: at least one layer must have a parameter to train")
    if isinstance(case.loss, SoftmaxLoss) and case.loss.labels in ("uint8", "int8"):
        most = 256 if case.loss.labels == "uint8" else 128
        dtype = case.loss.labels
        require(width <= most, f"labels of dtype {dtype} allow {most} classes, but the model's output is {width} wide")
    if isinstance(case, TrainCase):
        if case.dtypes is not None:
            require(isinstance(case.data, Data), "dtypes: the Digits are float32")
            for path, layer in walk(case.model):
                casts = isinstance(layer, Ops) and any(step.op == "cast" for step in layer.steps)
                require(not casts, f"dtypes: cast, in model[{path}], ends in float32")
        for change in case.lr_changes:
            require(change.step < case.steps, f"lr_changes: step {change.step} is not below steps={case.steps}")
        if isinstance(case.optimizer, Adam):
            beta1 = 0.9 if case.optimizer.beta1 is None else case.optimizer.beta1
            for lr in (case.optimizer.lr or 0.0, *(change.lr for change in case.lr_changes)):
                fits = lr <= FLOAT32 * (1 - beta1)
                require(fits, f"Adam: lr / (1 - beta1), the first step, must be a float32, got lr={lr}, beta1={beta1}")
        if case.gap is not None:
            require(case.gap.step < case.steps, f"gap: step {case.gap.step} is not below steps={case.steps}")
            require(case.clip is None, "gap: not together with clip, which takes the norm of all gradients")


# -- files ------------------------------------------------------------------------------------------------------------

_C = TypeVar("_C", TrainCase, SecondOrderCase, ProgramCase, OpCase)


def encode(case: Case) -> bytes:
    """The case as indented JSON, format number first."""
    body = msgspec.to_builtins(case)
    text = msgspec.json.format(msgspec.json.encode({"format": FORMAT, **body}), indent=2)
    return text + b"\n"


def decode(text: bytes | str) -> Case:
    """The case of a JSON text; CaseError names what is wrong with it, and where. What it asks for can be had."""
    require(len(text) <= LARGEST_FILE, f"{len(text):,} bytes are more than the {LARGEST_FILE:,} of the largest case")
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CaseError(f"not JSON: {error}") from None
    except RecursionError:
        raise too_deep() from None
    shallow(raw)
    if not isinstance(raw, dict) or "format" not in raw:
        raise CaseError('not a case: an object with "format" and "kind" is needed')
    number = raw.pop("format")
    if type(number) is not int or number != FORMAT:
        raise CaseError(f"a case of another format: this version reads format {FORMAT}; take the oracle that wrote it")
    try:
        case: Case = msgspec.convert(raw, Case)
    except msgspec.ValidationError as error:
        raise CaseError(str(error)) from None
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:  # out of a definition of an op
        raise CaseError(f"not a case: {type(error).__name__}: {error}") from None
    affordable(*cost(case))
    return case


def read(path: Path) -> Case:
    """The case of a file; CaseError names the file. What is no file, as a pipe or a device, is not opened."""
    try:
        require(path.is_file() or not path.exists(), "not a file")
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        require(len(text) <= LARGEST_FILE, f"more than the {LARGEST_FILE:,} bytes of the largest case")
        return decode(text)
    except OSError as error:
        raise CaseError(f"{path}: {error.strerror}") from None
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None


def describe(case: Case) -> str:
    """One line: what the case trains."""

    def one(part: Any) -> str:
        if isinstance(part, Action):
            return part.text
        if isinstance(part, OpStep):
            return part.op
        nested = part.described(many) if isinstance(part, layers.Layer) else ""
        if nested:
            return nested
        fields = ((n, getattr(part, n)) for n in part.__struct_fields__)
        defaults = dict(zip(reversed(part.__struct_fields__), reversed(part.__struct_defaults__), strict=False))
        shown = [str(v) if n == "out" else f"{n}={v}" for n, v in fields if n not in defaults or v != defaults[n]]
        return f"{type(part).__name__}({', '.join(shown)})"

    def many(parts: Sequence[Any]) -> str:
        return ", ".join(one(p) for p in parts) or "nothing"

    if isinstance(case, OpCase):
        operands = ", ".join(f"{o.shape}" + (f" {o.layout}" if o.layout != "C" else "") for o in case.operands)
        named = "".join(f", {k}={v}" for k, v in case.attributes.items())
        named += f", {' '.join(case.dtypes)}" if case.dtypes else ""
        times = {1: "", 2: ", differentiated twice", 3: ", differentiated three times"}[case.order]
        return f"{case.op}({operands}{named}){times}"
    text = f"{many(case.model)}, {one(case.data)}, {one(case.loss)}"
    if isinstance(case, SecondOrderCase):
        return f"second order of {text}"
    extras = [one(case.optimizer)]
    if isinstance(case, ProgramCase):
        built = [f"held={case.held}"] * (case.held != "sequential") + [f"again={case.again}"] * (case.again is not None)
        return f"{text}, {', '.join(extras + built)}: {many(case.actions)}"
    if case.clip is not None:
        extras.append(one(case.clip))
    if case.gap is not None:
        extras.append(one(case.gap))
    if case.dtypes is not None:
        extras.append(one(case.dtypes))
    extras.append(f"{case.steps} step" + "s" * (case.steps > 1))
    return f"{text}, {', '.join(extras)}"
