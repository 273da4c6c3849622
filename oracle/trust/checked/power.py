"""Faults of known kind and size, planted in right implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from oracle.trust.checked.pairs import LABELS, PAIRS, Pair, f32

Function = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """A wrong candidate for a torch function."""

    kind: str
    pair: Pair


SIZES = (10, 12, 14, 16, 18, 20)  # of a relative error: 2⁻¹⁰ …
# rows in which every element has a size of its own, so that a relative error is an error
_PLANTED_IN = ("gelu", "matmul of 9", "layer_norm of 9", "softmax of 9", "conv2d", "cross_entropy", "gru_cell")


def _scaled(candidate: Function, size: float, one: bool) -> Function:
    """A relative error in every output, or in the last element of each."""

    def wrong(*inputs: Any) -> Any:
        got = candidate(*inputs)
        out, vjp = got if isinstance(got, tuple) and callable(got[1]) else (got, None)
        a = np.array(out.detach() if isinstance(out, torch.Tensor) else out)
        if one:
            a = a.copy()
            a.reshape(-1)[-1:] *= a.dtype.type(1 + size)
        else:
            a = a * a.dtype.type(1 + size)
        return a if vjp is None else (a, vjp)

    return wrong


def faults() -> Iterator[Fault]:
    """All of them."""
    seen = set()
    for pair in PAIRS:
        if pair.name in _PLANTED_IN and pair.name not in seen:
            seen.add(pair.name)
            for k in SIZES:
                for one, where in ((False, "all elements"), (True, "one element")):
                    wrong = _scaled(pair.candidate, 2.0**-k, one)
                    yield Fault(
                        f"2^-{k}, {where}", Pair(pair.name, pair.way, wrong, pair.torch_fn, pair.inputs, pair.kinds)
                    )
    for kind, name, wrong, right, *shapes in _WRITTEN:
        yield Fault(kind, Pair(name, "NumPy", wrong, right, tuple(shapes)))


def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _norm(x: Any, axis: int = -1, eps: float = 1e-5, ddof: int = 0) -> Any:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, ddof=ddof, keepdims=True) + f32(eps))


def _attention(q: Any, k: Any, v: Any, scale: float) -> Any:
    return _softmax(q @ np.swapaxes(k, -1, -2) * f32(scale)) @ v


def _losses(x: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    return -(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))[np.arange(4), LABELS]


def _gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + np.tanh(f32(np.sqrt(2 / np.pi)) * (x + f32(0.044715) * x**3)))


_ln: Function = lambda x: F.layer_norm(x, x.shape[-1:])  # noqa: E731
_bn: Function = lambda x: F.batch_norm(x, None, None, training=True)  # noqa: E731
_ce: Function = lambda x: F.cross_entropy(x, torch.as_tensor(LABELS))  # noqa: E731
_QKV = ((2, 5, 4), (2, 6, 4), (2, 6, 4))
_WRITTEN: list[tuple[Any, ...]] = [
    ("another eps", "layer_norm, 1e-6", lambda x: _norm(x, eps=1e-6), _ln, (4, 8)),
    ("another eps", "layer_norm, 1e-12", lambda x: _norm(x, eps=1e-12), _ln, (4, 8)),
    ("another eps", "layer_norm, outside of the root", lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + f32(1e-5)), _ln, (4, 8)),
    ("another eps", "batch_norm, 1e-6", lambda x: _norm(x, 0, eps=1e-6), _bn, (6, 4)),
    ("another eps", "rms_norm, 1e-6", lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + f32(1e-6)), lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5), (4, 8)),
    ("tanh for erf", "gelu", _gelu_tanh, F.gelu, (5, 6)),
    ("erf for tanh", "gelu, tanh", lambda x: x * torch.special.ndtr(torch.from_numpy(x)).numpy(), lambda x: F.gelu(x, approximate="tanh"), (5, 6)),
    ("missing scale", "attention", lambda q, k, v: _attention(q, k, v, 1.0), F.scaled_dot_product_attention, *_QKV),
    ("missing scale", "attention, 1/d", lambda q, k, v: _attention(q, k, v, 0.25), F.scaled_dot_product_attention, *_QKV),
    ("wrong axis", "softmax", lambda x: _softmax(x, 0), lambda x: F.softmax(x, -1), (5, 5)),
    ("wrong axis", "layer_norm", lambda x: _norm(x, 0), _ln, (5, 5)),
    ("wrong axis", "sum", lambda x: x.sum(0), lambda x: x.sum(1), (5, 5)),
    ("wrong axis", "cumsum", lambda x: np.cumsum(x, 0), lambda x: x.cumsum(1), (5, 5)),
    ("sum for mean", "cross_entropy", lambda x: _losses(x).sum(), _ce, (4, 3)),
    ("sum for mean", "mse_loss", lambda a, b: ((a - b) ** 2).sum(), F.mse_loss, (4, 7), (4, 7)),
    ("sum for mean", "mean over rows", lambda a, b: ((a - b) ** 2).sum(-1).mean(), F.mse_loss, (4, 7), (4, 7)),
    ("unbiased variance", "layer_norm", lambda x: _norm(x, ddof=1), _ln, (4, 8)),
    ("unbiased variance", "layer_norm of 300", lambda x: _norm(x, ddof=1), _ln, (4, 300)),
    ("unbiased variance", "batch_norm", lambda x: _norm(x, 0, ddof=1), _bn, (6, 4)),
    ("unbiased variance", "biased for var", lambda x: x.var(-1), lambda x: x.var(-1), (4, 300)),
    ("cancellation", "variance in one pass", lambda x: (x * x).mean(-1) - x.mean(-1) ** 2, lambda x: x.var(-1, correction=0), (4, 8)),
    ("cancellation", "softmax without its maximum", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), lambda x: F.softmax(x, -1), (4, 8)),
    ("cancellation", "log of softmax", lambda x: np.log(_softmax(x)), lambda x: F.log_softmax(x, -1), (4, 8)),
    ("cancellation", "softplus without its branch", lambda x: np.log(1 + np.exp(x)), F.softplus, (4, 8)),
    ("cancellation", "expm1 as exp − 1", lambda x: np.exp(x) - 1, torch.expm1, (4, 8)),
    ("cancellation", "log1p as log(1 + x)", lambda x: np.log(1 + abs(x)), lambda x: torch.log1p(x.abs()), (4, 8)),
    ("stale state", "exponential mean, one step late", lambda x: _mean(x, late=True), lambda x: _torch_mean(x), (6, 5)),
    ("stale state", "momentum without its first step", lambda x: _mean(x, skip=True), lambda x: _torch_mean(x), (6, 5)),
    ("stale state", "bias correction of the step before", lambda x: _mean(x, correction=5), lambda x: _torch_mean(x), (6, 5)),
]  # fmt: skip


def _mean(x: Any, late: bool = False, skip: bool = False, correction: int = 6) -> Any:
    """An exponential mean over the rows, with its bias correction."""
    m = np.zeros(x.shape[1:], f32)
    for row in x[1 if skip else 0 : -1 if late else None]:
        m = f32(0.99) * m + f32(1 - 0.99) * row
    return m / f32(1 - 0.99**correction)


def _torch_mean(x: torch.Tensor) -> torch.Tensor:
    m = torch.zeros(x.shape[1:])
    for row in x:
        m = 0.99 * m + (1 - 0.99) * row
    return m / (1 - 0.99**6)
