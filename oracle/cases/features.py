"""Everything that the cases of a run can reach, label by label; most labels come with an edit that gives a case the feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from oracle.cases import case as c
from oracle.cases import edits as e
from oracle.cases.actions import EXAMPLES
from oracle.cases.blocks import BLOCK_OPS
from oracle.cases.edits import Edit
from oracle.operations import OPERATIONS


@dataclass(frozen=True)
class Group:
    """Labels that belong together: what the kind of case can reach; None where there is no edit."""

    kind: type
    labels: Mapping[str, Edit | None]


def _put(kind: type[c.Layer]) -> Edit:
    """An example of a layer in the model."""
    return e.last(lambda width, _: (kind.example(width),)) if kind.stands == "last" else e.within(kind.example(0))


_LAYERS: dict[str, Edit] = {name: _put(kind) for name, kind in c.LAYERS.items()}
_VARIANTS: dict[str, Edit] = {
    f"{name}, {what}": e.last(variant.example) if kind.stands == "last" else e.within(*variant.example(0, 0))
    for name, kind in c.LAYERS.items()
    for what, variant in kind.variants.items()
}

FLOATS: tuple[Literal["float16", "float32", "float64"], ...] = ("float16", "float32", "float64")
LABEL_DTYPES: tuple[c.LabelDtype, ...] = (
    *("int32", "uint8", "int8", "int16", "uint16", "uint32", "uint64", "float32", "list"),
)
# elements of a parameter at which the optimizers do something else
PARAMETERS = (20_480, 40_960, 131_072)
# The numbers at which needle does something else, and the labels of the two sides. What is just as large is on the first.
LONG_AXIS, BLOCK, FEW_CLASSES, FEW_LABELS, ZEROS_AT_HAND = 1024, 128, 64, 32, 32_768
SWITCHES = {
    LONG_AXIS: (f"size axis 65 to {LONG_AXIS:,}", f"size axis above {LONG_AXIS:,}"),
    BLOCK: (
        f"size axis above {LONG_AXIS:,}, of whole blocks",
        f"size axis above {LONG_AXIS:,}, a rest beside its blocks",
    ),
    FEW_CLASSES: (f"size to {FEW_CLASSES} classes", f"size above {FEW_CLASSES} classes"),
    FEW_LABELS: (f"size to {FEW_LABELS} labels", f"size above {FEW_LABELS} labels"),
    ZEROS_AT_HAND: (f"size relu to {ZEROS_AT_HAND:,}", f"size relu above {ZEROS_AT_HAND:,}"),
    **{limit: (f"parameter to {limit:,}", f"parameter above {limit:,}") for limit in PARAMETERS},
}


def side(switch: int, size: int) -> str:
    """The label of the side of a switch on which a size lies."""
    return SWITCHES[switch][size > switch]


def _of_switches(group: str, *switches: int) -> dict[str, Edit | None]:
    return dict.fromkeys(label.removeprefix(f"{group} ") for switch in switches for label in SWITCHES[switch])


PUT_IN = {
    "sequential": "Sequential",
    "ModuleList": "ModuleList",
}  # how a program holds its layers, in classes of needle's
SELDOM_LONG = {"put_item"}  # its operand has the shape of a slice, and an index that is drawn with it
# a cast is about dtypes itself; of `where`, the dtype of the condition does not count; the gradients of powers of 0 are limits, which are exact, and noise says nothing of them
NOT_IN_DTYPES = set(c.NOT_AGAIN)

# what takes several operands, each of which may be integers beside a float
BESIDE = (
    *("add", "subtract", "multiply", "divide", "power", "whole_power", "matmul", "linear", "conv", "batch_norm", "layer_norm"),
    *("stack", "concatenate", "where", "larger", "smaller"),
)  # fmt: skip
ROWS = ("softmax", "logsoftmax", "softmax_loss", "layer_norm", "logsumexp", "var", "summation", "batch_norm")
LAYOUTS = ("F", "strided", "reversed", "repeated", "read-only")

# where nan and infinities end up is not plain to see
NONFINITE = {
    "in an extreme": ("maximum", "minimum", "picked"),
    "in a power": ("power", "power_scalar", "whole_power", "whole_power_scalar", "rdiv", "rpow"),
    "in a variance": ("var",),
    "in a softmax": ("softmax", "logsoftmax", "softmax_loss"),
    "in a norm": ("batch_norm", "layer_norm"),
}

_POWERS = {
    "a whole power of a negative number": (-2.0, 3.0),
    "a fractional power of a negative number": (-2.0, 1.5),
    "a positive power of 0": (0.0, 2.0),
    "a negative power of 0": (0.0, -1.0),
    "0 to the power of 0": (0.0, 0.0),
}

# "default" leaves the keyword out. Second order has 3 cases in 100, and its labels are counted apart.
TABLE: dict[str, Group] = {
    "layer": Group(
        c.TrainCase,
        {**_LAYERS, **_VARIANTS},
    ),
    "op": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS))),
    "twice": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS))),
    "three times": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS))),
    "nonfinite": Group(c.OpCase, dict.fromkeys((*NONFINITE, "in several operands"))),
    "block": Group(c.TrainCase, {op: e.block(op) for op in BLOCK_OPS}),
    "loss": Group(
        c.TrainCase,
        {
            "SoftmaxLoss": e.having(loss=c.SoftmaxLoss()),
            **{f"SoftmaxLoss, {labels}": e.having(loss=c.SoftmaxLoss(labels)) for labels in LABEL_DTYPES},
            "MeanSquare": e.having(loss=c.MeanSquare()),
            "WeightedSum": e.having(loss=c.WeightedSum()),
            "Cotangent": e.having(loss=c.Cotangent()),
            "MSELoss": e.having(loss=c.MSELoss()),
        },
    ),
    "optimizer": Group(
        c.TrainCase,
        {
            "SGD": e.optimizer(c.SGD),
            "Adam": e.optimizer(c.Adam),
            "clipping": e.having(clip=c.Clip(), gap=None),
            "SGD, gap": e.gap(c.SGD),
            "Adam, gap": e.gap(c.Adam),
        },
    ),
    "lr": Group(
        c.TrainCase,
        {
            "default": e.lr(None),
            "to 0.001": e.lr(1e-4),
            "to 0.1": e.lr(0.0123456789),
            "above 0.1": e.lr(0.70710678),
            "changed": e.lr_changed,
        },
    ),
    "momentum": Group(
        c.TrainCase,
        {
            "default": e.optimizer(c.SGD, momentum=None),
            "0": e.optimizer(c.SGD, momentum=0.0),
            "to 0.9": e.optimizer(c.SGD, momentum=0.9),
            "above 0.9": e.optimizer(c.SGD, momentum=0.99),
            "with decay": e.optimizer(c.SGD, momentum=0.9, weight_decay=0.1),
        },
    ),
    "decay": Group(
        c.TrainCase,
        {
            "default": e.optimizer(c.SGD, weight_decay=None),
            "0": e.optimizer(c.SGD, weight_decay=0.0),
            "to 0.01": e.optimizer(c.SGD, weight_decay=1e-4),
            "above 0.01": e.optimizer(c.SGD, weight_decay=0.5),
            "without momentum": e.optimizer(c.SGD, momentum=0.0, weight_decay=0.1),
        },
    ),
    "adam": Group(
        c.TrainCase,
        {
            "beta1 default": e.optimizer(c.Adam, beta1=None),
            "beta1 0": e.optimizer(c.Adam, beta1=0.0),
            "beta1 given": e.optimizer(c.Adam, beta1=0.5),
            "beta2 default": e.optimizer(c.Adam, beta2=None),
            "beta2 to 0.9": e.optimizer(c.Adam, beta2=0.5),
            "beta2 above 0.9": e.optimizer(c.Adam, beta2=0.999),
            "eps default": e.optimizer(c.Adam, eps=None),
            "eps to 1e-8": e.optimizer(c.Adam, eps=1e-8),
            "eps above 1e-8": e.optimizer(c.Adam, eps=1e-3),
            "decay default": e.optimizer(c.Adam, weight_decay=None),
            "decay 0": e.optimizer(c.Adam, weight_decay=0.0),
            "decay given": e.optimizer(c.Adam, weight_decay=0.5),
        },
    ),
    "clip": Group(
        c.TrainCase,
        {
            "none": e.having(clip=None),
            "default": e.having(clip=c.Clip(), gap=None),
            "below 0.25": e.having(clip=c.Clip(0.01), gap=None),
            "above 0.25": e.having(clip=c.Clip(5.0), gap=None),
        },
    ),
    "norm": Group(
        c.TrainCase,
        {
            "eps default": e.within(c.LayerNorm()),
            "eps given": e.within(c.LayerNorm(1e-2)),
            "momentum default": e.within(c.BatchNorm()),
            "momentum 0": e.within(c.BatchNorm(momentum=0.0)),
            "momentum between": e.within(c.BatchNorm(momentum=0.5)),
            "momentum 1": e.within(c.BatchNorm(momentum=1.0)),
            "first": e.first(c.LayerNorm()),
            "BatchNorm first, offset 100": e.first(c.BatchNorm(), 100.0),
            "LayerNorm first, offset 100": e.first(c.LayerNorm(), 100.0),
            "BatchNorm on 1 feature": e.to_one_feature(c.BatchNorm()),
            "LayerNorm on 1 feature": e.to_one_feature(c.LayerNorm()),
        },
    ),
    "dropout": Group(
        c.TrainCase,
        {
            "default": e.within(c.Dropout()),
            "0": e.within(c.Dropout(0.0)),
            "between": e.within(c.Dropout(0.9)),
            "1": e.within(c.Dropout(1.0)),
        },
    ),
    "mode": Group(
        c.TrainCase,
        {
            "nested eval": e.within(c.Eval((c.BatchNorm(),))),
            "BatchNorm in nested eval": e.within(c.Eval((c.BatchNorm(),))),
            "Dropout in nested eval": e.within(c.Eval((c.Dropout(),))),
            "eval between steps": e.steps(2),
            "BatchNorm trains again": e.trains_again(c.BatchNorm()),
            "Dropout trains again": e.trains_again(c.Dropout()),
        },
    ),
    "steps": Group(
        c.TrainCase, {"1": e.steps(1), "2": e.steps(2), "3 to 6": e.steps(4), "above 6": None}
    ),  # long runs cost most
    "backward": Group(
        c.TrainCase,
        {
            "once": e.having(backward="once"),
            "twice": e.having(backward="twice"),
            "accumulate": e.having(backward="accumulate"),
            "to the input": e.having(input_grad=True),
            "fan-out": _LAYERS["Residual"],
            "Residual first in a Residual": e.nested_residual,
            "second order": None,
        },
    ),
    "start": Group(
        c.TrainCase,
        {
            "norms as built": e.having(keep_init=True),
            "norms drawn": e.having(keep_init=False),
            "weights 0": e.having(weight_scale=0.0),
            "small weights": e.having(weight_scale=0.1),
            "large weights": e.having(weight_scale=4.0),
            "saturated": e.last(lambda width, _: (c.Ops((c.OpStep("mul_scalar", (0,), {"c": 1000.0}),)),)),
        },
    ),
    "batch": Group(
        c.TrainCase,
        {
            "1 row": None,
            "1 feature": None,
            "1 class": e.last(lambda width, _: (c.Linear(1),)),
            "rows = features": None,
            "above 32 rows": None,
            "above 32 features": None,
            "above 64 rows": None,
            "above 1,024 rows": None,
            "above 64 features": None,
            "labels above 63": None,
        },
    ),
    "parameter": Group(c.TrainCase, _of_switches("parameter", *PARAMETERS)),
    "data": Group(
        c.TrainCase,
        {
            "scale 0": e.data(scale=0.0),
            "scale below 1": e.data(scale=0.01),
            "scale above 1": e.data(scale=30.0),
            "offset to 1": e.data(offset=1.0),
            "offset to 100": e.data(offset=100.0),
            "offset above 100": e.data(offset=-1000.0),
            "repeated rows": e.data(repeated_rows=True),
            "constant column": e.data(constant_column=True),
            "whole numbers": e.data(rounded=True),
            "same batch": e.data(same_batch=True),
            "atom 0": e.atom(0.0),
            "atom below 1": e.atom(1e-3),
            "atom 1": e.atom(-1.0),
            "atom to 100": e.atom(-100.0),
            "atom above 100": e.atom(1e4),
        },
    ),
    "shape": Group(
        c.OpCase,
        dict.fromkeys(("scalar", "size 1", "square", "broadcast", "zero size", "above 32", "rank 3", "rank 4")),
    ),
    "size": Group(
        c.OpCase,
        {
            **_of_switches("size", LONG_AXIS),
            f"5,000 to {ZEROS_AT_HAND:,} elements": None,
            f"above {ZEROS_AT_HAND:,} elements": None,
            **_of_switches("size", BLOCK, ZEROS_AT_HAND, FEW_CLASSES, FEW_LABELS),
        },
    ),
    "dtype": Group(
        c.OpCase,
        dict.fromkeys(
            (
                *("result float16", "result float32", "result float64", "one float", "several floats"),
                *("int64 operand", "int32 operand", "uint8 operand", "bool operand"),
            )
        ),
    ),
    "beside": Group(c.OpCase, dict.fromkeys(BESIDE)),
    "alone": Group(c.OpCase, dict.fromkeys(("integers", "bools", "as floats", "many bools", "many integers"))),
    "again": Group(
        c.OpCase,
        {f"{times} in {dtype}": None for times in ("twice", "three times") for dtype in ("float16", "float64")},
    ),
    "rows": Group(c.OpCase, dict.fromkeys((*ROWS, "float16", "float64"))),
    "lying": Group(
        c.OpCase, {f"{layout} {dtype}": None for layout in LAYOUTS for dtype in ("float16", "float64", "integers")}
    ),
    "model": Group(
        c.TrainCase,
        {f"{model} on {data} data": None for model in FLOATS for data in FLOATS if (model, data) != ("float32",) * 2},
    ),
    "dtypes": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS.keys() - NOT_IN_DTYPES))),
    "long": Group(c.OpCase, dict.fromkeys(sorted(OPERATIONS.keys() - SELDOM_LONG))),
    "index": Group(
        c.OpCase,
        {
            "slice of getitem": None,
            "array of getitem": e.index(lambda n: {"array": (n - 1, 0)}),
            "repeats of getitem": e.index(lambda n: {"array": (0, n - 1, 0)}),
            "negative places of getitem": e.index(lambda n: {"array": (-1, 0)}),
            "mask of getitem": e.index(lambda n: {"mask": tuple(i % 2 for i in range(1, n + 1))}),
            "number of getitem": e.index(lambda n: {"number": (n - 1,)}),
            "ellipsis of getitem": e.turned("getitem", e.after_an_ellipsis),
            "new axis of getitem": e.index(lambda n: None),
            "slice of put_item": e.place(lambda n: (1, n + 1, None)),
            "array of put_item": e.place(lambda n: {"array": tuple(range(1, n + 1))}),
            "repeats of put_item": e.place(lambda n: {"array": (0,) * n}),
            "negative places of put_item": e.place(lambda n: {"array": tuple(range(-n, 0))}),
        },
    ),
    "power": Group(
        c.OpCase,
        {
            **{name: e.power_of_number(*numbers) for name, numbers in _POWERS.items()},
            **{f"{name}, of two tensors": e.power_of_tensors(*numbers) for name, numbers in _POWERS.items()},
        },
    ),
    "memory": Group(
        c.OpCase,
        {
            "C": e.layout("C"),
            "F": e.layout("F"),
            "strided": e.layout("strided"),
            "reversed": e.layout("reversed"),
            "repeated": e.layout("repeated"),
            "read-only": e.layout("read-only"),
        },
    ),
    "value": Group(
        c.OpCase,
        {
            "nan": e.value("nan"),
            "inf": e.value("inf"),
            "-inf": e.value("-inf"),
            "0": e.value(0.0),
            "-0": e.value(-0.0),
            "1e-20": e.value(1e-20),
            "above 64": None,
            "of g above 64": e.having(cotangent=(300.0, -1.0)),
        },
    ),
    "argument": Group(
        c.OpCase,
        {
            "numpy scalar": e.numpy_scalars,
            "constant": e.having(constants=(0,)),
            "no axes": None,
            "empty tuple of axes": None,
            "one axis": None,
            "several axes": None,
            "negative axis": None,
            "negative axis of stack": e.from_the_end("stack", 2, axis=-1),
            "negative axis of split": e.from_the_end("split", axis=-1, pick=0),
            "negative axis of concatenate": e.from_the_end("concatenate", 2, axis=-1),
            "negative axis of dilate": e.from_the_end("dilate", axes=(-1,), dilation=1),
            "negative axis of softmax": e.from_the_end("softmax", axis=-1),
            "negative axis of flip": e.from_the_end("flip", axes=(-1,)),
            "-1 in a shape": e.turned("reshape", e.flat),
            "a new axis as long as another": e.turned("broadcast_to", e.wider),
            "all axes of logsumexp, a row far above the first": e.turned("logsumexp", e.far_above_the_first_row),
        },
    ),
    "program": Group(
        c.ProgramCase,
        {
            **{words: e.action(example) for words, example in EXAMPLES.items()},
            "layers in a sequential": e.having(held="sequential"),
            "layers in a list": e.having(held="list"),
            "layers in a dict": e.having(held="dict"),
            "layers in a ModuleList": e.having(held="ModuleList"),
            "same module twice": e.applied_twice,
            "a model of tied weights is loaded": e.tied_and_loaded,
            "one norm of two evaluates": e.one_norm_evaluates,
            **{f"a layer is put in a {name}": e.put_in(held) for held, name in PUT_IN.items()},
            "a schedule is loaded from its state_dict": e.schedule_loaded(file=False),
            "a schedule is loaded from a file": e.schedule_loaded(file=True),
            "Residual of a function": e.function,
        },
    ),
    "second": Group(
        c.SecondOrderCase,
        {
            **_LAYERS,
            **_VARIANTS,
            "SoftmaxLoss": e.having(loss=c.SoftmaxLoss()),
            "MeanSquare": e.having(loss=c.MeanSquare()),
            "WeightedSum": e.having(loss=c.WeightedSum()),
            "Cotangent": e.having(loss=c.Cotangent()),
            "MSELoss": e.having(loss=c.MSELoss()),
        },
    ),
}
LABELS = tuple(f"{group} {name}" for group, part in TABLE.items() for name in part.labels)
# of a kind of case: what can be given to it
EDITS: dict[type, dict[str, Edit]] = {
    kind: {
        f"{group} {name}": edit
        for group, part in TABLE.items()
        if part.kind is kind
        for name, edit in part.labels.items()
        if edit is not None
    }
    for kind in (c.TrainCase, c.SecondOrderCase, c.ProgramCase, c.OpCase)
}
