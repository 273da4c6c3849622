"""What is wrong only beyond a size: the 65th feature, the 1,025th row, the second block of a parameter; and in other ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.adam import adam
from oracle.trust.faults.chapter import Chapter, const, f16, labels_of
from oracle.trust.faults.clipping import clip
from oracle.trust.faults.sgd import sgd
from oracle.trust.patches import Patch, around, compute, contribution, vjp, wrap

fault = Chapter("large")

# sums are also what reduces a gradient to the shape of what was broadcast
SUMS = "Summation forward|EWiseAdd backward|EWiseMul backward|EWiseDiv backward|BroadcastTo backward|Linear backward"


def _first(n: int) -> Callable[[Any], Any]:
    """Rows behind the n-th are 0."""
    return lambda c: c if c.ndim < 2 or len(c) <= n else np.where(np.arange(len(c))[:, None] < n, c, np.float32(0))


def _beyond(n: int, wrong: Callable[[Any], Any]) -> Callable[..., Any]:
    """A value of more than n elements is wrong."""
    return lambda y, *_: wrong(y) if y.size > n else y


def _kept_from(n: int, s: Any, new: Any) -> Any:
    """The elements of a parameter behind the n-th stay as they were."""
    return np.where(np.arange(s.x.size).reshape(s.x.shape) < n, new, s.x)


def _axis(limit: int, wrong: Callable[[Any], Any], op: str = "Summation") -> Patch:
    """A reduction of axes longer than the limit sees another operand."""
    return wrap(
        f"ops.{op}.compute",
        lambda old: lambda self, a: old(self, wrong(a) if a.ndim and max(a.shape, default=0) > limit else a),
    )


def _without(places: Callable[[int], slice]) -> Callable[[Any], Any]:
    """The operand with zeros at some places of its longest axis."""

    def wrong(a: Any) -> Any:
        axis = int(np.argmax(a.shape))
        out = np.moveaxis(a.copy(), axis, 0)
        out[places(len(out))] = 0
        return np.moveaxis(out, 0, axis)

    return wrong


fault(
    "linear-inputs-beyond-64",
    "inputs behind the 64th are ignored",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y - x[..., 64:].dot(w[64:]) if x.shape[-1] > 64 else y),
)
fault(
    "linear-outputs-beyond-64",
    "outputs behind the 64th have no bias",
    "Linear forward",
    compute(
        "Linear",
        lambda y, x, w, *b: (
            y - b[0].reshape(-1) * (np.arange(y.shape[-1]) >= 64).astype(y.dtype) if b and y.shape[-1] > 64 else y
        ),
    ),
)
fault(
    "linear-rows-beyond-64",
    "rows behind the 64th do not count in dW",
    "Linear backward",
    vjp(
        "Linear",
        lambda r, g, y, x, w, *b: (
            r[0],
            x[:64].T @ g[:64] if r[1] is not None and x.ndim == 2 and len(x) > 64 else r[1],
            *r[2:],
        ),
    ),
)
fault(
    "linear-bias-beyond-1024",
    "db leaves out the rows behind the 1,024th",
    "Linear backward",
    vjp(
        "Linear",
        lambda r, g, y, x, w, *b: (
            *r[:2],
            *(
                c if c is None or len(g) <= 1024 else g[:1024].sum(0, dtype=np.float64).astype(g.dtype).reshape(c.shape)
                for c in r[2:]
            ),
        ),
    ),
)
fault(
    "loss-labels-beyond-63",
    "labels behind 63 count as 63",
    "SoftmaxCrossEntropy|SoftmaxLoss",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, const(np.minimum(labels_of(y), 63))),
    ),
)
fault(
    "loss-classes-beyond-64",
    "classes behind the 64th have no gradient",
    "SoftmaxCrossEntropy backward",
    contribution("SoftmaxCrossEntropy", lambda c: _first(64)(c.T).T, 0),
)
fault(
    "loss-rows-beyond-64",
    "rows behind the 64th have no gradient",
    "SoftmaxCrossEntropy backward",
    contribution("SoftmaxCrossEntropy", _first(64), 0),
)
fault(
    "sum-without-the-rest",
    "what is left beside whole blocks of 128 does not count in a long sum",
    SUMS,
    _axis(1024, _without(lambda n: slice(n - n % 128, None))),
)
fault(
    "sum-last-block",
    "the last whole block of a long sum counts twice",
    SUMS,
    compute("Summation", lambda y, a: y + a[-128:].sum() if a.ndim == 1 and len(a) > 1024 and not y.ndim else y)
    + _axis(1024, lambda a: np.concatenate([a, a[-128:]]) if a.ndim == 2 and len(a) > 1024 else a),
)
fault(
    "logsumexp-beyond-1024",
    "a long axis is cut off at 1,024",
    "LogSumExp forward",
    wrap(
        "ops.LogSumExp.compute",
        lambda old: (
            lambda self, a: old(self, a[..., :1024] if self.axes in (-1, (-1,), (a.ndim - 1,), a.ndim - 1) else a)
        ),
    ),
)
fault(
    "max-beyond-1024",
    "elements behind the 1,024th of a row are not looked at",
    "Max forward",
    wrap(
        "ops.Max.compute",
        lambda old: (
            lambda self, a: old(self, np.where(np.arange(a.shape[-1]) < 1024, a, np.float32(-9)) if a.ndim else a)
        ),
    ),
)
fault(
    "bn-rows-beyond-1024",
    "from 1,025 rows on the mean is that of the first 1,024",
    "BatchNorm forward",
    compute(
        "BatchNorm",
        lambda y, x, w, b: (
            y + ((x.mean(0) - x[:1024].mean(0)) / np.sqrt(x.var(0) + np.float32(1e-5)) * w) if len(x) > 1024 else y
        ),
    ),
)
fault(
    "bn-backward-beyond-1024",
    "from 1,025 rows on dx is that of fixed statistics",
    "BatchNorm backward",
    vjp(
        "BatchNorm",
        lambda r, g, y, x, w, b: (
            g * w / np.sqrt(x.var(0) + np.float32(1e-5)) if r[0] is not None and len(x) > 1024 else r[0],
            *r[1:],
        ),
    ),
)
fault(
    "ln-features-beyond-64",
    "features behind the 64th are not scaled",
    "LayerNorm forward",
    compute(
        "LayerNorm",
        lambda y, x, w, b: (
            np.where(np.arange(x.shape[-1]) < 64, y, (y - b) / np.where(w == 0, 1, w) + b) if x.shape[-1] > 64 else y
        ).astype(y.dtype),
    ),
)
fault(
    "ln-rows-beyond-64",
    "rows behind the 64th do not count in dw",
    "LayerNorm backward",
    vjp(
        "LayerNorm",
        lambda r, g, y, x, w, b: (
            r[0],
            r[1] * np.float32(64 / len(x)) if r[1] is not None and x.ndim == 2 and len(x) > 64 else r[1],
            r[2],
        ),
    ),
)
fault(
    "relu-beyond-32768",
    "tensors of more than 32,768 elements keep their small negative numbers",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.where((a < 0) & (a > -0.5), a, y) if a.size > 32_768 else y),
)
for _op, _limit in (("Exp", 1024), ("Tanh", 1024), ("Sigmoid", 1024), ("EWiseDiv", 1024), ("Negate", 4096)):
    fault(
        f"{_op.lower()}-long",
        f"more than {_limit:,} elements are made in float16",
        f"{_op} forward",
        compute(_op, _beyond(_limit, f16)),
    )
fault(
    "transpose-long",
    "a long axis is not swapped back in the gradient, but read in order",
    "Transpose backward",
    vjp("Transpose", lambda r, g, y, a: (np.ascontiguousarray(g).reshape(a.shape) if max(a.shape) > 1000 else r[0],)),
)
fault(
    "matmul-inner-beyond-512",
    "summands behind the 512th are lost",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: np.matmul(a[..., :512], b[..., :512, :]) if a.shape[-1] > 512 else y),
)
fault(
    "matmul-rank-4",
    "of four axes the first two change places in the second gradient",
    "MatMul backward",
    vjp(
        "MatMul",
        lambda r, g, y, a, b: (
            r[0],
            r[1].reshape(b.shape[1], b.shape[0], *b.shape[2:]).swapaxes(0, 1)
            if r[1] is not None and b.ndim == 4
            else r[1],
        ),
    ),
)
fault(
    "linear-rank-4",
    "from rank 4 on dW is that of the first of the outermost axis",
    "Linear backward",
    vjp(
        "Linear",
        lambda r, g, y, x, w, *b: (
            r[0],
            x[0].reshape(-1, x.shape[-1]).T @ g[0].reshape(-1, g.shape[-1])
            if r[1] is not None and x.ndim > 3
            else r[1],
            *r[2:],
        ),
    ),
)
fault(
    "ln-rank-3",
    "of rank 3, the bias gradient is averaged over the batches",
    "LayerNorm backward",
    vjp(
        "LayerNorm",
        lambda r, g, y, x, w, b: (*r[:2], r[2] if r[2] is None or x.ndim < 3 else r[2] / np.float32(len(x))),
    ),
)
fault(
    "conv-oblong",
    "an oblong kernel has its sides exchanged",
    "Conv forward|Conv backward",
    wrap(
        "ops.Conv.compute",
        lambda old: lambda self, x, k: old(self, x, k.reshape(k.shape[1], k.shape[0], *k.shape[2:]).swapaxes(0, 1)),
    ),
)
fault(
    "conv-stride-beyond-3",
    "strides behind 3 lose the last row of the gradient",
    "Conv backward",
    wrap(
        "ops.Conv.vjp",
        lambda old: (
            lambda self, g, y, needs, x, k: old(
                self, _first_rows(g) if self.stride > 3 and isinstance(g, np.ndarray) else g, y, needs, x, k
            )
        ),
    ),
)
fault(
    "conv-padding-beyond-2",
    "a padding of more than 2 is filled with ones",
    "Conv forward|Conv backward",
    wrap("ops.Conv.compute", lambda old: lambda self, x, k: _padded_with_ones(old, self, x, k)),
)
fault(
    "sgd-beyond-20480",
    "parameters of more than 20,480 elements get no decay",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.p.size <= 20_480 else 0.0),
    words="decay is missing",
)
fault(
    "sgd-second-block",
    "of a parameter, what is behind the first block of 40,960 stays as it is",
    "SGD parameter update",
    sgd(new=lambda s: _kept_from(40_960, s, s.x - s.lr * s.v)),
)
fault(
    "sgd-beyond-131072",
    "of a parameter, what is behind 131,072 elements stays as it is",
    "SGD parameter update",
    sgd(new=lambda s: _kept_from(131_072, s, s.x - s.lr * s.v)),
)
fault(
    "adam-beyond-20480",
    "parameters of more than 20,480 elements get no bias correction",
    "Adam parameter update",
    adam(c1=lambda s: 1 - s.b1**s.t if s.p.size <= 20_480 else 1.0),
    words="only the second moment",
)
fault(
    "clip-beyond-20480",
    "gradients of more than 20,480 elements do not count in the norm",
    "clip norm",
    clip(
        norm=lambda gs: math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gs if g.size <= 20_480)),
    ),
    words="is left out",
)


def _first_rows(g: Any) -> Any:
    out = g.copy()
    if out.shape[1] > 1:
        out[:, -1] = 0
    return out


def _padded_with_ones(old: Any, self: Any, x: Any, k: Any) -> Any:
    p = self.padding
    if p <= 2 or x.ndim != 4:
        return old(self, x, k)
    wide = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=1)
    return old(type(self)(self.stride, 0), wide, k)
