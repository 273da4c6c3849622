"""Needle, rewritten: the same mathematics in other formulas that are as accurate, as other libraries, textbooks and students have
them. No rule may flag any of them.

What adds up in float16 does so in float32 here too, and is rounded once: that is the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from needle import ops
from needle.autograd import Tensor, Value
from oracle.trust.patches import Patch, around, compute, reading, replace


def in_single(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Tensors that computes on float16 in float32, and rounds what it gives once, to float16 if all floats are that."""

    def widened(*given: Any) -> Any:
        floats = [v.dtype for v in given if isinstance(v, Tensor) and v.dtype.kind == "f"]
        if np.float16 not in floats:
            return function(*given)
        wide = [ops.cast(v, "float32") if isinstance(v, Tensor) and v.dtype == np.float16 else v for v in given]
        return ops.cast(function(*wide), np.result_type(*floats).name)

    return widened


# -- norms ------------------------------------------------------------------------------------------------------------


def _welford(rows: Any) -> tuple[Any, Any]:
    """Mean and variance over the first axis, updated number by number (Welford 1962)."""
    mean, squares = np.zeros_like(rows[0]), np.zeros_like(rows[0])
    for i, row in enumerate(rows):
        off = row - mean
        mean = mean + off / row.dtype.type(i + 1)
        squares = squares + off * (row - mean)
    return mean, squares / rows.dtype.type(len(rows))


def _batch_by_welford(old: Any, self: Any, x: Any) -> Any:
    if isinstance(x, Tensor):
        return old(self, x)
    mean, var = _welford(x)
    return x - mean, 1 / np.sqrt(var + x.dtype.type(self.eps)), mean, var


def _rows_by_welford(old: Any, self: Any, x: Any) -> Any:
    if isinstance(x, Tensor):
        return old(self, x)
    mean, var = (v[..., None] for v in _welford(np.moveaxis(x, -1, 0)))
    inv = 1 / np.sqrt(var + x.dtype.type(self.eps))
    return (x - mean) * inv, inv


def _divided(old: Any, self: Any, x: Any) -> Any:
    if isinstance(x, Tensor):
        return old(self, x)
    n = x.dtype.type(x.shape[-1])
    row_sums = ops._row_sums_like(x)
    centred = x - row_sums(x) / n
    root = np.sqrt(row_sums(centred * centred) / n + x.dtype.type(self.eps))
    return centred / root, 1 / root


Backward = Callable[[Any, Any, int], Any]  # (what arrives at the normalised value, that value, axis)


def _textbook(g: Any, xh: Any, axis: int) -> Any:
    n = xh.dtype.type(xh.shape[axis])
    return (n * g - g.sum(axis, keepdims=True) - xh * (g * xh).sum(axis, keepdims=True)) / n


def _mean_first(g: Any, xh: Any, axis: int) -> Any:
    n = xh.dtype.type(xh.shape[axis])
    inner = g - g.sum(axis, keepdims=True) / n
    return inner - xh * ((g * xh).sum(axis, keepdims=True) / n)


def _norm_backward(op: str, axis: int, backward: Backward) -> Patch:
    def change(old: Any, self: Any, g: Any, y: Any, needs: Any, x: Any, weight: Any, bias: Any) -> Any:
        dx, dw, db = old(self, g, y, needs, x, weight, bias)
        if dx is None or isinstance(g, Value) or isinstance(x, Value):
            return dx, dw, db
        wide = np.result_type(*(v.dtype for v in (g, x, weight) if v.dtype.kind == "f"), np.float32)
        a, w, arriving = x.astype(wide), weight.astype(wide), g.astype(wide)
        n = wide.type(a.shape[axis])
        centred = a - a.sum(axis, keepdims=True) / n
        inv = 1 / np.sqrt((centred * centred).sum(axis, keepdims=True) / n + wide.type(self.eps))
        if axis == 0:
            made = backward(arriving, centred * inv, axis) * (inv * w)
        else:
            made = backward(arriving * w, centred * inv, axis) * inv
        return made.astype(dx.dtype), dw, db

    return reading(op) + around(f"ops.{op}.vjp", change)


# -- losses and activations -------------------------------------------------------------------------------------------


@in_single
def _by_lse(logits: Any, labels: Any) -> Any:
    y = labels.cached_data if isinstance(labels, Value) else np.asarray(labels)
    onehot = np.zeros(logits.shape, logits.dtype)
    onehot[np.arange(len(y)), y.astype(int)] = 1
    return (ops.logsumexp(logits, 1) - (logits * Tensor.make_const(onehot)).sum(1)).sum() / logits.shape[0]


def _wide(a: Any) -> Any:
    return a.astype(np.float32) if a.dtype == np.float16 else a if a.dtype.kind == "f" else a.astype(np.float32)


def _as(f: Callable[[Any], Any]) -> Callable[..., Any]:
    """A formula, in float32 where the result is float16."""
    return lambda y, a: np.asarray(f(_wide(a))).astype(y.dtype)


def _one_sided(a: Any) -> Any:
    """As torch has it: what overflows is 1 / inf, which is 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-a))


def _by_expm1(a: Any) -> Any:
    e = np.expm1(-2 * np.abs(a))
    return np.copysign(-e / (2 + e), a)


def _lse_by_log1p(old: Any, self: Any, a: Any) -> Any:
    """The largest, plus ln(1 + the others): as torch and SciPy have it."""
    y = old(self, a)
    if not np.isfinite(a).all():
        return y
    axes = tuple(i % a.ndim for i in ops._axes(self.axes, a.ndim, "logsumexp"))
    flat = np.moveaxis(_wide(a), axes, range(len(axes)))
    flat = flat.reshape(-1, *flat.shape[len(axes) :])
    top = flat.max(0)
    e = np.exp(flat - top)
    first = flat.argmax(0)
    np.put_along_axis(e, first[None], 0.0, 0)
    return np.asarray(np.log1p(e.sum(0)) + top).astype(y.dtype)


# -- products ---------------------------------------------------------------------------------------------------------


def _in_halves(y: Any, a: Any, b: Any) -> Any:
    """Transposed, and as a sum of two products: some kernels of BLAS have the same bits for a product and its transpose."""
    if a.ndim < 2 or b.ndim < 2:
        return y
    wide = np.result_type(a, b, np.float32) if {a.dtype, b.dtype} != {np.dtype(np.float32)} else np.dtype(np.float32)
    wide = np.dtype(np.float32) if y.dtype == np.float16 else wide if y.dtype == wide else y.dtype
    a, b = a.astype(wide), b.astype(wide)
    a, b, half = np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2), a.shape[-1] // 2
    made = np.matmul(b[..., :half], a[..., :half, :]) + np.matmul(b[..., half:], a[..., half:, :])
    return np.swapaxes(made, -1, -2).astype(y.dtype)


def _bias_in_the_matrix(y: Any, x: Any, weight: Any, *bias: Any) -> Any:
    if not bias or bias[0] is None:
        return y
    wide = np.dtype(np.float32) if y.dtype == np.float16 else y.dtype
    rows = x.reshape(-1, x.shape[-1]).astype(wide)
    ones = np.ones((len(rows), 1), wide)
    whole = np.concatenate([bias[0].reshape(1, -1).astype(wide), weight.astype(wide)])
    return (np.concatenate([ones, rows], 1) @ whole).reshape(y.shape).astype(y.dtype)


def _window_by_window(old: Any, self: Any, x: Any, kernel: Any) -> Any:
    """A convolution as a sum over the places of the kernel."""
    y = old(self, x, kernel)
    wide = np.dtype(np.float32) if y.dtype == np.float16 else y.dtype
    p, s = self.padding, self.stride
    padded = np.pad(x.astype(wide), ((0, 0), (p, p), (p, p), (0, 0)))
    made = np.zeros(y.shape, wide)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            part = padded[:, i : i + s * y.shape[1] : s, j : j + s * y.shape[2] : s][:, : y.shape[1], : y.shape[2]]
            made = made + part @ kernel[i, j].astype(wide)
    return made.astype(y.dtype)


def _dropped(old: Any, self: Any, x: Any) -> Any:
    """The mask first, and then a division: x · mask / (1 − p)."""
    made = old(self, x)
    if not made or not 1 - self.p:
        return made
    ((multiply, (scale,)),) = made
    kept = Tensor.make_const((scale.cached_data != 0).astype(scale.dtype))
    return (multiply, (kept,)), (ops.DivScalar(1 - self.p), ())


REWRITES: dict[str, Patch] = {
    "variance by Welford": around("ops.BatchNorm._statistics", _batch_by_welford)
    + around("ops.LayerNorm._normalised", _rows_by_welford),
    "norms divide by the root": around("ops.LayerNorm._normalised", _divided),
    "norms backward, textbook": _norm_backward("BatchNorm", 0, _textbook) + _norm_backward("LayerNorm", -1, _textbook),
    "norms backward, mean first": _norm_backward("BatchNorm", 0, _mean_first)
    + _norm_backward("LayerNorm", -1, _mean_first),
    "loss as logsumexp − z_y": replace("ops.softmax_cross_entropy", _by_lse),
    "sigmoid on one side": compute("Sigmoid", _as(_one_sided)),
    "tanh by expm1": compute("Tanh", _as(_by_expm1)),
    "softplus by logaddexp": compute("Softplus", _as(lambda a: np.logaddexp(a.dtype.type(0), a))),
    "log-sum-exp by log1p": around("ops.LogSumExp.compute", _lse_by_log1p),
    "products in halves, transposed": compute("MatMul", _in_halves),
    "bias in the matrix": compute("Linear", _bias_in_the_matrix),
    "convolution window by window": around("ops.Conv.compute", _window_by_window),
    "dropout divides last": around("nn.Dropout._ops", _dropped),
}
