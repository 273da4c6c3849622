"""What is wrong only sometimes: from the third step on, beyond 32 rows, for one column, if not contiguous."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import nn
from oracle.trust.faults.adam import adam
from oracle.trust.faults.chapter import Chapter, const, f16, labels_of, square
from oracle.trust.faults.clipping import clip
from oracle.trust.faults.layers import mode
from oracle.trust.faults.norms import batch_norm
from oracle.trust.faults.sgd import first_lr, lr_changed, sgd
from oracle.trust.faults.walk import walk
from oracle.trust.patches import Patch, around, compute, contribution, replace, vjp, wrap

fault = Chapter("conditional")


def _when(condition: Callable[..., Any], wrong: Callable[[Any], Any]) -> Callable[..., Any]:
    """A change of a value that happens only where ``condition(y, *operands)`` holds."""
    return lambda y, *xs: wrong(y) if condition(y, *xs) else y


def _off(y: Any) -> Any:
    return y * np.float32(1.01)


def _back(op: str, condition: Callable[..., Any], wrong: Callable[[Any], Any] = _off) -> Patch:
    """Contributions that are wrong only where ``condition(g, y, *operands)`` holds."""
    return vjp(op, lambda r, g, y, *xs: [c if c is None else wrong(c) for c in r] if condition(g, y, *xs) else r)


def _strided(a: Any) -> bool:
    return a.ndim > 1 and not a.flags.c_contiguous


def _memory_order(a: Any) -> Any:
    """The elements as they lie in memory: wrong for what is not contiguous."""
    return np.ravel(a, order="K").reshape(a.shape)


fault(
    "linear-one-row-no-bias",
    "a batch of 1 gets no bias",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y - b[0] if b and len(x) == 1 else y),
)
fault(
    "linear-one-column",
    "an output of width 1 is off by 1 %",
    "Linear forward",
    compute("Linear", _when(lambda y, *_: y.shape[-1] == 1, _off)),
)
fault(
    "linear-one-input",
    "an input of width 1 gives a wrong dW",
    "Linear backward",
    _back("Linear", lambda g, y, x, *_: x.shape[-1] == 1),
)
fault(
    "linear-wide",
    "outputs beyond the 32nd are 0",
    "Linear forward",
    compute(
        "Linear",
        _when(lambda y, *_: y.shape[-1] > 32, lambda y: np.where(np.arange(y.shape[-1]) < 32, y, np.float32(0))),
    ),
)
fault(
    "linear-inner-beyond-32",
    "summands beyond the 32nd are lost",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y - x[:, 32:] @ w[32:] if x.ndim == 2 and x.shape[1] > 32 else y),
)
fault(
    "linear-rows-beyond-32",
    "rows beyond the 32nd do not count in dW",
    "Linear backward",
    vjp(
        "Linear",
        lambda r, g, y, x, w, *b: (r[0], x[:32].T @ g[:32] if r[1] is not None and len(x) > 32 else r[1], *r[2:]),
    ),
)
fault(
    "linear-odd-width",
    "odd widths above 16 lose their last output",
    "Linear forward",
    compute(
        "Linear",
        _when(
            lambda y, *_: y.shape[-1] > 16 and y.shape[-1] % 2,
            lambda y: np.where(np.arange(y.shape[-1]) < y.shape[-1] - 1, y, np.float32(0)),
        ),
    ),
)
fault(
    "linear-tied-once",
    "a weight used twice in one model gets one contribution",
    "accumulation|Linear",
    walk(
        seen=lambda c, x, i, node: c,
        add=lambda before, c: c if before.ndim == 2 and before.shape[0] == before.shape[1] else before + c,
    ),
    words="only one|is missing",
)
fault(
    "relu-large-gradient",
    "gradients beyond 64 are cut off",
    "ReLU backward",
    contribution("ReLU", lambda c: np.clip(c, -64, 64)),
)
fault(
    "linear-large-gradient",
    "dW is cut off at ±64",
    "Linear backward",
    contribution("Linear", lambda c: np.clip(c, -64, 64), 1),
)
fault(
    "tanh-large-input",
    "beyond |x| = 8 tanh is 0.999",
    "Tanh forward",
    compute("Tanh", lambda y, x: np.where(np.abs(x) > 8, np.sign(x) * np.float32(0.999), y)),
)
fault(
    "sigmoid-large-input",
    "below −20 sigmoid is 0",
    "Sigmoid forward",
    compute("Sigmoid", lambda y, x: np.where(x < -20, np.float32(0), y)),
)
fault(
    "sum-beyond-256",
    "sums over more than 256 elements lose the rest",
    "Summation forward",
    wrap(
        "ops.Summation.compute",
        lambda old: (
            lambda self, a: np.asarray(a.ravel()[:256].sum()) if self.axes is None and a.size > 256 else old(self, a)
        ),
    ),
)
fault(
    "multiply-beyond-256",
    "products of more than 256 elements are made in float16",
    "EWiseMul forward",
    compute("EWiseMul", _when(lambda y, *_: y.size > 256, f16)),
)
fault(
    "add-beyond-256",
    "sums of more than 256 elements are made in float16",
    "EWiseAdd forward",
    compute("EWiseAdd", _when(lambda y, *_: y.size > 256, f16)),
)
fault(
    "sgd-beyond-256",
    "elements of a parameter beyond the 256th are not updated",
    "SGD parameter update",
    sgd(new=lambda s: np.where(np.arange(s.x.size).reshape(s.x.shape) < 256, s.x - s.lr * s.v, s.x)),
)
fault(
    "sgd-third-step",
    "the third step uses twice the learning rate",
    "SGD parameter update",
    sgd(lr=lambda s: s.o.lr * (2 if s.n == 3 else 1)),
    words="twice",
)
fault(
    "sgd-third-step-velocity",
    "the velocity is thrown away before the third step",
    "SGD velocity",
    sgd(old=lambda s: s.o.u[s.p].cached_data if s.p in s.o.u and s.n != 3 else np.zeros_like(s.x)),
    words="taken as zero",
)
fault(
    "sgd-fifth-step",
    "decay ends with the fourth step",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.n < 5 else 0.0),
    words="decay is missing",
)
fault(
    "sgd-after-lr-change",
    "a change of the learning rate throws the velocity away",
    "SGD velocity",
    sgd(old=lambda s: np.zeros_like(s.x) if lr_changed(s) or s.p not in s.o.u else s.o.u[s.p].cached_data),
    words="taken as zero",
)
fault(
    "sgd-decay-after-lr-change",
    "decay is scaled with a changed learning rate",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay * s.o.lr / first_lr(s)),
)
fault(
    "sgd-large-gradient",
    "gradients beyond 64 are cut off in the step",
    "SGD velocity",
    sgd(g=lambda s: np.clip(s.grad.cached_data.astype(s.x.dtype, copy=False), -64, 64)),
)
fault(
    "sgd-zero-gradient-skipped",
    "a parameter whose gradient is all zero is skipped",
    "SGD",
    sgd(skip=lambda s: s.grad is None or not s.grad.cached_data.any()),
)
fault(
    "sgd-one-element",
    "parameters of one element get no decay",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.p.size > 1 else 0.0),
    words="decay is missing",
)
fault(
    "sgd-large-momentum",
    "momentum beyond 0.95 is cut to 0.95",
    "SGD velocity",
    sgd(beta=lambda s: min(s.o.momentum, 0.95)),
)
fault(
    "sgd-large-decay",
    "decay beyond 0.5 is cut to 0.5",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: min(s.o.weight_decay, 0.5)),
)
fault(
    "sgd-large-lr",
    "learning rates beyond 0.5 are cut to 0.5",
    "SGD parameter update",
    sgd(lr=lambda s: min(s.o.lr, 0.5)),
    words="as if the learning rate were 0.5",
)
fault(
    "adam-third-step",
    "bias correction ends with the second step",
    "Adam parameter update",
    adam(c1=lambda s: 1 - s.b1**s.t if s.t < 3 else 1.0),
    words="only the second moment is corrected",
)
fault(
    "clip-many-parameters",
    "from the fifth parameter on gradients do not count in the norm",
    "clip norm",
    clip(norm=lambda gs: math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gs[:4]))),
    words="is left out|only the first 4 of",
)
fault(
    "clip-at-step-two",
    "clipping of scalars and vectors is left out",
    "clip scal",
    clip(apply=lambda g, f: g * f if g.ndim > 1 else g),
    words="not clipped",
)
fault(
    "dropout-in-nested-eval",
    "in a nested part that evaluates, dropout drops while the rest trains",
    "Module.eval",
    replace(
        "nn.Module.eval", mode(False, lambda self: [m for m in self.modules_in() if not isinstance(m, nn.Dropout)])
    ),
)
fault(
    "bn-in-nested-eval",
    "eval() does not reach the norms of a nested Sequential",
    "Module.eval",
    replace(
        "nn.Module.eval", mode(False, lambda self: [m for m in self.modules_in() if not isinstance(m, nn.BatchNorm1d)])
    ),
)
fault(
    "bn-two-rows",
    "a batch of 2 uses the unbiased variance",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), x.var(0, ddof=1 if len(x) == 2 else 0))),
)
fault(
    "bn-one-column",
    "a single feature is only centred",
    "BatchNorm forward",
    compute("BatchNorm", lambda y, x, w, b: (x - x.mean(0)) * w + b if x.shape[1] == 1 else y),
)
fault(
    "bn-constant-column",
    "a constant column gives the weight and not the bias",
    "BatchNorm forward",
    compute("BatchNorm", lambda y, x, w, b: np.where(np.ptp(x, 0) == 0, w, y)),
)
fault(
    "bn-many-rows",
    "beyond 32 rows the variance is of the first 32",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), x[:32].var(0))),
)
fault(
    "bn-momentum-zero",
    "momentum 0 counts as not given",
    "running statistics|buffer|BatchNorm",
    around(
        "nn.BatchNorm1d.__init__",
        lambda old, self, dim, eps=1e-5, momentum=0.1, **kw: old(self, dim, eps, momentum or 0.1, **kw),
    ),
)
fault(
    "ln-one-column",
    "a single feature passes as it is",
    "LayerNorm forward",
    compute("LayerNorm", lambda y, x, w, b: x * w + b if x.shape[-1] == 1 else y),
)
fault(
    "ln-one-row",
    "a batch of 1 gets no bias",
    "LayerNorm forward",
    compute("LayerNorm", lambda y, x, w, b: y - b if len(x) == 1 else y),
)
fault(
    "loss-one-row",
    "a batch of 1 has half the loss",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y / 2 if len(z) == 1 else y),
)
fault(
    "loss-one-class",
    "a single class has loss 1",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y + np.float32(1) if z.shape[1] == 1 else y),
)


def _below_16(labels: Any) -> Any:
    """Labels of one byte modulo 16."""
    given = labels_of(labels)
    return const(given % np.uint8(16)) if given.dtype == np.uint8 else labels


fault(
    "loss-small-labels",
    "labels of one byte overflow in rows of many classes",
    "SoftmaxCrossEntropy|SoftmaxLoss",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, _below_16(y)),
    ),
)
fault(
    "loss-labels-int32",
    "labels of 32 bits count as 0",
    "SoftmaxCrossEntropy|SoftmaxLoss",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, const(0 * labels_of(y)) if getattr(y, "dtype", None) == np.int32 else y),
    ),
)
fault(
    "loss-large-logits",
    "logits are cut off at ±100",
    "SoftmaxCrossEntropy forward",
    wrap(
        "ops.SoftmaxCrossEntropy.compute", lambda old: lambda self, z, labels: old(self, np.clip(z, -100, 100), labels)
    ),
)
fault(
    "reshape-not-contiguous",
    "reshape reads memory in its own order",
    "Reshape forward",
    wrap("ops.Reshape.compute", lambda old: lambda self, a: old(self, _memory_order(a) if _strided(a) else a)),
)
fault(
    "exp-not-contiguous",
    "exp reads memory in its own order",
    "Exp forward",
    compute("Exp", lambda y, a: np.exp(_memory_order(a)) if _strided(a) else y),
)
fault(
    "matmul-not-contiguous",
    "a transposed operand is read as if it were not",
    "MatMul forward",
    wrap("ops.MatMul.compute", lambda old: lambda self, a, b: old(self, _memory_order(a) if _strided(a) else a, b)),
)
fault(
    "multiply-not-contiguous",
    "a transposed operand is read as if it were not",
    "EWiseMul forward",
    wrap("ops.EWiseMul.compute", lambda old: lambda self, a, b: old(self, a, _memory_order(b) if _strided(b) else b)),
)
fault(
    "matmul-square-batch",
    "batched square matrices are multiplied in the other order",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: np.matmul(b, a) if a.ndim > 2 and a.shape == b.shape and square(a) else y),
)
fault(
    "transpose-rank-three",
    "axes of a rank-3 tensor are swapped back in the wrong pair",
    "Transpose backward",
    vjp(
        "Transpose",
        lambda r, g, y, a: (g.swapaxes(0, 1) if g.ndim == 3 and g.swapaxes(0, 1).shape == a.shape else r[0],),
    ),
)
fault(
    "power-of-zero",
    "the exponent 0 has derivative 1",
    "PowerScalar backward",
    wrap(
        "ops.PowerScalar.vjp",
        lambda old: lambda self, g, y, needs, a: (g,) if self.scalar == 0 else old(self, g, y, needs, a),
    ),
)
fault(
    "power-negative",
    "negative exponents lose their sign in the gradient",
    "PowerScalar backward",
    wrap(
        "ops.PowerScalar.vjp",
        lambda old: (
            lambda self, g, y, needs, a: (
                (-old(self, g, y, needs, a)[0],) if self.scalar < 0 else old(self, g, y, needs, a)
            )
        ),
    ),
)
fault(
    "sum-keeps-zero-size",
    "the sum over nothing is 1",
    "Summation forward",
    compute("Summation", lambda y, a: np.asarray(y) + np.float32(1) if not a.size else y),
)
fault(
    "max-negative",
    "the maximum of negative numbers is 0",
    "Max forward",
    compute("Max", lambda y, a: np.maximum(y, np.float32(0))),
)
fault(
    "logsumexp-all-axes",
    "over all axes the shift is by the first row's maximum",
    "LogSumExp forward",
    wrap("ops.LogSumExp.compute", lambda old: lambda self, a: _shifted_by_first(old, self, a)),
)
fault(
    "tanh-one-element",
    "a tensor of one element gets a gradient without its slope",
    "Tanh backward",
    vjp("Tanh", lambda r, g, y, a: (g if g.size == 1 else r[0],)),
)
fault(
    "log-subnormal",
    "numbers below 1e-18 count as 1e-18",
    "Log forward",
    compute("Log", lambda y, a: np.log(np.where((a > 0) & (a < 1e-18), np.float32(1e-18), a))),
)
fault(
    "divide-broadcast-divisor",
    "a divisor of one row gets the gradient of the first row",
    "EWiseDiv backward",
    vjp(
        "EWiseDiv",
        lambda r, g, y, a, b: (
            r[0],
            r[1] if r[1] is None or b.shape == g.shape or not g.size else r[1] / np.float32(g.size / b.size),
        ),
    ),
)


def _shifted_by_first(old: Any, self: Any, a: Any) -> Any:
    if self.axes is not None or a.ndim < 2:
        return old(self, a)
    top = a[:1].max()
    return np.asarray(np.log(np.exp(a - top).sum()) + top)
