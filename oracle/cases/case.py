"""Case: one complete experiment as data. Frozen, validated when it is made, strict JSON both ways.

A case knows neither needle nor torch. Three kinds exist:

- `TrainCase`: a model, data, a loss, an optimizer and a number of steps;
- `SecondOrderCase`: the gradient of a function of the gradients of a model;
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from oracle.cases import layers
from oracle.cases.bounds import (
    LARGEST_FILE,
    MOST_PARTS,
    Argument,
    NonNegative,
    Number,
    Place,
    Positive,
    Rows,
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
from oracle.cases.model import Checked
from oracle.cases.model import output_width as output_width
from oracle.cases.model import trains as trains
from oracle.cases.model import walk as walk
from oracle.operations import MOST_AXES, extent, largest, result_shape

FORMAT = 1

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Special = Literal["nan", "inf", "-inf"]


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
    scale: NonNegative = 1.0
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

    labels: Literal["int64", "int32", "uint8"] = "int64"


class MeanSquare(Part, frozen=True, tag="MeanSquare"):
    """((out − target) ** 2).sum() / rows, with a drawn target."""


class WeightedSum(Part, frozen=True, tag="WeightedSum"):
    """(out · c).sum() with a drawn c: a scalar loss with a random cotangent."""


class Cotangent(Part, frozen=True, tag="Cotangent"):
    """``out.backward(c)`` with a drawn c: no scalar loss at all."""


Loss = SoftmaxLoss | MeanSquare | WeightedSum | Cotangent


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


class Memory(Part, frozen=True, tag="Memory"):
    """Makes a case one for the memory gates: what is traced, and what its loop does beside training steps."""

    allocators: Literal["malloc", "python"] = "malloc"  # "python" traces every small object too
    evaluate: bool = True  # the model is also run in evaluation mode after every third step
    create_graph: bool = False  # the norm of the gradients is differentiated too


# -- what follows from a case -----------------------------------------------------------------------------------------

_GENERATORS: dict[str, np.random.RandomState] = {}


def generator(purpose: str, seed: int) -> np.random.RandomState:
    """The generator of a purpose, seeded anew: to make one takes as long as all that a case draws.

    RandomState: its streams are frozen across NumPy versions.
    """
    if purpose not in _GENERATORS:
        _GENERATORS[purpose] = np.random.RandomState()
    _GENERATORS[purpose].seed(seed)
    return _GENERATORS[purpose]


_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


def remembered(function: Callable[[_Asked], _Answer]) -> Callable[[_Asked], _Answer]:
    """``function(case)``, kept for the case that was asked about last: all the questions about a case come in a row."""
    last: tuple[_Asked, _Answer] | None = None

    @functools.wraps(function)
    def answer(case: _Asked) -> _Answer:
        nonlocal last
        if last is None or last[0] is not case:
            last = case, function(case)
        return last[1]

    return answer


# -- the three kinds of cases -----------------------------------------------------------------------------------------


def _canonical(value: Any) -> Any:
    """Plain data that is the same for equal values: 1.0 as 1, and without fields at their defaults, so that a new
    field leaves the digests of old cases alone.
    """
    if isinstance(value, Struct):
        defaults = dict(zip(reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False))
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        told = {n: _canonical(v) for n, v in fields.items() if v != {} and (n not in defaults or v != defaults[n])}
        return {"kind": value.__struct_config__.tag, **told}
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    weight_scale: NonNegative = 1.0
    memory: Memory | None = None

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
    weight_scale: NonNegative = 1.0
    keep_init: bool = False

    def __post_init__(self) -> None:
        _check_model(self)


class Operand(Part, frozen=True, tag="Operand"):
    """One explicit operand, float32, row by row; ``layout`` is how it lies in memory."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=4096)], ...], Meta(max_length=MOST_AXES)]
    values: tuple[Number | Special, ...]
    layout: Literal["C", "F", "strided", "reversed"] = "C"

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        require(len(self.values) == size, f"an operand of shape {self.shape} has {size} values, not {len(self.values)}")

    @property
    def array(self) -> Array:
        """The operand as a float32 array with the memory layout asked for."""
        flat = np.array([float(v) for v in self.values], dtype=np.float32).reshape(self.shape)
        if self.layout == "F" and self.shape:
            return np.asfortranarray(flat)
        if self.layout == "strided" and self.shape:
            wide = np.zeros((*self.shape[:-1], 2 * self.shape[-1]), dtype=np.float32)
            wide[..., ::2] = flat
            return wide[..., ::2]
        if self.layout == "reversed" and self.shape:
            return np.ascontiguousarray(flat[..., ::-1])[..., ::-1]
        return flat


class OpCase(_Case, frozen=True, tag="op"):
    """One operation, forward and backward, on explicit operands with an explicit cotangent (cycled to fit)."""

    op: str
    operands: tuple[Operand, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it
    cotangent: tuple[Number, ...] = (1.0,)
    numpy_scalars: bool = False  # scalars among the attributes are handed over as np.float64
    constants: tuple[Argument, ...] = ()  # numbers of the operands that ask for no gradient

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "attributes", attributes(self.op, self.attributes))
        require(len(self.operands) <= MOST_PARTS, f"operands: {len(self.operands)} are more than {MOST_PARTS}")
        require(len(self.cotangent) > 0, "cotangent must have at least one value")
        free = set(range(len(self.operands))) - set(self.constants)
        require(bool(free), f"constants={self.constants} leave none of {len(self.operands)} operands with a gradient")
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

    @property
    def cotangent_array(self) -> Array:
        """The cotangent, float32, in the shape of the result."""
        shape = self.result_shape
        return np.resize(np.array(self.cotangent, dtype=np.float32), math.prod(shape)).reshape(shape)


Case = TrainCase | SecondOrderCase | OpCase

# -- the model of a case ----------------------------------------------------------------------------------------------


@remembered
def input_widths(case: TrainCase | SecondOrderCase) -> Mapping[str, int]:
    """Path of every layer -> width of its input."""
    return Checked(case.model, case.data.rows, case.data.features).widths


def cost(case: Case) -> tuple[float, float]:
    """What judging a case takes, roughly: bytes, and seconds of a core. Measured: 350 B, 4 us a number, 1 ms a layer."""
    if isinstance(case, OpCase):
        shapes = [o.shape for o in case.operands]
        numbers = sum(map(extent, shapes)) + largest(shapes, case.attributes)
        return 350.0 * numbers, 4e-5 * numbers
    checked = Checked(case.model, case.data.rows, case.data.features)
    width = checked.width
    train = isinstance(case, TrainCase)
    steps, passes = (case.steps, 1 if case.backward == "once" else 2) if isinstance(case, TrainCase) else (1, 2)
    held = checked.numbers + case.data.rows * width
    drawn = 5.0 * steps * passes * case.data.rows * (case.data.features + width) if train else 0.0
    seconds = steps * passes * (1e-3 * checked.parts + 4e-6 * held + 2e-9 * checked.products)
    return 350.0 * held + drawn, seconds


def _check_model(case: TrainCase | SecondOrderCase) -> None:
    parts = sum(1 + (len(layer.steps) if isinstance(layer, Ops) else 0) for _, layer in walk(case.model))
    require(parts <= MOST_PARTS, f"model: {parts:,} layers and operations are more than {MOST_PARTS:,}")
    width = output_width(case.model, case.data.rows, case.data.features)
    if isinstance(case.data, Digits):
        require(width == 10, f"Digits have 10 classes, but the model's output is {width} wide")
        require(isinstance(case.loss, SoftmaxLoss), "Digits have labels: the loss must be SoftmaxLoss")
    require(trains(case.model), "model: at least one layer must have a parameter to train")
    if isinstance(case.loss, SoftmaxLoss) and case.loss.labels == "uint8":
        require(width <= 256, f"labels of dtype uint8 allow 256 classes, but the model's output is {width} wide")
    if isinstance(case, TrainCase):
        for change in case.lr_changes:
            require(change.step < case.steps, f"lr_changes: step {change.step} is not below steps={case.steps}")
        if case.gap is not None:
            require(case.gap.step < case.steps, f"gap: step {case.gap.step} is not below steps={case.steps}")
            require(case.clip is None, "gap: not together with clip, which takes the norm of all gradients")


# -- files ------------------------------------------------------------------------------------------------------------

_ALL = {"train": TrainCase, "second": SecondOrderCase, "op": OpCase}
_C = TypeVar("_C", TrainCase, SecondOrderCase, OpCase)


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
        return f"{case.op}({operands}{named})"
    text = f"{many(case.model)}, {one(case.data)}, {one(case.loss)}"
    if isinstance(case, SecondOrderCase):
        return f"second order of {text}"
    extras = [one(case.optimizer)]
    if case.clip is not None:
        extras.append(one(case.clip))
    if case.gap is not None:
        extras.append(one(case.gap))
    extras.append(f"{case.steps} step" + "s" * (case.steps > 1))
    return f"{text}, {', '.join(extras)}"
