"""Small cases drawn on purpose for another needle: the special shapes and modes in which its mistakes hide.

They come first and cost next to nothing; what they find is small already, so that it can be told as it is. The drawn cases of
the run come on top.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from msgspec.structs import replace

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import fitting

Shape = tuple[int, ...]

_UNARY = ("negate", "exp", "tanh", "sigmoid", "softplus", "relu", "log")
_SHAPES: tuple[Shape, ...] = ((2, 3), (3,), (1, 2, 2))
_COTANGENT = (1.0, -2.0, 3.0, 0.5, -1.0, 4.0, 1.5)
_VALUES = (0.5, -1.25, 2.0, 0.0, -0.75, 1.5, 3.0, -2.0)  # a zero among them, for relu
_POSITIVE = tuple(abs(v) + 0.25 for v in _VALUES)


def _operand(shape: Shape, values: tuple[float, ...] = _VALUES, start: int = 0) -> c.Operand:
    return c.Operand(shape, tuple(values[(start + i) % len(values)] for i in range(math.prod(shape))))


def _op(op: str, *shapes: Shape, values: tuple[float, ...] = _VALUES, **attributes: Any) -> c.OpCase:
    operands = tuple(_operand(shape, values, 3 * i) for i, shape in enumerate(shapes))
    return c.OpCase(op, operands, attributes, _COTANGENT)


def _ops() -> Iterator[c.OpCase]:
    for op in _UNARY:
        for shape in _SHAPES:
            yield _op(op, shape, values=_POSITIVE if op == "log" else _VALUES)
    for op in ("add", "subtract", "multiply", "divide", "power"):
        for shape in _SHAPES[:2]:
            yield _op(op, shape, shape, values=_POSITIVE if op in ("divide", "power") else _VALUES)
    for op in ("add_scalar", "mul_scalar", "divide_scalar", "rsub", "rdiv", "rpow", "power_scalar"):
        for shape in _SHAPES[:2]:  # one by the operator, the other by the function
            for number in {"power_scalar": (2.0, 3.0, -1.0, 0.5), "rpow": (2.0,)}.get(op, (1.0, 2.5)):
                yield _op(op, shape, values=_POSITIVE if op in ("rdiv", "power_scalar") else _VALUES, c=number)
    yield _op("transpose", (2, 3))
    yield _op("transpose", (2, 3, 4))
    for axes in ((0, 1), (1, 2), (0, 2), (-1, -2), (-3, -1)):
        yield _op("transpose", (2, 3, 4), axes=axes)
        yield _op("transpose", (2, 2, 2), axes=axes)
    targets: tuple[tuple[Shape, Shape], ...] = (((2, 3), (3, 2)), ((6,), (2, 3)), ((2, 3), (6,)), ((2, 1, 3), (2, 3)))
    for shape, other in targets:
        yield _op("reshape", shape, shape=other)
    # an axis is added, one is expanded, both, neither; square, so that a wrong one has the right shape
    wider: tuple[tuple[Shape, Shape], ...] = (
        ((3,), (3, 3)), ((1, 3), (3, 3)), ((3, 1), (3, 3)), ((3,), (2, 3)), ((), (2, 3)), ((1,), (2, 1)), ((1, 1), (2, 2)),
        ((2, 1, 3), (2, 2, 3)), ((3, 1), (2, 3, 4)), ((2, 3), (2, 3)),
    )  # fmt: skip
    for shape, other in wider:
        yield _op("broadcast_to", shape, shape=other)
    for op in ("summation", "logsumexp", "maximum"):
        yield _op(op, (2, 3))
        over: tuple[Any, ...] = ((0,), (1,), (-1,), (0, 1), (-1, 0), 1, -2)
        for some in over:
            yield _op(op, (2, 3), axes=some)
            yield _op(op, (3, 3), axes=some)
        deep: tuple[Shape, ...] = ((0, 2), (-1,), (1,), (-1, -3))
        for some in deep:
            yield _op(op, (2, 3, 4), axes=some)
        yield _op(op, (1, 3), axes=(0,))
    yield _op("logsumexp", (2, 3), values=(1000.0, 1001.0, 998.0, -1000.0, -999.0), axes=(1,))
    yield _op("logsoftmax", (2, 3))
    yield _op("logsoftmax", (3, 3), values=(1000.0, 1001.0, 998.0, -1000.0))
    products: tuple[tuple[Shape, Shape], ...] = (
        ((2, 3), (3, 2)), ((3, 3), (3, 3)), ((2, 2, 3), (2, 3, 2)), ((2, 2, 3), (3, 2)), ((2, 3), (2, 3, 2)), ((1, 2, 3), (2, 3, 2)),
        ((2, 2, 2), (2, 2)), ((1, 1), (1, 1)), ((2, 1, 2, 3), (3, 3, 2)),
    )  # fmt: skip
    for left, right in products:
        yield _op("matmul", left, right)
    for axis in (0, 1):
        yield _op("stack", (2,), (2,), (2,), axis=axis)
        yield _op("split", (3, 2), axis=axis, pick=1)
    reverse: tuple[Shape, ...] = ((0,), (1,), (0, 1))
    for some in reverse:
        yield _op("flip", (2, 3), axes=some)
    yield _op("dilate", (2, 2), axes=(1,), dilation=1)
    yield from _again()
    yield _op("softmax_loss", (3, 3), labels=(0, 2, 1))
    yield _op("softmax_loss", (2, 3), values=(1000.0, 1001.0, 998.0, -1000.0), labels=(1, 2))


def _again() -> Iterator[c.OpCase]:
    """Differentiated twice, and three times."""
    for op in _UNARY:
        yield replace(_op(op, (2, 3), values=_POSITIVE if op == "log" else _VALUES), order=3)
    for op in ("add", "subtract", "multiply", "divide", "power"):
        yield replace(_op(op, (2, 3), (2, 3), values=_POSITIVE if op in ("divide", "power") else _VALUES), order=3)
    for op, number in (("mul_scalar", 2.5), ("divide_scalar", 2.5), ("power_scalar", 3.0), ("rdiv", 1.0)):
        yield replace(_op(op, (2, 3), values=_POSITIVE if op == "rdiv" else _VALUES, c=number), order=3)
    yield replace(_op("matmul", (2, 3), (3, 2)), order=3)
    yield replace(_op("transpose", (2, 3)), order=2)
    yield replace(_op("reshape", (2, 3), shape=(3, 2)), order=2)
    yield replace(_op("broadcast_to", (1, 3), shape=(2, 3)), order=2)
    for op in ("summation", "logsumexp"):
        yield replace(_op(op, (2, 3), axes=(1,)), order=2)
    yield replace(_op("logsoftmax", (2, 3)), order=2)


def _trains() -> Iterator[c.TrainCase | c.SecondOrderCase]:
    square, tall, far = c.Data(3, 3), c.Data(4, 2), c.Data(4, 3, offset=100.0)
    linear = c.Linear(3)

    def train(*model: c.Layer, **changes: Any) -> c.TrainCase:
        given: dict[str, Any] = {
            "data": tall, "loss": c.WeightedSum(), "optimizer": c.SGD(lr=0.1), "seed": 1, "steps": 2, "input_grad": True,
        }  # fmt: skip
        return c.TrainCase(model=model, **(given | changes))

    for data in (tall, square):
        yield train(linear, data=data)
        yield train(linear, data=data, keep_init=True)
    yield train(c.Linear(3, bias=False))
    yield train(linear, c.Linear(3), c.Linear(3, tie=1))
    for loss in (c.SoftmaxLoss(), c.MeanSquare(), c.Cotangent()):
        yield train(linear, loss=loss)
    layers: tuple[c.Layer, ...] = (c.ReLU(), c.Identity(), c.Flatten(), *(kind() for kind in c.ACTIVATIONS.values()))
    for layer in layers:
        yield train(linear, layer)
    for norm in (c.BatchNorm(), c.LayerNorm()):
        for data in (tall, square, far):
            yield train(norm, linear, data=data, steps=3)
    yield train(c.BatchNorm(momentum=0.3, eps=0.01), linear, steps=3)
    yield train(c.LayerNorm(eps=0.01), linear)
    yield train(c.LayerNorm(), linear, data=c.Data(4, 3, scale=0.01))  # eps counts
    yield train(c.BatchNorm(), linear, data=c.Data(4, 3, scale=0.01))
    for p in (0.25, 0.5, 0.0, 1.0):
        yield train(c.Dropout(p), linear)
    yield train(c.Residual((linear, c.ReLU(), c.Linear(2))))
    yield train(c.Branch((c.Linear(2),), (c.Linear(2), c.ReLU()), "add"))  # modules in a list
    yield train(c.Sequential((c.Sequential((linear, c.Dropout(0.25))), c.BatchNorm())))
    # a tensor that is used more than once
    twice = c.Ops((c.OpStep("multiply", (0, 0)), c.OpStep("add", (1, 0)), c.OpStep("mul_scalar", (2,), {"c": 0.5})))
    yield train(linear, twice)
    plain, kept = train(linear), {"data": tall, "steps": 4}
    for optimizer in (
        c.SGD(lr=0.1, momentum=0.9), c.SGD(lr=0.1, weight_decay=0.1), c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
        c.SGD(), c.Adam(lr=0.1), c.Adam(lr=0.1, weight_decay=0.1), c.Adam(lr=0.1, beta1=0.5, beta2=0.9, eps=0.001), c.Adam(),
    ):  # fmt: skip
        yield train(linear, c.ReLU(), c.Linear(2), optimizer=optimizer, **kept)
        yield train(linear, optimizer=optimizer, lr_changes=(c.LrChange(1, 0.01),), **kept)
    for norm_ in (None, 0.01, 1.0, 100.0):
        yield train(linear, c.Linear(2), clip=c.Clip(norm_), optimizer=c.SGD(lr=0.1, momentum=0.9))
    yield train(linear, backward="twice")
    yield train(linear, backward="accumulate")
    for model in (
        (linear,),
        (linear, c.Tanh()),
        (linear, c.ReLU(), linear),
        (c.LayerNorm(), linear),
        (c.BatchNorm(), linear),
    ):
        for loss in (c.SoftmaxLoss(), c.MeanSquare()):
            yield c.SecondOrderCase(model=model, data=c.Data(3, 3), loss=loss, seed=plain.seed)


def _programs() -> Iterator[c.ProgramCase]:
    """What users do between steps."""
    linear, deep = c.Linear(3), (c.Linear(3), c.BatchNorm(), c.Dropout(0.25), c.Linear(2))
    data, sgd, adam = c.Data(4, 3), c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1), c.Adam(lr=0.1)

    def does(model: tuple[c.Layer, ...], *actions: a.Action, **changes: Any) -> c.ProgramCase:
        given: dict[str, Any] = {"data": data, "loss": c.WeightedSum(), "optimizer": sgd, "seed": 1}
        return c.ProgramCase(model=model, actions=(*actions, a.Pass(), a.Step(), a.Evaluate()), **(given | changes))

    held: tuple[Any, ...] = ("sequential", "list", "dict")
    for optimizer in (sgd, adam):
        for where in held:
            yield does(deep, a.Pass(), a.Evaluate(), a.Step(), held=where, optimizer=optimizer)
        yield does((linear,), a.Pass(), a.Step(), a.Set("lr", 0.3), optimizer=optimizer)
        yield does((linear,), a.Pass(), a.Step(), a.Set("weight_decay", 0.5), optimizer=optimizer)
        yield does(
            (linear,), a.Pass(), a.Pass(reset=False), a.Step(), a.Pass(reset=False, add=True), optimizer=optimizer
        )
        yield does(
            (linear,), a.Pass(), a.ClipNorm("below"), a.Step(), a.Pass(), optimizer=optimizer
        )  # one without a step
        yield does(
            (linear,),
            a.NewOptimizer("SGD", {"lr": 0.1, "momentum": 0.5}),
            a.Pass(),
            a.Step(),
            a.Step(1),
            optimizer=optimizer,
        )
    yield does((linear,), a.Pass(), a.Step(), a.Set("momentum", 0.5))
    yield does(deep, a.Mode(1, False), a.Pass(), a.Step(), a.Mode(None, False), a.Pass(), a.Step(), a.Mode())
    yield does(deep, a.Pass("twice"), a.Step(), a.Pass(to_input=True, keep=True), a.Step())


def battery(lacking: Collection[str]) -> list[c.Case]:
    """The cases, as far as a needle offers what they need."""
    found = (
        fitting.fitted(case, lacking) for case in (*_ops(), *_trains(), *_programs()) if not _wholly(case, lacking)
    )
    return list({case.digest: case for case in found if case is not None}.values())


def _wholly(case: c.Case, lacking: Collection[str]) -> bool:
    return isinstance(case, c.OpCase) and f"op {case.op}" in lacking
