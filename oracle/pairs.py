"""The table: one row per thing in needle and the thing in torch that it must equal.

The one file where needle, torch and Hypothesis meet. To add an op, add a row to `OPS`: how needle calls it, how torch
calls it, which operands and attributes it is drawn with, which values they take, and the needle classes that it
covers. Its float64 definition is the function of the same name in `oracle.definitions`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from oracle.cases import case as c
from oracle.systems import peer as peer

Shape = tuple[int, ...]
Draw = Callable[..., Any]
Drawn = tuple[list[Shape], dict[str, Any]]

# -- drawing operands -------------------------------------------------------------------------------------------------

_CS = (2.0, -1.0, 0.5, 1.0, 0.0, -3.0)
_POWERS = (2.0, 3.0, 1.0, 0.5, -1.0, -2.0, 1.5, 0.0, -0.5)
SIZES = st.sampled_from([1, 2, 3, 4, 2, 3, 5, 2, 3, 4, 7, 33, 2, 3, 1, 0])
RANKS = st.sampled_from([0, 1, 2, 3, 2, 1, 2, 3])
_TUPLES = [st.tuples(*[SIZES] * rank) for rank in range(5)]


@functools.cache
def shapes(min_rank: int = 0, max_rank: int = 3) -> st.SearchStrategy[Shape]:
    """Small shapes, with size-1, zero-size and, rarely, long dimensions."""
    ranks = RANKS.map(lambda rank: min(max(rank, min_rank), max_rank))
    return ranks.flatmap(_TUPLES.__getitem__)


@functools.cache
def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Whole numbers from low to high; made once, because making a strategy costs more than drawing from it."""
    return st.integers(low, high)


@functools.cache
def _chosen(rank: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rank - 1), min_size=1, max_size=most, unique=True)


BOOLEANS = st.booleans()


def _axes(draw: Draw, rank: int, allow_none: bool = True) -> Any:
    """None, one axis or several; some of them negative."""
    kind = draw(integers(0 if allow_none else 1, 2 if rank else 0))
    if kind == 0:
        return None
    chosen = draw(_chosen(rank, 1 if kind == 1 else rank))
    signed = tuple(a - rank if draw(BOOLEANS) else a for a in chosen)
    return signed[0] if kind == 1 else signed


@st.composite
def _one(draw: Draw) -> Drawn:
    return [draw(shapes())], {}


@st.composite
def _two(draw: Draw) -> Drawn:
    """Two shapes that broadcast."""
    wide = draw(shapes())
    pair = []
    for _ in range(2):
        dims = tuple(1 if draw(BOOLEANS) and draw(BOOLEANS) else n for n in wide)
        pair.append(dims[draw(integers(0, len(dims))) :] if draw(BOOLEANS) else dims)
    return pair, {}


def _scalar(values: Sequence[float]) -> st.SearchStrategy[Drawn]:
    scalars = st.sampled_from(values) | st.floats(0.25, 4, width=32)
    return st.tuples(shapes(), scalars).map(lambda d: ([d[0]], {"c": float(d[1])}))


@st.composite
def _transposed(draw: Draw) -> Drawn:
    shape = draw(shapes(min_rank=2))
    if draw(BOOLEANS):
        shape = (shape[0],) * len(shape)  # a wrong pair of axes then has the right shape
    if draw(BOOLEANS):
        return [shape], {}
    axis = integers(-len(shape), len(shape) - 1)
    return [shape], {"axes": (draw(axis), draw(axis))}


@st.composite
def _reshaped(draw: Draw) -> Drawn:
    shape = draw(shapes())
    flat: tuple[int, ...] = (1,)
    for n in shape:
        flat = (flat[0] * n,)
    targets = [flat, shape[::-1], (1, *shape), (*shape, 1), tuple(n for n in shape if n != 1)]
    return [shape], {"shape": targets[draw(integers(0, 4))]}


@st.composite
def _broadcasted(draw: Draw) -> Drawn:
    (shape, other), _ = draw(_two())
    wide = [max(a, b) if 0 not in (a, b) else 0 for a, b in zip(_pad(shape, other), _pad(other, shape), strict=True)]
    return [shape], {"shape": tuple(wide)}


def _pad(shape: Shape, other: Shape) -> Shape:
    return (1,) * (len(other) - len(shape)) + shape


@st.composite
def _reduced(draw: Draw, min_size: int = 0, default: bool = True) -> Drawn:
    shape = tuple(max(n, min_size) for n in draw(shapes()))
    axes = _axes(draw, len(shape))
    return [shape], {} if axes is None and default and draw(BOOLEANS) else {"axes": axes}


_BATCHES = st.sampled_from([((), ()), ((), ()), ((2,), (2,)), ((3,), ()), ((), (2,)), ((2, 1), (3,)), ((1,), (4,))])


@st.composite
def _multiplied(draw: Draw) -> Drawn:
    """(…, n, k) @ (…, k, m), batch dimensions broadcast; now and then all square."""
    n, k, m = draw(SIZES), draw(SIZES), draw(SIZES)
    if draw(BOOLEANS):
        n = m = k
    batch = draw(
        st.sampled_from([((), ()), ((), ()), ((2,), (2,)), ((3,), ()), ((), (2,)), ((2, 1), (3,)), ((1,), (4,))])
    )
    return [(*batch[0], n, k), (*batch[1], k, m)], {}


_STRIDES = st.sampled_from([None, 1, 2])


@st.composite
def _indexed(draw: Draw) -> Drawn:
    shape = draw(shapes(min_rank=1))
    index = []
    for n in shape[: draw(integers(1, len(shape)))]:
        start, stop = (draw(integers(-n, n)) if draw(BOOLEANS) else None for _ in range(2))
        index.append((start, stop, draw(_STRIDES)))
    return [shape], {"index": tuple(index)}


@st.composite
def _put(draw: Draw) -> Drawn:
    """A shape, and an index that takes a slice of that shape out of a larger one."""
    shape = draw(shapes(min_rank=1))
    wide, index = [], []
    for n in shape:
        start, step = draw(integers(0, 2)), draw(integers(1, 2))
        stop = start + n * step
        wide.append(stop + draw(integers(0, 2)))
        index.append((start, stop, step))
    return [shape], {"shape": tuple(wide), "index": tuple(index)}


@st.composite
def _two_scalars(draw: Draw) -> Drawn:
    scalar = st.sampled_from(_CS) | st.floats(0.25, 4, width=32)
    return [draw(shapes())], {"c": float(draw(scalar)), "c1": float(draw(scalar))}


@st.composite
def _flipped(draw: Draw) -> Drawn:
    shape = draw(shapes(min_rank=1))
    axes = _axes(draw, len(shape), allow_none=False)
    return [shape], {"axes": axes if isinstance(axes, tuple) else (axes,)}


@st.composite
def _dilated(draw: Draw) -> Drawn:
    shape = draw(shapes(min_rank=1))
    axes = draw(_chosen(len(shape), len(shape)))
    return [shape], {"axes": tuple(axes), "dilation": draw(integers(0, 3))}


@st.composite
def _stacked(draw: Draw) -> Drawn:
    shape = draw(shapes())
    return [shape] * draw(integers(1, 4)), {"axis": draw(integers(0, len(shape)))}


@st.composite
def _split(draw: Draw) -> Drawn:
    shape = tuple(max(n, 1) for n in draw(shapes(min_rank=1)))
    axis = draw(integers(0, len(shape) - 1))
    return [shape], {"axis": axis, "pick": draw(integers(0, shape[axis] - 1))}


@st.composite
def _convolved(draw: Draw) -> Drawn:
    k, stride, padding = draw(integers(1, 4)), draw(integers(1, 3)), draw(integers(0, 2))
    n, channels, out = draw(integers(1, 3)), draw(integers(1, 3)), draw(integers(1, 4))
    h, w = (max(draw(integers(1, 8)), k - 2 * padding, 1) for _ in range(2))
    return [(n, h, w, channels), (k, k, channels, out)], {"stride": stride, "padding": padding}


@st.composite
def _matrix(draw: Draw) -> Drawn:
    return [(draw(SIZES), draw(integers(1, 8)))], {}


@st.composite
def _affine(draw: Draw) -> Drawn:
    n, k, m = draw(integers(1, 5)), draw(integers(1, 5)), draw(integers(1, 5))
    bias = ((1, m) if draw(BOOLEANS) else (m,),) if draw(BOOLEANS) else ()
    return [(2, n, k) if draw(BOOLEANS) and draw(BOOLEANS) else (n, k), (k, m), *bias], {}


@st.composite
def _labelled(draw: Draw) -> Drawn:
    n, k = draw(integers(1, 5)), draw(integers(1, 5))
    return [(n, k)], {"labels": tuple(draw(integers(0, k - 1)) for _ in range(n))}


_EPS = st.sampled_from([1e-5, 1e-3, 1.0])


@st.composite
def _normalised(draw: Draw, min_rows: int) -> Drawn:
    n, k = draw(integers(min_rows, 6)), draw(integers(1, 6))
    return [(n, k), (k,), (k,)], {"eps": draw(_EPS)}


# -- ops --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpRow:
    """One op: ``needle(ndl, *tensors, **attributes)`` must equal ``torch(*tensors, **attributes)``."""

    needle: Callable[..., Any]
    torch: Callable[..., torch.Tensor]
    drawn: st.SearchStrategy[Drawn]
    covers: tuple[str, ...]  # classes of needle.ops
    values: str = "real"  # "real", "positive" or "nonzero": what the operands are made of
    special: tuple[str, ...] = ("nan", "inf", "-inf")  # operands on which both sides must agree where these end up


def _dims(x: torch.Tensor, axes: Any) -> Any:
    """axes as torch wants them: None is all of them, which for torch must be spelled out."""
    return tuple(range(x.dim())) if axes is None else axes


def _torch_sum(x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    return x.sum() if axes is None else x.sum(dim=axes)


def _torch_transpose(x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    return x.transpose(-1, -2) if axes is None else x.transpose(*axes)


def _torch_lse(x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    return torch.logsumexp(x.reshape(-1), 0) if axes is None else torch.logsumexp(x, axes)


def _torch_dilate(x: torch.Tensor, axes: Shape, dilation: int) -> torch.Tensor:
    out = x.new_zeros([n * (dilation + 1) if i in axes else n for i, n in enumerate(x.shape)])
    where = tuple(slice(None, None, dilation + 1) if i in axes else slice(None) for i in range(x.dim()))
    out[where] = x
    return out


def _torch_put(x: torch.Tensor, shape: Shape, index: Any) -> torch.Tensor:
    out = x.new_zeros(shape)
    out[_slices(index)] = x
    return out


def _torch_conv(x: torch.Tensor, w: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    out = nn.functional.conv2d(
        # torch's own backward wants a contiguous kernel
        x.permute(0, 3, 1, 2),
        w.permute(3, 2, 0, 1).contiguous(),
        stride=stride,
        padding=padding,
    )
    return out.permute(0, 2, 3, 1)


def _torch_batch_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, eps: float) -> torch.Tensor:
    return nn.functional.batch_norm(x, None, None, w, b, training=True, eps=eps)


def _slices(index: Sequence[tuple[int | None, int | None, int | None]]) -> tuple[slice, ...]:
    return tuple(slice(*s) for s in index)


def _torch_loss(z: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    return nn.functional.cross_entropy(z, torch.tensor(labels))


# Functions and methods of the same name are two doors to one op: operands of even and of odd rank take different ones.


def _door(function: str, plain: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """``ndl.function(x, c)`` or the operator."""
    return lambda ndl, x, c: getattr(ndl, function)(x, c) if len(x.shape) % 2 else plain(x, c)


def _needle_transpose(ndl: Any, x: Any, **a: Any) -> Any:
    if not a and len(x.shape) == 2:
        return x.T if hasattr(type(x), "T") else ndl.transpose(x)
    return x.transpose(**a) if len(x.shape) % 2 else ndl.transpose(x, **a)


def _needle_reshape(ndl: Any, x: Any, shape: Shape) -> Any:
    if len(x.shape) == 3:
        return x.reshape(*shape)
    return x.reshape(shape) if len(x.shape) % 2 else ndl.reshape(x, shape)


def _unusual(**keywords: tuple[Any, Any]) -> dict[str, Any]:
    """Only the keywords whose value is not the default, so that the defaults are tested."""
    return {name: value for name, (value, usual) in keywords.items() if value != usual}


def _needle_conv(ndl: Any, x: Any, w: Any, stride: int, padding: int) -> Any:
    return ndl.conv(x, w, **_unusual(stride=(stride, 1), padding=(padding, 0)))


def _needle_matmul(ndl: Any, a: Any, b: Any) -> Any:
    return a @ b if len(a.shape) % 2 == 0 else ndl.matmul(a, b)


def _needle_loss(ndl: Any, z: Any, labels: Sequence[int]) -> Any:
    import numpy as np

    return ndl.nn.SoftmaxLoss()(z, ndl.Tensor(np.array(labels), requires_grad=False))


OPS: Mapping[str, OpRow] = {
    "add": OpRow(lambda n, a, b: n.add(a, b), torch.add, _two(), ("EWiseAdd",)),
    "subtract": OpRow(lambda n, a, b: a - b, torch.sub, _two(), ("EWiseAdd", "Negate")),
    "multiply": OpRow(lambda n, a, b: n.multiply(a, b), torch.mul, _two(), ("EWiseMul",)),
    "divide": OpRow(lambda n, a, b: n.divide(a, b), torch.div, _two(), ("EWiseDiv",), values="nonzero"),
    "power": OpRow(lambda n, a, b: n.power(a, b), torch.pow, _two(), ("EWisePow",), values="positive", special=()),
    "negate": OpRow(lambda n, x: n.negate(x), torch.neg, _one(), ("Negate",)),
    "log": OpRow(lambda n, x: n.log(x), torch.log, _one(), ("Log",), values="positive"),
    "exp": OpRow(lambda n, x: n.exp(x), torch.exp, _one(), ("Exp",)),
    "tanh": OpRow(lambda n, x: n.tanh(x), torch.tanh, _one(), ("Tanh",)),
    "sigmoid": OpRow(lambda n, x: n.sigmoid(x), torch.sigmoid, _one(), ("Sigmoid",)),
    "relu": OpRow(lambda n, x: n.relu(x), torch.relu, _one(), ("ReLU",), special=("inf", "-inf")),
    "add_scalar": OpRow(_door("add_scalar", operator.add), lambda x, c: x + c, _scalar(_CS), ("AddScalar",)),
    "mul_scalar": OpRow(_door("mul_scalar", lambda x, c: c * x), lambda x, c: x * c, _scalar(_CS), ("MulScalar",)),
    "divide_scalar": OpRow(
        _door("divide_scalar", operator.truediv), lambda x, c: x / c, _scalar(_CS[:4]), ("DivScalar",)
    ),
    "power_scalar": OpRow(
        _door("power_scalar", operator.pow),
        lambda x, c: x**c,
        _scalar(_POWERS),
        ("PowerScalar",),
        values="positive",
        special=(),
    ),
    "rsub": OpRow(lambda n, x, c: c - x, lambda x, c: c - x, _scalar(_CS), ("AddScalar", "Negate")),
    "rdiv": OpRow(lambda n, x, c: c / x, lambda x, c: c / x, _scalar(_CS), (), values="nonzero", special=()),
    "rpow": OpRow(lambda n, x, c: c**x, lambda x, c: c**x, _scalar((2.0, 0.5, 1.0, 3.0)), (), special=()),
    "fused_add_scalars": OpRow(
        lambda n, x, c, c1: (lambda pair: pair[0] * pair[1])(n.fused_add_scalars(x, c, c1)),
        lambda x, c, c1: (x + c) * (x + c1),
        _two_scalars(),
        ("FusedAddScalars", "TupleGetItem"),
    ),
    "transpose": OpRow(_needle_transpose, _torch_transpose, _transposed(), ("Transpose",)),
    "reshape": OpRow(_needle_reshape, torch.reshape, _reshaped(), ("Reshape",)),
    "broadcast_to": OpRow(
        lambda n, x, shape: x.broadcast_to(shape),
        lambda x, shape: x.broadcast_to(shape),
        _broadcasted(),
        ("BroadcastTo",),
    ),
    "summation": OpRow(lambda n, x, **a: n.summation(x, **a), _torch_sum, _reduced(), ("Summation",)),
    "maximum": OpRow(
        lambda n, x, axes=None: x.max(axes),
        lambda x, axes=None: torch.amax(x, _dims(x, axes)),
        _reduced(min_size=1),
        ("Max",),
        special=(),
    ),
    "getitem": OpRow(
        lambda n, x, index: x[_slices(index)], lambda x, index: x[_slices(index)], _indexed(), ("GetItem",)
    ),
    "put_item": OpRow(
        lambda n, x, shape, index: n.ops.put_item(x, shape, _slices(index)), _torch_put, _put(), ("PutItem",)
    ),
    "cast": OpRow(
        # half of it past the cast: a float32 tensor then gets a float64 contribution, which must become float32
        lambda n, x: n.ops.cast((n.ops.cast(x, "float64") + x) * 0.5, "float32"),
        lambda x: x.double().float(),
        _one(),
        ("Cast",),
    ),
    "flip": OpRow(lambda n, x, axes: n.flip(x, axes), lambda x, axes: torch.flip(x, axes), _flipped(), ("Flip",)),
    "dilate": OpRow(lambda n, x, **a: n.dilate(x, **a), _torch_dilate, _dilated(), ("Dilate",)),
    "stack": OpRow(
        lambda n, *xs, axis: n.stack(xs, **_unusual(axis=(axis, 0))),
        lambda *xs, axis: torch.stack(xs, axis),
        _stacked(),
        ("Stack", "MakeTensorTuple"),
    ),
    "split": OpRow(
        lambda n, x, axis, pick: n.split(x, axis)[pick],
        lambda x, axis, pick: torch.select(x, axis, pick),
        _split(),
        ("Split", "TupleGetItem"),
    ),
    # a BLAS may skip a factor of 0, so that 0 x inf is 0 and not nan: special values are not compared in products
    "matmul": OpRow(_needle_matmul, torch.matmul, _multiplied(), ("MatMul",), special=()),
    "linear": OpRow(
        lambda n, x, w, *b: n.ops.linear(x, w, *b),
        lambda x, w, *b: nn.functional.linear(x, w.t(), *(v.reshape(-1) for v in b)),
        _affine(),
        ("Linear",),
        special=(),
    ),
    "conv": OpRow(_needle_conv, _torch_conv, _convolved(), ("Conv",), special=()),
    "logsumexp": OpRow(lambda n, x, **a: n.logsumexp(x, **a), _torch_lse, _reduced(min_size=1), ("LogSumExp",)),
    "logsoftmax": OpRow(
        lambda n, x: n.logsoftmax(x), lambda x: torch.log_softmax(x, 1), _matrix(), ("LogSoftmax",), special=()
    ),
    "softmax_loss": OpRow(_needle_loss, _torch_loss, _labelled(), ("SoftmaxCrossEntropy",), special=()),
    "batch_norm": OpRow(
        lambda n, x, w, b, eps: n.ops.batch_norm(x, w, b, **_unusual(eps=(eps, 1e-5))),
        _torch_batch_norm,
        _normalised(min_rows=2),
        ("BatchNorm",),
        special=(),
    ),
    "layer_norm": OpRow(
        lambda n, x, w, b, eps: n.ops.layer_norm(x, w, b, **_unusual(eps=(eps, 1e-5))),
        lambda x, w, b, eps: nn.functional.layer_norm(x, (x.shape[-1],), w, b, eps),
        _normalised(min_rows=1),
        ("LayerNorm",),
        special=(),
    ),
}

# -- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerRow:
    """One layer: how a user of needle builds it and how a user of torch does; ``body`` builds what is nested in it."""

    needle: Callable[[Any, Any, int, Callable[..., Any]], Any]
    torch: Callable[[Any, int, Callable[..., nn.Module]], nn.Module]


def _given(**keywords: Any) -> dict[str, Any]:
    """Only the keywords that the case sets: what it leaves out tests the defaults."""
    return {k: v for k, v in keywords.items() if v is not None}


def _applied(ndl: Any, function: Callable[..., Any], *children: Any) -> Any:
    """A module of the user's own, as course code writes it."""

    class Applied(ndl.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = list(children)

        def forward(self, x: Any) -> Any:
            return function(x, *self.parts)

    return Applied()


def _named(ndl: Any, layer: str, function: str) -> Any:
    """A layer that not every course needle has; the function as a module where it has not."""
    kind = getattr(ndl.nn, layer, None)
    return _applied(ndl, getattr(ndl, function)) if kind is None else kind()


_JOINS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


def _needle_branch(ndl: Any, s: c.Branch, width: int, body: Callable[..., Any]) -> Any:
    left, right = body("left.", s.left), body("right.", s.right)
    return _applied(ndl, lambda x, a, b: _JOINS[s.join](a(x), b(x)), left, right)


def _needle_unused(ndl: Any, s: c.Unused, width: int, body: Callable[..., Any]) -> Any:
    module = _applied(ndl, lambda x: x)
    module.weight = ndl.nn.Parameter(ndl.init.zeros(s.size))
    return module


def _program(layer: c.Ops, x: Any, call: Callable[..., Any]) -> Any:
    values = [x]
    for step in layer.steps:
        values.append(call(step.op, *(values[a] for a in step.args), **step.attributes))
    return values[-1]


def _needle_ops(ndl: Any, s: c.Ops, width: int, body: Callable[..., Any]) -> Any:
    return _applied(ndl, lambda x: _program(s, x, lambda op, *xs, **a: OPS[op].needle(ndl, *xs, **a)))


def _torch_ops(s: c.Ops, width: int, body: Callable[..., Any]) -> nn.Module:
    return peer.Apply(lambda x: _program(s, x, lambda op, *xs, **a: OPS[op].torch(*xs, **a)))


LAYERS: Mapping[type, LayerRow] = {
    c.Linear: LayerRow(
        lambda n, s, d, _: n.nn.Linear(d, s.out, **({} if s.bias else {"bias": False})),
        lambda s, d, _: nn.Linear(d, s.out, bias=s.bias),
    ),
    c.ReLU: LayerRow(lambda n, s, d, _: n.nn.ReLU(), lambda s, d, _: peer.ReLU()),
    c.Tanh: LayerRow(lambda n, s, d, _: _named(n, "Tanh", "tanh"), lambda s, d, _: nn.Tanh()),
    c.Sigmoid: LayerRow(lambda n, s, d, _: _named(n, "Sigmoid", "sigmoid"), lambda s, d, _: nn.Sigmoid()),
    c.Identity: LayerRow(lambda n, s, d, _: n.nn.Identity(), lambda s, d, _: nn.Identity()),
    c.Flatten: LayerRow(lambda n, s, d, _: n.nn.Flatten(), lambda s, d, _: nn.Flatten()),
    c.BatchNorm: LayerRow(
        lambda n, s, d, _: n.nn.BatchNorm1d(d, **_given(eps=s.eps, momentum=s.momentum)),
        lambda s, d, _: nn.BatchNorm1d(d, **_given(eps=s.eps, momentum=s.momentum)),
    ),
    c.LayerNorm: LayerRow(
        lambda n, s, d, _: n.nn.LayerNorm1d(d, **_given(eps=s.eps)),
        lambda s, d, _: nn.LayerNorm(d, **_given(eps=s.eps)),
    ),
    c.Dropout: LayerRow(
        lambda n, s, d, _: n.nn.Dropout(**_given(p=s.p)),
        lambda s, d, _: peer.Dropout(0.5 if s.p is None else s.p),
    ),
    c.Unused: LayerRow(_needle_unused, lambda s, d, _: peer.Unused(s.size)),
    c.Sequential: LayerRow(lambda n, s, d, body: body("", s.body), lambda s, d, body: body("", s.body)),
    c.Eval: LayerRow(lambda n, s, d, body: body("", s.body), lambda s, d, body: body("", s.body)),
    c.Residual: LayerRow(
        lambda n, s, d, body: n.nn.Residual(body("", s.body)),
        lambda s, d, body: peer.Residual(body("", s.body)),
    ),
    c.Branch: LayerRow(
        _needle_branch,
        lambda s, d, body: peer.Branch(body("left.", s.left), body("right.", s.right), s.join),
    ),
    c.Ops: LayerRow(_needle_ops, _torch_ops),
}

NEEDLE_LAYERS = {kind: row.needle for kind, row in LAYERS.items()}
TORCH_LAYERS = {kind: row.torch for kind, row in LAYERS.items()}
